"""Conversations with images: transformers' batch and loss, where images stand, long ones, runs, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from pictured import asked, options, parts, picture, processor, small, turns, words, write_pictures
from written_rows import train, write_rows

import mlplatform as mp
from mlplatform.cli.main import main
from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools
from mlplatform.data.records import Record
from mlplatform.errors import DataError
from mlplatform.tasks.visual_chat import PicturedAnswers, PicturedTurns, Pictures, VisualChat, images_have_places

RED, BLUE = picture("red", 1), picture("blue", 2)
TWO = asked(turns(parts("image", "is it red?"), "yes", parts("and ", "image", "?"), "no"), RED, BLUE)
ONE = asked(turns(parts("image", "what color is the wall?"), "a red wall"), RED)
NONE = asked(turns("is the wall red?", "no"))


def examples(length: int = 128) -> PicturedAnswers:
    return VisualChat(small("llava_tiny")).examples(Tools(words("llava_tiny"), processor(), length))


def batch_of(maker: PicturedAnswers, *values: dict[str, Any]) -> dict[str, torch.Tensor]:
    rows = [maker.row(Record(one, {}, f"row {number}"), None) for number, one in enumerate(values)]
    return maker([Row(row, 0, 0, number) for number, row in enumerate(rows)])


def learned(batch: dict[str, torch.Tensor]) -> list[str]:
    return [words("llava_tiny").decode(row[row != -100], specials=True) for row in batch["labels"]]


def test_the_batch_and_its_loss_are_those_of_transformers(tmp_path: Path) -> None:
    model = small("llava_tiny")
    task = VisualChat(model)
    ours = batch_of(examples(), TWO, ONE, NONE)
    assert ours["pixel_values"].shape == (3, 3, 16, 16)
    assert learned(ours) == ["yes<|im_end|>no<|im_end|>", "a red wall<|im_end|>", "no<|im_end|>"]
    mp.save(model, tmp_path)
    words("llava_tiny").save(tmp_path)
    images = tf.CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    more: dict[str, Any] = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path)
    theirs: Any = tf.LlavaProcessor(images, tokenizer, patch_size=8, **more)
    texts = [
        tokenizer.apply_chat_template(one["messages"], tokenize=False).removesuffix("\n") for one in (TWO, ONE, NONE)
    ]
    given = theirs(text=texts, images=[RED, BLUE, RED], padding=True, return_tensors="pt", add_special_tokens=False)
    for key in ("input_ids", "attention_mask", "pixel_values"):
        torch.testing.assert_close(ours[key], given[key], atol=1e-5, rtol=0)
    reference = tf.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = reference(**{key: given[key] for key in ours if key != "labels"}, labels=ours["labels"]).loss
        out = task.scored(ours)
    torch.testing.assert_close(out.loss, wanted, atol=1e-5, rtol=1e-5)
    assert out.loss_count == task.targets(ours) == (ours["labels"] != -100).sum()


def test_where_images_stand_when_no_part_says_it() -> None:
    wanted = batch_of(examples(), ONE)
    plain = asked(turns("what color is the wall?", "a red wall"), RED)
    spelled = asked(turns("<image>\nwhat color is the wall?", "a red wall"), RED)
    for values in (plain, spelled):
        found = batch_of(examples(), values)
        torch.testing.assert_close(found["input_ids"], wanted["input_ids"])


def test_a_batch_without_images_has_no_pixels() -> None:
    assert set(batch_of(examples(), NONE)) == {"input_ids", "attention_mask", "labels"}


def test_a_long_conversation_ends_with_the_last_answer_that_fits_and_its_images() -> None:
    whole = batch_of(examples(), TWO)
    length = whole["input_ids"].shape[1]
    for most in (length - 1, length - 8):
        found = batch_of(examples(most), TWO)
        assert learned(found) == ["yes<|im_end|>"]
        assert len(found["pixel_values"]) == 1
        assert (found["input_ids"] == 4).sum() == 4
    with pytest.raises(DataError, match=r"row 0: its first answer ends at token \d+, and batch.length=20; raise it"):
        batch_of(examples(20), TWO)


def test_what_follows_the_last_answer_is_left_out() -> None:
    more = asked([*ONE["messages"], *turns(parts("image", "and this?"))], RED, BLUE)
    found = batch_of(examples(), more)
    torch.testing.assert_close(found["input_ids"], batch_of(examples(), ONE)["input_ids"])
    assert len(found["pixel_values"]) == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (asked(turns(parts("image", "a"), "b")), r"has 1 parts for images, and the row has 0 images"),
        (asked(turns(parts("image", "a"), "b"), RED, BLUE), r"has 1 parts for images, and the row has 2 images"),
    ],
)
def test_parts_and_images_must_be_as_many(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        images_have_places(values)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "an empty list"),
        ("hello", "is a text, and a list of turns"),
        (turns([{"type": "video"}], "a"), r"a turn 1 with a part that is no text and no image: .*parts are"),
        (turns("what?"), "no turn of the assistant"),
        (turns("what?", []), "turn 2 whose 'content'"),
    ],
)
def test_bad_conversations(value: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        PicturedTurns().clean(value, tmp_path)


def test_one_image_is_a_list_of_one(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    assert Pictures().clean("red.png", tmp_path) == [tmp_path / "red.png"]
    assert Pictures().clean(["red.png", "red.png"], tmp_path) == [tmp_path / "red.png"] * 2
    with pytest.raises(ValueError, match="no such file"):
        Pictures().clean(["blue.png"], tmp_path)


def test_a_run_trains_and_evaluate_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": turns(parts("image", "what is it?"), f"a {colour} wall"), "images": name}
        for name, colour in write_pictures(tmp_path)
    ]
    rows += [{"messages": turns(f"is {n} red?", "no")} for n in range(8)]
    table = write_rows(tmp_path / "talks.jsonl", rows)
    told = [*options("llava_tiny"), "task=visual_chat", "task.answer_length=4", "batch.length=48"]
    run = train(tmp_path, table, *told, "trainer.max=4 steps")
    assert main(["evaluate", str(run)]) == 0
    (folder,) = (run / "evaluations").iterdir()
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    held = json.loads((run / "run.json").read_text())["data"]["validation"]["records"]
    assert len(lines) == held
    assert all(isinstance(line["prediction"]["answer"], str) for line in lines)
    capsys.readouterr()
    assert main(["data", "show", "data=json_rows", f"data.path={table}", "batch=padded", *told]) == 0
    assert "<|im_end|>⟧" not in capsys.readouterr().out.replace("<|im_end|>\n<|im_start|>", "")
