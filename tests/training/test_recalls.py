"""Recall over two ranks of which one got only batches that even the ranks out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from training_runs import in_processes, ranks

from mlplatform.tasks.retrieval import Recalls

pytestmark = pytest.mark.distributed


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    return torch.randn(12, 5, generator=chance), torch.randn(12, 5, generator=chance)


def _measure(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    recalls = Recalls()
    if os.environ["RANK"] == "0":
        recalls.update(*vectors())
    torch.save(recalls.compute(), folder / f"{os.environ['RANK']}.pt")


def test_a_rank_without_pairs_changes_nothing(tmp_path: Path) -> None:
    assert in_processes(_measure, [(tmp_path,)] * 2, ranks(2)) == [0, 0]
    alone = Recalls()
    alone.update(*vectors())
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == alone.compute()
