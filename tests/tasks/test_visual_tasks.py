"""Captions and answers: transformers' batches and losses, runs that learn, what is written, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from pictured import CAPTIONS, COLOURS, MODELS, captions, options, picture, processor, questions, small, words
from safetensors.torch import load_file
from written_rows import curves, train, write_rows

import mlplatform as mp
from mlplatform.cli.main import main
from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools
from mlplatform.data.records import Record
from mlplatform.errors import DataError
from mlplatform.processors.image import ImageProcessor
from mlplatform.tasks.captioning import Captioning
from mlplatform.tasks.text_scores import of_texts
from mlplatform.tasks.visual_question_answering import VisualQuestionAnswering, accuracy, normalised

SHOWN = [picture("red", 1), picture("blue", 2), picture("white", 3)]


def batch_of(task: Any, name: str, values: list[dict[str, Any]], length: int = 64) -> dict[str, torch.Tensor]:
    """Return the task's batch of records, with the tokenizer of a model's texts."""
    examples = task.examples(Tools(words(name), processor(), length))
    records = [Record(one, {}, f"row {number}") for number, one in enumerate(values)]
    return examples([Row(examples.row(record, None), 0, 0, number) for number, record in enumerate(records)])


def captioned(count: int = 3) -> list[dict[str, Any]]:
    said = ["a red wall", "a wall", "a white wall, a wall"]
    return [{"image": image, "text": [text, "other"]} for image, text in zip(SHOWN[:count], said, strict=False)]


def masked_loss(theirs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return theirs(**batch).loss


def test_a_caption_beside_its_image_has_transformers_batch_and_loss(tmp_path: Path) -> None:
    model = small("blip_tiny")
    task = Captioning(model)
    ours = batch_of(task, "blip_tiny", captioned())
    mp.save(model, tmp_path)
    words("blip_tiny").save(tmp_path)
    images = tf.BlipImageProcessorPil(size={"height": 16, "width": 16})
    theirs: Any = tf.BlipProcessor(images, tf.AutoTokenizer.from_pretrained(tmp_path))
    texts = [one["text"][0] for one in captioned()]
    given = theirs(images=SHOWN, text=texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels[:, 0] = -100  # never scored
    assert set(ours) == {*given, "labels"}
    for key, tensor in given.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours["labels"], labels)
    wanted = masked_loss(tf.BlipForConditionalGeneration.from_pretrained(tmp_path).eval(), {**given, "labels": labels})
    out = task.scored(ours)
    torch.testing.assert_close(out.loss, wanted, atol=1e-5, rtol=1e-5)
    assert out.loss_count == task.targets(ours) == (labels != -100).sum()


def test_a_caption_after_its_image_has_transformers_batch_and_loss(tmp_path: Path) -> None:
    model = small("llava_tiny")
    task = Captioning(model, prompt="see {image} a picture of ")
    ours = batch_of(task, "llava_tiny", captioned())
    mp.save(model, tmp_path)
    words("llava_tiny").save(tmp_path)
    images = tf.CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    more: dict[str, Any] = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    theirs: Any = tf.LlavaProcessor(images, tf.AutoTokenizer.from_pretrained(tmp_path), patch_size=8, **more)
    texts = [f"see <image> a picture of {one['text'][0]}<|im_end|>" for one in captioned()]
    given = theirs(images=SHOWN, text=texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    for key, tensor in given.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-5, rtol=0)
    learned = [words("llava_tiny").decode(row[row != -100], specials=True) for row in ours["labels"]]
    assert learned == [f"{one['text'][0]}<|im_end|>" for one in captioned()]
    reference = tf.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    wanted = masked_loss(reference, {**given, "labels": ours["labels"]})
    out = task.scored(ours)
    torch.testing.assert_close(out.loss, wanted, atol=1e-5, rtol=1e-5)
    assert out.loss_count == task.targets(ours)


def test_an_answer_of_a_decoder_has_transformers_loss(tmp_path: Path) -> None:
    model = small("blip_vqa")
    task = VisualQuestionAnswering(model)
    said = ["red", "a blue wall", "no"]
    values = [{"image": i, "question": "what is it?", "answer": [text]} for i, text in zip(SHOWN, said, strict=True)]
    ours = batch_of(task, "blip_vqa", values)
    mp.save(model, tmp_path)
    tokenizer = words("blip_vqa")
    assert ours["input_ids"].tolist() == [tokenizer.encode("what is it?")] * 3
    assert [row[row != -100].tolist() for row in ours["labels"]] == [tokenizer.encode(text) for text in said]
    theirs: Any = tf.BlipForQuestionAnswering.from_pretrained(tmp_path).eval()
    there = ours["labels"] != -100
    begun = {"decoder_input_ids": ours["labels"].masked_fill(~there, 0), "decoder_attention_mask": there.long()}
    wanted = masked_loss(theirs, {**ours, **begun})
    out = task.scored(ours)
    torch.testing.assert_close(out.loss, wanted.mean(), atol=1e-5, rtol=1e-5)
    assert out.loss_count == task.targets(ours) == sum(len(tokenizer.encode(text)) - 1 for text in said)


@pytest.mark.parametrize("name", ["blip_tiny", "blip_vqa", "llava_tiny"])
def test_what_is_written_is_the_likeliest_token_at_each_place(name: str) -> None:
    model = small(name)
    task = VisualQuestionAnswering(model, answer_length=5)
    task.settle(Tools(words(name), processor(), 64))
    values = [{"image": SHOWN[0], "question": "is it red? no", "answer": ["yes"]}]
    values += [{"image": SHOWN[1], "question": "what?", "answer": ["a blue one"]}]
    ours = batch_of(task, name, values)
    with torch.no_grad():
        said = task.written(ours, task.scored(ours))
        for row, (value, text) in enumerate(zip(values, said, strict=True)):
            batch = batch_of(task, name, [value])
            decoder = name == "blip_vqa"
            own, key = batch["labels"][0], "labels" if decoder else "input_ids"
            prompt = [int(own[0])] if decoder else batch["input_ids"][0][own == -100].tolist()
            tokens: list[int] = []
            for _ in range(5):
                given = {
                    **{k: v for k, v in batch.items() if k != "attention_mask"},
                    key: torch.tensor([[*prompt, *tokens]]),
                }
                if not decoder:
                    given.pop("labels")
                tokens.append(int(model(**given).logits[0, -1].argmax()))
            end = words(name).frame[1]
            tokens = tokens[: tokens.index(end)] if end in tokens else tokens
            assert text == words(name).decode(tokens).strip(), row


def test_of_several_captions_an_epoch_draws_one() -> None:
    task = Captioning(small("blip_tiny"))
    examples = task.examples(Tools(words("blip_tiny"), processor(), 32))
    record = Record({"image": SHOWN[0], "text": CAPTIONS}, {}, "here")
    drawn = {words("blip_tiny").decode(examples.row(record, np.random.default_rng(n))["input_ids"]) for n in range(40)}
    assert drawn == set(CAPTIONS)
    assert words("blip_tiny").decode(examples.row(record, None)["input_ids"]) == CAPTIONS[0]


def test_the_first_answer_that_is_cut_is_told(caplog: pytest.LogCaptureFixture) -> None:
    task = VisualQuestionAnswering(small("llava_tiny"), answer_length=3)
    examples = task.examples(Tools(words("llava_tiny"), processor(), 64))
    record = Record({"image": SHOWN[0], "question": "what?", "answer": ["a blue wall"]}, {}, "rows.jsonl: line 7")
    with caplog.at_level("WARNING", "mlplatform"):
        rows = [examples.row(record, None) for _ in range(2)]
    whole = words("llava_tiny").plain(["a blue wall"])[0]
    assert [token for token in rows[0]["labels"] if token != -100] == [*whole[:2], words("llava_tiny").frame[1]]
    (told,) = caplog.messages
    assert told.startswith(f"rows.jsonl: line 7: its answer has {len(whole) + 1} tokens with its end, of which 3 are")
    assert told.endswith(f"set task.answer_length={len(whole) + 1} or more")


def test_rows_are_cut_with_their_end_and_a_prompt_is_not() -> None:
    long = {"image": SHOWN[0], "text": ["a red wall " * 20]}
    for name, prompt, begun in (("blip_tiny", "a picture of", 4), ("llava_tiny", "", 5)):
        task = Captioning(small(name), prompt=prompt, caption_length=6)
        row = batch_of(task, name, [long])
        learned = row["labels"][0] != -100
        assert learned.sum() == 6
        assert row["input_ids"][0, -1] == words(name).frame[1]
        assert not learned[:begun].any()
        tight = batch_of(task, name, [long], len(learned) - 2)
        assert tight["input_ids"].shape[1] == len(learned) - 2
        assert tight["input_ids"][0, -1] == words(name).frame[1]
        with pytest.raises(DataError, match=r"row 0: the image and the text before the answer take .*batch.length=5"):
            batch_of(task, name, [long], 5)


def test_blips_own_start_token() -> None:
    task = Captioning(small("blip_tiny"), begin=299)
    assert batch_of(task, "blip_tiny", captioned())["input_ids"][:, 0].tolist() == [299] * 3
    asked = VisualQuestionAnswering(small("blip_vqa"), begin=299)
    values = [{"image": SHOWN[0], "question": "what?", "answer": ["red"]}]
    assert batch_of(asked, "blip_vqa", values)["labels"][0, 0] == 299


@pytest.mark.parametrize("name", ["blip_tiny", "llava_tiny"])
def test_a_run_learns_captions_and_evaluate_writes_them(tmp_path: Path, name: str) -> None:
    table = write_rows(tmp_path / "walls.jsonl", captions(tmp_path, 32))
    learning = ["optimizer=adamw", "optimizer.lr=5e-3", "batch.micro=4", "trainer.max=80 steps"]
    learning += ["trainer.validate_every=100%", "trainer.checkpoint_every=100%"]
    run = train(tmp_path, table, *options(name), "task=captioning", "task.metrics=[exact,rouge,bleu,chrf]", *learning)
    assert curves(run)[-1]["validation/exact_match"] == 1.0
    assert main(["evaluate", str(run)]) == 0
    (folder,) = (run / "evaluations").iterdir()
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    told = json.loads((folder / "metrics.json").read_text())["metrics"]
    said, wanted = [line["prediction"]["text"] for line in lines], [line["text"] for line in lines]
    for measure, score in of_texts(["exact", "rouge", "bleu", "chrf"]).items():
        score.update(said, wanted)
        assert told[f"validation/{measure}"] == pytest.approx(score.compute())


@pytest.mark.parametrize("name", ["blip_vqa", "llava_tiny"])
def test_a_run_answers(tmp_path: Path, name: str) -> None:
    table = write_rows(tmp_path / "walls.jsonl", questions(tmp_path))
    run = train(tmp_path, table, *options(name), "task=visual_question_answering", "trainer.max=4 steps")
    assert json.loads((run / "run.json").read_text())["best"].keys() >= {"validation/accuracy"}
    assert main(["evaluate", str(run), "task.beams=2"]) == 0
    (folder,) = (run / "evaluations").iterdir()
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    told = json.loads((folder / "metrics.json").read_text())["metrics"]
    said = [line["prediction"]["answer"] for line in lines]
    assert told["validation/accuracy"] == accuracy(said, [line["answer"] for line in lines])


def test_the_projector_alone_learns(tmp_path: Path) -> None:
    table = write_rows(tmp_path / "walls.jsonl", captions(tmp_path))
    run = train(
        tmp_path, table, *options("llava_tiny"), "task=captioning", "freeze=[vision,language]", "optimizer=adamw",
        "trainer.max=2 steps",
    )  # fmt: skip
    before = mp.build("llava_tiny", MODELS["llava_tiny"])
    after = load_file(run / "checkpoints" / "step=00000002" / "model.safetensors")
    changed = {
        name.split(".")[0]
        for name, tensor in before.state_dict().items()
        if not torch.equal(tensor, after[next(key for key in after if key.endswith(name))])
    }
    assert changed == {"projector"}


@pytest.mark.parametrize("name", ["blip_tiny", "blip_vqa", "llava_tiny"])
def test_a_preview_shows_what_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = write_rows(tmp_path / "walls.jsonl", questions(tmp_path))
    data = ["data=json_rows", f"data.path={table}", "data.validation=0.25", "batch=padded", "batch.length=64"]
    assert main(["data", "show", *data, *options(name), "task=visual_question_answering"]) == 0
    said = capsys.readouterr().out
    ends = r"<\|im_end\|>" if name == "llava_tiny" else r"\[SEP\]"
    shown = re.findall(rf"(?:red\?|wall\?)[^⟧]*⟧\n?(?:\[CLS\])?([a-z ]+){ends}", said)
    assert len(shown) == 3
    assert set(shown) <= {"yes", "no", *COLOURS, *(f"a {colour} one" for colour in COLOURS)}


NOT = r"task=\w+ does not fit this "
REFUSED: list[tuple[list[str], str]] = [
    (["model=llama_tiny", "tokenizer=bpe", "task=captioning", "processor=null"],
     NOT + r"single_tower: it needs a model that reads images and writes, such as model=blip_tiny or "
     r"model=llava_tiny; causal_lm fits this one"),
    (["model=clip_tiny", "task=captioning", "tokenizer.vocab=300"], NOT + r"dual_tower, which .*: contrastive fits it"),
    (["model=vit_tiny", "tokenizer=bpe", "tokenizer.vocab=300", "task=visual_question_answering", "processor=image"],
     NOT + r"single_tower: it needs .* such as model=blip_tiny or model=blip_vqa or model=llava_tiny"),
    ([*options("blip_vqa"), "task=captioning"], NOT + r"grounded_text: visual_question_answering fits it"),
    ([*options("blip_tiny"), "task=visual_chat"],
     NOT + r"grounded_text: captioning and visual_question_answering fit it"),
    ([*options("blip_tiny"), "task=seq2seq"],
     r"task=seq2seq gives the model no images, and this grounded_text reads them: captioning and .* fit it"),
    ([*options("llava_tiny"), "task=captioning", "tokenizer=bpe", "tokenizer.vocab=300"],
     r"model.image_token=4 is no special token of .*; set tokenizer=visual_bpe"),
    ([*options("llava_tiny"), "task=captioning", "model.image_token=9"],
     r"model.image_token=9 is no special token of .*; <image> is 4"),
    ([*options("llava_tiny"), "task=captioning", "model.language.trunk.input.vocab=262", "tokenizer.vocab=300"],
     r"the tokenizer has \d+ tokens and the model's table 262 rows; set model.language.trunk.input.vocab=\d+"),
    ([*options("blip_tiny"), "task=captioning", "processor.config.size={height: 32, width: 32}"],
     r"32.*16|16.*32"),
    ([*options("blip_tiny"), "task=captioning", "task.prompt='{image} of'"],
     r"task: prompt='\{image\} of' names \{image\}; braces may hold nothing; this model reads the image beside"),
    ([*options("llava_tiny"), "task=visual_question_answering", "task.prompt='{query}'"],
     r"names \{query\}; braces may hold question, image"),
    ([*options("llava_tiny"), "task=captioning", "task.begin=3"], r"begin=3 is for models that read the image beside"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "says"), REFUSED)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    rows = [{**row, "source": "a", "target": "b"} for row in questions(tmp_path, 8)]
    table = write_rows(tmp_path / "walls.jsonl", [{**row, "text": f"{'ab' * n} b"} for n, row in enumerate(rows)])
    data = ["data=json_rows", f"data.path={table}", "data.validation=0.25", "batch=padded", "batch.length=48"]
    outputs = tmp_path / "outputs"
    assert main(["train", *data, *overrides, "trainer.max=1 steps", f"outputs={outputs}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(says, line), line
    assert not outputs.exists()


def test_images_of_several_sizes_are_told() -> None:
    task = Captioning(small("llava_tiny"))
    kind = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "do_center_crop": False}
    examples = task.examples(Tools(words("llava_tiny"), ImageProcessor(kind), 64))
    with pytest.raises(DataError, match=r"row 7: the image ends up 16x24, .*; give processor.config.size a height"):
        examples.row(Record({"image": picture("red", width=30), "text": ["a"]}, {}, "row 7"), None)


def test_an_image_token_spelled_out_is_a_bad_row() -> None:
    task = VisualQuestionAnswering(small("llava_tiny"), prompt="{image}\n{question}")
    values = [{"image": SHOWN[0], "question": "is <image> one?", "answer": ["yes"]}]
    with pytest.raises(DataError, match=r"row 0: its text spells out <image>, the place of an image"):
        batch_of(task, "llava_tiny", values)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The Dog.", "dog"), ("two", "2"), ("None", "0"), ("3.14", "3.14"), ("1,5 m", "1,5 m"),
        ("it's red!", "its red"), ("a red, small one", "red small 1"), ("yes / no", "yes no"), ("an", ""),
    ],
)  # fmt: skip
def test_answers_are_normalised(text: str, same: str) -> None:
    assert normalised(text) == same


def test_an_answer_is_right_when_it_is_one_of_the_accepted() -> None:
    said = ["Two", "a dog", "cat", ""]
    assert accuracy(said, [["2", "three"], ["cat", "the dog"], ["dog"], ["none"]]) == 0.5
