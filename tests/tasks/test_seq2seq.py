"""Sequence to sequence: transformers' loss on its batch, cut texts, scores of what is written, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration
from written_rows import LLAMA, T5, curves, train, write_rows

import mlplatform as mp
from mlplatform.cli.main import main
from mlplatform.data.collate import Row
from mlplatform.data.records import Record
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.processors.tokenizer import train as train_tokenizer
from mlplatform.tasks.seq2seq import TextPairs
from mlplatform.tasks.text_scores import TextScore, of_texts

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven")
PAIRS = [
    {"text": f"take {a} and {b}, please, and take {c}", "said": f"{a} {b}"}
    for a in NUMBERS
    for b in NUMBERS
    for c in ("bread", "milk")
]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """A byte-level BPE with <pad> </s> <unk> and sentinels."""
    return train_tokenizer([text for pair in PAIRS for text in pair.values()], 400, "sentinels")


def record(source: str, target: str) -> Record:
    return Record({"source": source, "target": target}, {}, "here")


def rows(examples: TextPairs, *pairs: tuple[str, str]) -> list[Row]:
    return [Row(examples.row(record(*pair), None), 0, 0, number) for number, pair in enumerate(pairs)]


def test_the_loss_is_that_of_transformers_on_the_batch(words: Tokenizer, tmp_path: Path) -> None:
    examples = TextPairs(words, "summarize: ", 32, 8)
    batch = examples(rows(examples, ("take one and two, please", "one two"), ("take six", "six six six")))
    model = build(mp.compose("t5_tiny", [o.removeprefix("model.") for o in T5[1:]]), seed=0).eval()
    mp.save(model, tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    wanted = theirs(**batch).loss
    out = model(**batch, logits=False)
    torch.testing.assert_close(out.loss_sum / out.loss_count, wanted, atol=1e-5, rtol=1e-5)
    assert out.loss_count == (batch["labels"] != -100).sum()


def test_rows_are_framed_cut_and_padded(words: Tokenizer) -> None:
    examples = TextPairs(words, "please ", 8, 4)
    long, short = rows(examples, ("take one and two, please, and take bread", "one two three four"), ("six", "six"))
    assert [len(long.arrays[name]) for name in ("input_ids", "labels")] == [8, 4]
    for name in ("input_ids", "labels"):
        assert long.arrays[name][-1] == words.eos  # also of a text that is cut
    assert words.decode(short.arrays["input_ids"]).startswith("please six")
    batch = examples([long, short])
    assert (batch["labels"] == -100).sum() == 4 - len(short.arrays["labels"])
    assert batch["attention_mask"].sum(1).tolist() == [8, len(short.arrays["input_ids"])]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_a_run_scores_what_it_writes_and_evaluate_writes_it_out(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    options = [*T5, "tokenizer=sentinel_bpe", "task=seq2seq", "data.fields={source: text, target: said}"]
    options += ["task.metrics=[rouge,bleu,chrf]", "task.sampled=9", "task.target_length=8"]
    run = train(tmp_path, data, *options, "trainer.max=4 steps")
    last = curves(run)[-1]
    assert last["validation/perplexity"] == pytest.approx(np.exp(last["validation/loss"]))
    assert main(["evaluate", str(run), "task.sampled=1000"]) == 0
    (folder,) = (run / "evaluations").iterdir()
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    held = json.loads((run / "run.json").read_text())["data"]["validation"]["records"]
    assert len(lines) == held
    assert [line["number"] for line in lines] == list(range(held))
    measured = json.loads((folder / "metrics.json").read_text())["metrics"]
    said, wanted = [line["prediction"]["target"] for line in lines], [line["target"] for line in lines]
    for name, scorer in (("rouge_l", "rouge"), ("bleu", "bleu"), ("chrf", "chrf")):
        (score,) = of_texts([scorer]).values()
        score.update(said, wanted)
        assert measured[f"validation/{name}"] == pytest.approx(score.compute())
        few = of_texts([scorer])[name]
        few.update(said[:9], wanted[:9])
        assert last[f"validation/{name}"] == pytest.approx(few.compute())  # of the first nine


def test_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    options = [*T5, "tokenizer=sentinel_bpe", "task=seq2seq", "data.fields={source: text, target: said}"]
    whole = train(tmp_path, data, *options, "schedule=constant", "trainer.max=4 steps")
    part = train(tmp_path, data, *options, "schedule=constant", "trainer.max=2 steps")
    assert main(["resume", str(part), "trainer.max=4 steps"]) == 0
    assert curves(part)[-1] == curves(whole)[-1]


def test_a_preview_shows_the_source_and_then_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [{"source": pair["said"], "target": pair["text"]} for pair in PAIRS])
    options = ["data=json_rows", f"data.path={data}", *T5, "tokenizer=sentinel_bpe", "task=seq2seq", "batch=padded"]
    assert main(["data", "show", *options]) == 0
    said = capsys.readouterr().out
    pairs = re.findall(r"⟦(\w+ \w+)</s>⟧\n(take [^<]*)</s>", said)
    assert len(pairs) == 3
    assert set(pairs) <= {(pair["said"], pair["text"]) for pair in PAIRS}


def test_scores_are_those_of_the_packages_over_batches() -> None:
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    said = ["the cat sat on the mat", "", "Käse für alle", "x y"]
    wanted = ["the cat is on the mat", "nothing", "Käse für uns alle", "x y"]
    scores = of_texts(["rouge", "bleu", "chrf"])
    for part in (slice(0, 1), slice(1, 1), slice(1, 4)):
        for score in scores.values():
            score.update(said[part], wanted[part])
    assert scores["bleu"].compute() == sacrebleu.corpus_bleu(said, [wanted]).score
    assert scores["chrf"].compute() == sacrebleu.corpus_chrf(said, [wanted]).score
    one = RougeScorer(["rougeL"])
    each = [one.score(right, text)["rougeL"].fmeasure for text, right in zip(said, wanted, strict=True)]
    assert scores["rouge_l"].compute() == pytest.approx(sum(each) / 4)
    assert np.isnan(TextScore(lambda a, b: 1.0).compute())
    assert scores["bleu"].higher_is_better


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            [*LLAMA, "tokenizer=sentinel_bpe", "tokenizer.vocab=300"],
            r"task=seq2seq does not fit this single_tower .*needs an encoder_decoder",
        ),
        ([*T5, "tokenizer=bpe", "tokenizer.vocab=400"], r"puts no end token after a text.*set tokenizer=sentinel_bpe"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    options = [f"data.path={data}", "data=json_rows", "data.fields={source: text, target: said}", "task=seq2seq"]
    assert main(["train", *options, *overrides, f"outputs={tmp_path}"]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(says, line)


def test_a_score_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"rouge needs rouge-score; .* pip install 'mlplatform\[metrics\]'"):
        of_texts(["rouge"])
