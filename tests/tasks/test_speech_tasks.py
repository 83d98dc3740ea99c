"""Speech: transformers' losses on its batches, error rates, runs of every task, and recordings that can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from clips import MEL, WAVE, sung, texts, write_clips
from torchmetrics.functional.text import char_error_rate, word_error_rate
from written_rows import curves, train

import mlplatform as mp
from mlplatform.cli.main import main
from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools
from mlplatform.data.records import Record
from mlplatform.processors.audio import AudioProcessor
from mlplatform.processors.characters import spelled as alphabet
from mlplatform.processors.tokenizer import train as train_tokenizer
from mlplatform.tasks.ctc import SpeechCTC, Spellings
from mlplatform.tasks.speech_seq2seq import SpeechSeq2Seq
from mlplatform.tasks.transcripts import of_transcripts, plain, spelled

SAID = ["abba cd", "a"]


def model_of(overrides: list[str], *more: str) -> Any:
    name = overrides[0].removeprefix("model=")
    own = [o.removeprefix("model.") for o in (*overrides, *more) if o.startswith("model.")]
    return mp.build(name, own).eval()


def rows(examples: Any, said: list[str]) -> list[Row]:
    records = [Record({"audio": sung(text, 16000), "text": text}, {}, "here") for text in said]
    return [Row(examples.row(record, None), 0, 0, number) for number, record in enumerate(records)]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_ctc_loss_is_that_of_transformers_on_its_own_batch(tmp_path: Path, reduction: str) -> None:
    processor = AudioProcessor({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": True})
    tokenizer = alphabet("abcd")
    model = model_of(WAVE, "model.head=ctc", f"model.heads.ctc.reduction={reduction}")
    mp.save(model, tmp_path)
    processor.save(tmp_path)
    tokenizer.save(tmp_path)
    theirs = tf.Wav2Vec2ForCTC.from_pretrained(tmp_path).eval()
    extractor, words = tf.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path), tf.AutoTokenizer.from_pretrained(tmp_path)
    assert type(words) is tf.Wav2Vec2CTCTokenizer
    heard = [sung(text, 16000) for text in SAID]
    batch = extractor(heard, sampling_rate=16000, padding=True, return_tensors="pt")
    labels = words(SAID, padding=True, return_tensors="pt")
    labels = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
    wanted = theirs(**batch, labels=labels)

    task = SpeechCTC(model)
    ours = Spellings(processor, tokenizer)(rows(Spellings(processor, tokenizer), SAID))
    torch.testing.assert_close(ours["labels"], labels)
    out = task.scored(ours)
    assert out.loss_count == task.targets(ours) == 2  # transcripts, whatever the reduction
    got = out.loss_sum if reduction == "sum" else out.loss_sum / out.loss_count
    torch.testing.assert_close(got, wanted.loss, atol=1e-4, rtol=1e-5)
    assert got > 1


def test_the_written_loss_is_that_of_transformers_on_its_own_batch(tmp_path: Path) -> None:
    model = model_of(MEL)
    processor = AudioProcessor({"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 1})
    tokenizer = train_tokenizer(SAID, 300, "causal")
    mp.save(model, tmp_path)
    processor.save(tmp_path)
    task = SpeechSeq2Seq(model, prefix=["<|bos|>"], target_length=16)
    examples = task.examples(Tools(tokenizer, processor))
    batch = examples(rows(examples, SAID))
    theirs = tf.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    extractor = tf.WhisperFeatureExtractor.from_pretrained(tmp_path)
    features = extractor([sung(text, 16000) for text in SAID], sampling_rate=16000, return_tensors="pt").input_features
    labels = [[tokenizer.bos, *tokenizer.encode(text, specials=False), tokenizer.eos] for text in SAID]
    labels = [one + [-100] * (len(labels[0]) - len(one)) for one in labels]
    assert batch["labels"].tolist() == labels
    wanted = theirs(input_features=features, labels=torch.tensor(labels)).loss
    out = task.scored(batch)
    torch.testing.assert_close(out.loss_sum / out.loss_count, wanted, atol=1e-5, rtol=1e-5)
    assert out.loss_count == task.targets(batch) == sum(label != -100 for one in labels for label in one)


def test_error_rates_add_up_over_batches() -> None:
    said, wanted = ["one two", "three", "", "four four five"], ["one too", "three", "six", "four five"]
    whole = of_transcripts()
    batches = of_transcripts()
    for name, measure in whole.items():
        measure.update(said, wanted)
        for rows in (slice(1), slice(1, 1), slice(1, 3), slice(3, None)):
            batches[name].update(said[rows], wanted[rows])
        assert batches[name].compute() == measure.compute()
        assert not measure.higher_is_better
    assert whole["wer"].compute() == pytest.approx(3 / 6)  # a word changed, one missing, one too many
    assert whole["cer"].compute() == pytest.approx((1 + 0 + 3 + 5) / (7 + 5 + 3 + 9))
    assert whole["wer"].compute() == pytest.approx(float(word_error_rate(said, wanted)))
    assert whole["cer"].compute() == pytest.approx(float(char_error_rate(said, wanted)))


def test_frames_spell_without_repeats_and_blanks() -> None:
    best = torch.tensor([[3, 3, 0, 3, 4, 4, 0, 5], [0, 0, 5, 5, 5, 3, 3, 3]])
    logits = torch.nn.functional.one_hot(best, 6).float()
    assert spelled(logits, [8, 5], 0) == [[3, 3, 4, 5], [5]]
    assert spelled(logits, [8, 8], 3) == [[0, 4, 0, 5], [0, 5]]


def test_words_alone() -> None:
    assert plain(" Don't - 'stop' the semi-final, NOW!  It_is 5.") == "don't stop the semi-final now it is 5"


CTC = [*WAVE, "task=ctc", "tokenizer=characters"]


def test_a_ctc_run_learns(tmp_path: Path) -> None:
    table = write_clips(tmp_path, texts())
    run = train(tmp_path, table, *CTC, "optimizer=adamw", "optimizer.lr=1e-2", "trainer.max=12 steps")
    losses = [row["train/loss"] for row in curves(run) if "train/loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    numbers = json.loads((run / "tokenizer" / "vocab.json").read_text())
    assert list(numbers) == ["<pad>", "<unk>", "|", *"abcd"]


def test_evaluate_writes_transcripts(tmp_path: Path) -> None:
    table = write_clips(tmp_path, texts())
    run = train(tmp_path, table, *CTC, "optimizer=adamw", "optimizer.lr=1e-6", "trainer.max=1 steps")
    assert main(["evaluate", str(run)]) == 0
    (folder,) = (run / "evaluations").iterdir()
    said = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert any(one["prediction"]["text"].strip() for one in said)  # it has not learned to say nothing yet
    told = json.loads((folder / "metrics.json").read_text())["metrics"]
    for name, measure in of_transcripts().items():
        measure.update([one["prediction"]["text"] for one in said], [one["text"] for one in said])
        assert told[f"validation/{name}"] == pytest.approx(float(measure.compute()))


def test_the_first_best_checkpoint_is_the_one_with_the_fewest_errors(tmp_path: Path) -> None:
    table = write_clips(tmp_path, texts())
    run = train(tmp_path, table, *CTC, "trainer.max=4 steps")
    best = json.loads((run / "run.json").read_text())["best"]
    rates = [row["validation/wer"] for row in curves(run) if "validation/wer" in row]
    assert best["validation/wer"] == min(rates)


def test_a_whisper_run_writes_transcripts(tmp_path: Path) -> None:
    table = write_clips(tmp_path, texts(12))
    run = train(
        tmp_path,
        table,
        *MEL,
        "task=speech_seq2seq",
        "task.prefix=['<|bos|>']",
        "task.target_length=16",
        "trainer.max=2 steps",
    )
    assert {"validation/wer", "validation/cer", "validation/loss"} <= curves(run)[-1].keys()


def test_a_run_tells_recordings_apart(tmp_path: Path) -> None:
    table = write_clips(tmp_path, [letter * 6 for letter in "abcd" for _ in range(6)])
    options = [*WAVE, "task=audio_classification", "model.head=sequence_classification", "tokenizer=null"]
    options += ["model.heads.sequence_classification.labels=4", "data.classes=[a,b,c,d]", "optimizer=adamw"]
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines * 2))  # equal recordings stay in one split, so it is the files that hold out
    held = tmp_path / "held.jsonl"
    held.write_text("".join(lines[::6]))
    run = train(tmp_path, table, *options, f"data.validation={held}", "optimizer.lr=5e-3", "trainer.max=20 steps")
    assert curves(run)[-1]["validation/accuracy"] == 1.0
