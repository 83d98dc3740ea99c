"""The process above a run's ranks: torchrun's agent, which ends all of them when one dies, and what it saw.

The agent looks every 0.1 s. When a rank has died it sends the others SIGTERM, and SIGKILL 30 s later. Whoever started
this starts them again, where that may mend it (launch.py).
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlplatform.errors import PlatformError
from mlplatform.runs import record
from mlplatform.runs.config_file import secrets_of
from mlplatform.runs.secrets import Scrubber

MOMENT = 10
"""Seconds within which ranks end that one rank's death takes with it; the agent waits longer before it kills."""


def main(argv: list[str]) -> int:
    """`python -m mlplatform.runs.elastic FOLDER DEVICES MODULE [ARGUMENTS]`: returns 1 when a rank failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    folder, devices, module = Path(argv[0]), argv[1], argv[2:]
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # meant for the ranks, and sent to every process of a job
        signal.signal(number, signal.SIG_IGN)
    options = ["--nnodes=1", f"--nproc-per-node={devices}"]
    options += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", *module]
    try:
        run(parse_args(options))
    except ChildFailedError as error:
        rank = culprit(error.failures)
        failure = error.failures[rank]
        # Rank 0 has written down its own end, unless it was killed. That it was asked to stop is no failure of its own;
        # after another's death it may say so too, for the agent asked.
        if rank > 0 or (failure.exitcode < 0 and record.read(folder)["status"] != "preempted"):
            told = Scrubber(secrets_of(folder).values())(words(rank, failure))
            again = failure.exitcode != PlatformError.exit_code
            record.update(folder, status="failed", ended=time.time(), error=told, again=again)
        return 1
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


def culprit(failures: Mapping[int, Any]) -> int:
    """Return which rank's end ended the others': one killed by a signal, one with an error of ours, or the first.

    Those that lost the connection to it end in the same moment, so that times alone don't tell; those that the agent
    itself killed end much later, or by SIGTERM.
    """
    first = min(failure.timestamp for failure in failures.values())

    def order(rank: int) -> tuple[bool, bool, bool, int, int]:
        failure = failures[rank]
        after = failure.timestamp > first + MOMENT or failure.exitcode == -signal.SIGTERM
        return after, failure.exitcode >= 0, failure.exitcode != PlatformError.exit_code, failure.timestamp, rank

    return min(failures, key=order)


def words(rank: int, failure: Any) -> str:
    """Say how a rank ended, in one line."""
    if failure.exitcode < 0:
        return f"rank {rank} was killed by {failure.signal_name()}"
    told = failure.error_file_data.get("message", "")
    said = told.get("message", "") if isinstance(told, dict) else told
    ended = f"rank {rank} ended with exit code {failure.exitcode}"
    return f"{ended}: {said.splitlines()[0]}" if said else ended


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
