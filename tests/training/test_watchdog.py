"""A source that stalls is named, with where it stands; one that is slow is left alone."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training_runs import Run, in_process

from mlplatform.errors import DataError
from mlplatform.training import engine, watchdog
from mlplatform.training.watchdog import Watchdog


def stall_at(run: Run, number: int, wait: Any, split: str = "train") -> None:
    """Let the rows of a run wait when the n-th is read."""
    rows, count = run.data.splits[split], iter(range(10**9))
    original = rows.row

    def row(*arguments: Any) -> Any:
        if next(count) == number:
            wait()
        return original(*arguments)

    rows.row = row  # type: ignore[method-assign]


def read_from_nobody(folder: Path) -> None:
    """Open a pipe that nobody writes to: what a source on a dead share does."""
    os.mkfifo(folder / "share")
    os.open(folder / "share", os.O_RDONLY)


def test_a_source_that_stalls_is_named_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGALRM)
    run = Run(tmp_path, batch={"timeout": 1})
    stall_at(run, 4 * 6, lambda: read_from_nobody(tmp_path))  # in the seventh step
    start = time.monotonic()
    where = r"it is waiting in test_watchdog\.py:\d+, read_from_nobody$"
    with pytest.raises(DataError, match=r"scenes.*: no batch came for 1 s \(batch\.timeout\); " + where):
        run.go()
    assert time.monotonic() - start < 30
    assert list(run.record.curve("train/loss")) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "checkpoints/step=00000004").is_dir()
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_step_or_a_validation_may_take_longer(tmp_path: Path) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.15)
            yield number

    with Watchdog("slow", 0.4) as dog:
        for _ in dog.each(slow()):
            time.sleep(0.6)  # what is done with a batch is not watched
    assert dog.told == ""


def _held_in_c(folder: Path) -> None:
    """Wait in C, again and again whatever signal comes."""
    watchdog.GRACE = 0.5  # type: ignore[misc]
    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 2)
        run = Run(folder, batch={"timeout": 1})
        stall_at(run, 0, _sleep_through_signals, "validation")  # which no thread reads ahead
        run.go()


def _sleep_through_signals() -> None:
    libc = ctypes.CDLL(None)
    lock = ctypes.create_string_buffer(64)
    libc.pthread_mutex_init(lock, None)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)  # of its own: never comes back


@pytest.mark.distributed
def test_a_wait_that_no_signal_reaches_ends_the_process(tmp_path: Path) -> None:
    start = time.monotonic()
    assert in_process(_held_in_c, tmp_path) == DataError.exit_code
    assert time.monotonic() - start < 240  # it does end, also on a machine with other work
    assert "no batch came for 1 s (batch.timeout); it is waiting in" in (tmp_path / "said").read_text()


def test_workers_have_their_own_limit_first(tmp_path: Path) -> None:
    alone, with_workers = (Run(tmp_path / str(n), batch={"workers": n, "timeout": 7}) for n in (0, 1))
    assert engine._watchdog(alone.data).seconds == 7
    assert engine._watchdog(with_workers.data).seconds == 37
