"""What a run says at its start and its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlplatform.runs.words import banner, count, summary

CONFIG = {
    "model": {"kind": "single_tower", "trunk": {"dim": 192, "depth": 4}, "hf": {"model_type": "llama"}},
    "batch": {"kind": "rows", "sequences": 32, "length": 128},
    "trainer": {"kind": "trainer", "max": "600 steps"},
    "task": {"kind": "causal_lm"},
    "optimizer": {"kind": "adamw"},
    "strategy": {"kind": "single"},
    "seed": 3,
}
RECORD = {"parameters": 1_970_000, "data": {"train": {"documents": 690, "tokens": 1_650_000}, "vocabulary": 2048}}


RECORDS = {"train": {"records": 1457}, "classes": {"label": ["0", "1", "2"]}, "vocabulary": None}


@pytest.mark.parametrize(
    ("number", "text"), [(950, "950"), (3400, "3.4K"), (1.97e6, "2.0M"), (8.03e9, "8.0B"), (1.5e13, "15.0T")]
)
def test_counts_are_short(number: float, text: str) -> None:
    assert count(number) == text


def test_the_banner_says_where_what_and_how() -> None:
    assert banner(Path("outputs/default/x"), RECORD, CONFIG, 0) == [
        "run    outputs/default/x",
        "model  llama, 2.0M parameters, dim 192, 4 layers; task causal_lm",
        "data   690 documents, 1.6M tokens, vocabulary 2048; 32 x 128 tokens a step",
        "train  600 steps, fp32, adamw, strategy single on 1 device(s), seed 3",
    ]


def test_the_banner_counts_records_and_their_classes() -> None:
    lines = banner(Path("r"), {**RECORD, "data": RECORDS}, CONFIG, 0)
    assert lines[2] == "data   1457 records, 3 classes of label; 32 records a step"
    words = {**RECORDS, "classes": {}, "vocabulary": 300}
    assert banner(Path("r"), {**RECORD, "data": words}, CONFIG, 0)[2].startswith("data   1457 records, vocabulary 300;")


def test_the_banner_says_what_trains() -> None:
    assert (
        "2.0M parameters (9.8K of them train), dim"
        in banner(Path("r"), {**RECORD, "trained_parameters": 9_800}, CONFIG, 0)[1]
    )


def test_the_banner_says_where_it_goes_on_and_what_a_class_of_torch_is_called() -> None:
    config = {**CONFIG, "optimizer": {"_target_": "torch.optim.SGD"}, "model": {"kind": "dual_tower"}}
    lines = banner(Path("r"), RECORD, config, 300)
    assert lines[0] == "run    r   (resumed at step 300)"
    assert lines[1] == "model  dual_tower, 2.0M parameters; task causal_lm"
    assert "torch.optim.SGD" in lines[3]


def test_the_summary_says_how_it_went() -> None:
    known = {
        "status": "finished",
        "steps": 600,
        "seconds": 118.4,
        "best": {"step": 500, "validation/loss": 2.1},
        "metrics": {"validation/loss": 2.125, "validation/bits_per_byte": 1.98767, "validation/perplexity": 8.372},
    }
    assert summary(Path("r"), known, "\nTo be\n\x1b[2Jor not\n") == [
        "finished after 600 steps, 1m58s of training",
        "validation  loss 2.1250, bits per byte 1.9877, perplexity 8.3720   (best at step 500)",
        "sample",
        "  | To be",
        "  | \N{REPLACEMENT CHARACTER}[2Jor not",
        "run folder  r",
    ]


def test_the_summary_of_a_run_that_did_not_validate_is_short() -> None:
    assert summary(Path("r"), {"status": "preempted", "steps": 3}, None) == [
        "preempted after 3 steps, 0s of training",
        "run folder  r",
    ]
