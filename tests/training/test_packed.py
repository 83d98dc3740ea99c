"""Packed documents where ranks divide heads: losses and gradients are those of one process with a mask of the row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from training_runs import in_processes, ranks
from varlen_on_cpu import kernels_on_cpu

from mlplatform.blocks import documents
from mlplatform.training.sharding.layers import divide_layers

PACKED = torch.tensor([[1] * 9 + [2] * 15, [1] * 4 + [2] * 5 + [3] * 11 + [0] * 4])


def compare(folder: Path) -> None:
    """As one of two ranks, compare a model whose layers are divided with a whole one."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("ranks",))
    ids = torch.randint(0, 50, PACKED.shape, generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": ids, "labels": ids.masked_fill(PACKED == 0, -100), "document_ids": PACKED}
    patch = pytest.MonkeyPatch()
    for groups in (2, 1):  # one group of keys and values is shared by both ranks
        sizes = ["trunk.layer.attention.heads=4", f"trunk.layer.attention.kv_heads={groups}"]
        whole = model("llama", *sizes)
        expected = whole(**batch, logits=False).loss
        expected.backward()
        wanted = {name: p.grad for name, p in whole.named_parameters()}
        for kernel in (False, True):
            with patch.context() as patched:
                patched.setattr(documents, "LONG", 1)
                if kernel:
                    kernels_on_cpu(patched)
                divided = model("llama", *sizes)
                divide_layers(divided, mesh)
                found = divided(**batch, logits=False).loss
            told = f"{groups} groups, kernel {kernel}"
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, msg=told)
            found.backward()
            for name, p in divided.named_parameters():
                grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
                torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-5, msg=f"{told}: {name}")
    (folder / f"{dist.get_rank()}").touch()
    dist.destroy_process_group()


@pytest.mark.distributed
def test_ranks_attend_within_documents(tmp_path: Path) -> None:
    assert in_processes(compare, [(tmp_path,)] * 2, ranks(2)) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2
