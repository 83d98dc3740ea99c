"""Sequences divided among ranks: each runs its stretch, and all get the loss and the gradients of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import encoder_decoder, spec, stirred
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from training_runs import in_processes, ranks

from mlplatform.cli.compose import compose_model
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.training.sharding.sequence import check_sequence, divide_sequences

LENGTH = 13
"""No multiple of two: the last stretch is filled up."""


def batches() -> dict[str, dict[str, Tensor]]:
    """Return batches of two rows: bare, padded, and packed documents."""
    ids = torch.randint(0, 50, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    labels = ids.masked_fill(ids % 7 == 0, -100)
    plain = {"input_ids": ids, "labels": labels}
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    documents = torch.tensor([[1] * 5 + [2] * 8, [1] * 9 + [2] * 2 + [0] * 2])
    starts = torch.tensor([[*range(5), *range(8)], [*range(9), 0, 1, 0, 1]])
    return {
        "bare": plain,
        "padded": {**plain, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)},
        "packed": {**plain, "document_ids": documents, "position_ids": starts},
    }


MODELS = {
    "rope": [],
    "window": ["trunk.layer.attention.window=4"],
    "table": ["trunk.layer.attention.rope=null", "trunk.input.positions={kind: learned}", "trunk.context_length=14"],
    "slopes": ["trunk.layer.attention.rope=null", "trunk.position_bias={kind: alibi}"],
}


def compare(folder: Path) -> None:
    """As one of two ranks, compare losses and gradients of divided sequences with those of whole ones."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("stretches",))
    for name, overrides in MODELS.items():
        whole, divided = (stirred(build(spec("llama", *overrides))) for _ in range(2))
        divide_sequences(divided, mesh)
        seen: set[int] = set()
        divided.trunk.layers[0].register_forward_pre_hook(lambda _, given, seen=seen: seen.add(given[0].shape[1]))  # type: ignore
        for kind, batch in batches().items():
            expected, found = (model(**batch, logits=False) for model in (whole, divided))
            assert found.loss_count == expected.loss_count
            torch.testing.assert_close(found.loss_sum, expected.loss_sum, rtol=1e-6, atol=0, msg=f"{name} {kind}")
            for out in (expected, found):
                out.loss_sum.backward()
            for (n, p), q in zip(whole.named_parameters(), divided.parameters(), strict=True):
                assert q.grad is not None
                dist.all_reduce(q.grad)
                told = f"{name} {kind} {n}"
                torch.testing.assert_close(q.grad / 2, p.grad, rtol=1e-4, atol=1e-5, msg=told)
                p.grad = q.grad = None
        assert seen == {(LENGTH + 1) // 2}
        out = divided(batches()["bare"]["input_ids"])  # without targets each rank runs all of it
        assert out.logits.shape == (2, LENGTH, 50)
    (folder / f"{dist.get_rank()}").touch()
    dist.destroy_process_group()


@pytest.mark.distributed
def test_each_rank_runs_its_stretch(tmp_path: Path) -> None:
    assert in_processes(compare, [(tmp_path,)] * 2, ranks(2)) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["bert_tiny", "t5_tiny", "clip_tiny", "afmoe_tiny", "vit_tiny"])
def test_only_causal_decoders_without_experts(name: str) -> None:
    model: Any = build(compose_model(name).check().config, device="meta")
    with pytest.raises(SpecError, match=r"strategy=fsdp_cp divides the text of a causal decoder .*; use strategy=fsdp"):
        check_sequence(model, "fsdp_cp", 2)


def test_a_cross_attention_is_no_stretch() -> None:
    with pytest.raises(SpecError, match="causal decoder"):
        check_sequence(build(encoder_decoder(), device="meta"), "fsdp_cp", 2)
    check_sequence(build(spec("gpt2"), device="meta"), "fsdp_cp", 2)


def test_stretches_are_as_long_as_a_table_of_positions() -> None:
    """Three stretches of 64 positions end at 66, where the table has no row; the angles of a rotation have no end."""
    length = "trunk.context_length=64"
    told = r"strategy.context: model.trunk.context_length=64, .* can't be divided by 3; 2, 4, 8, 16, 32, 64 would fit"
    with pytest.raises(SpecError, match=told):
        check_sequence(build(spec("gpt2", length), device="meta"), "fsdp_cp", 3)
    check_sequence(build(spec("llama", length), device="meta"), "fsdp_cp", 3)
