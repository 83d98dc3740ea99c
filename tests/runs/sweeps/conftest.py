"""Makes the small runs and the jobs importable, here and in the trials' own processes, and starts their server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


@pytest.fixture(scope="session", autouse=True)
def server() -> None:
    """Start what the trials' processes are copied from, before a test starts one that imports torch each time."""
    from mlplatform.runs.sweeps.trial import processes

    processes()
