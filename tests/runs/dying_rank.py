"""`python -m dying_rank FOLDER RANK STEP WAY [once]`: a worker of which one rank dies after a step, always or once."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mlplatform.runs import worker
from mlplatform.runs.worker import Watch, main


class Dying(Watch):
    """Ends its process as told when its loader gives the batch after a step."""

    def __init__(self, folder: Path, rank: str, step: str, way: str, once: bool) -> None:
        self.mine, self.step, self.way = os.environ["RANK"] == rank, int(step), way
        self.marker = folder / "died" if once else None
        self.saved = folder / f"checkpoints/step={self.step - self.step % 2:08d}"

    def batches(self, data: Any) -> Any:
        loader = data.train_dataloader()
        original = type(loader).__iter__
        watch = self

        class Loader(type(loader)):  # type: ignore[misc]
            def __iter__(self) -> Any:
                for number, batch in enumerate(original(self), self.consumed // data.shape.sequences):
                    if watch.mine and number == watch.step:
                        watch.die()
                    yield batch

        loader.__class__ = Loader
        return data

    def die(self) -> None:
        if self.marker is not None:
            if self.marker.exists():
                return
            self.marker.write_text("")
        while not self.saved.exists():  # it is written beside training, so a kill may come before it is whole
            time.sleep(0.01)
        if self.way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.way == "exit":
            os._exit(7)
        if self.way == "raise":
            raise ValueError("the disk of rank 1 hums")
        if self.way == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else the agent kills it, after half a minute
            time.sleep(1e6)


if __name__ == "__main__":
    folder, rank, step, way, *once = sys.argv[1:]
    original = worker.run
    worker.run = lambda path: original(path, watch=Dying(path, rank, step, way, bool(once)))  # type: ignore[assignment]
    sys.exit(main([folder]))
