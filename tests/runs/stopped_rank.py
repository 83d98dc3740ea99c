"""`python -m stopped_rank FOLDER`: rank 1 dies, and rank 0, which the agent ends for it, says that it was preempted."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mlplatform.runs import record


def stop(*_: Any) -> None:
    record.update(Path(sys.argv[1]), status="preempted")
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    if os.environ["RANK"] == "1":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
