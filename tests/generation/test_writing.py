"""What a decoder writes: transformers' tokens, greedily and with beams; ends, limits, and models that can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import T5Config, T5ForConditionalGeneration

import mlplatform as mp
from mlplatform.errors import SpecError
from mlplatform.generation.writing import write

END = 1


@pytest.fixture(scope="module")
def theirs() -> T5ForConditionalGeneration:
    """A random T5 of large weights, so that its texts differ and end at different places."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 40,
        "decoder_start_token_id": 0,
    }
    model = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    tiny.stirred(model, seed=7)
    with torch.no_grad():
        model.shared.weight *= 6
        model.shared.weight[END] *= 1.5
    return model


@pytest.fixture(scope="module")
def ours(theirs: T5ForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder: Path = tmp_path_factory.mktemp("t5")
    theirs.save_pretrained(folder)
    return mp.load(folder)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 40, (8, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 2, 9, 5, 6, 8])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize(
    ("beams", "penalty", "most"), [(1, 1.0, 12), (2, 1.0, 12), (4, 1.0, 12), (4, 0.0, 9), (4, 2.0, 12), (3, 1.0, 2)]
)
def test_the_same_as_transformers(
    theirs: T5ForConditionalGeneration,
    ours: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    beams: int,
    penalty: float,
    most: int,
) -> None:
    told = theirs.generate(**batch, num_beams=beams, length_penalty=penalty, max_new_tokens=most, do_sample=False)
    rows = [row[1:] for row in told.tolist()]
    wanted = [row[: row.index(END)] if END in row else row for row in rows]
    found = write(ours, batch, ends={END}, max_new_tokens=most, beams=beams, length_penalty=penalty)
    assert found == wanted
    if beams < 3 or penalty == 0.0:  # otherwise longer texts win here
        assert len({len(row) for row in found}) > 1


def test_a_row_alone_is_written_about_as_among_others(ours: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    together = write(ours, batch, ends={END}, beams=3, max_new_tokens=8)
    for number in (1, 3):
        size = int(batch["attention_mask"][number].sum())
        alone = {"input_ids": batch["input_ids"][number : number + 1, :size]}
        assert write(ours, alone, ends={END}, beams=3, max_new_tokens=8) == [together[number]]


def test_what_is_begun_is_continued(ours: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    whole = write(ours, batch, ends=set(), max_new_tokens=6)
    for number, text in enumerate(whole):
        one = {name: tensor[number : number + 1] for name, tensor in batch.items()}
        assert write(ours, one, ends=set(), max_new_tokens=4, begin=text[:2]) == [text[2:]]


def test_training_mode_is_left_as_it_was(ours: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    ours.train()
    write(ours, batch, ends={END}, max_new_tokens=1)
    assert ours.training
    ours.eval()


def test_what_can_not_write() -> None:
    with pytest.raises(SpecError, match="only an encoder_decoder with a head and a start_token"):
        write(tiny.model("llama"), {"input_ids": torch.ones(1, 2, dtype=torch.long)}, ends={END})
