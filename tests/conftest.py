"""What every test stands on: few threads, no network, a cache and outputs of the test's own."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ again; then read the diff")
    parser.addoption(
        "--measured", action="store_true", help="write tests/parity/measured.json again, from tests/parity"
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache folder of its own, so that none sees what another left."""
    monkeypatch.setenv("MLPLATFORM_CACHE", str(tmp_path_factory.mktemp("cache")))
