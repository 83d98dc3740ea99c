"""Weights & Biases: what a run was, did and made, in one run of theirs."""

from __future__ import annotations

import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any, Literal

from mlplatform.registry import Text, block
from mlplatform.runs import record
from mlplatform.runs.trackers.tracker import need
from mlplatform.training.checkpoints import newest_whole

log = logging.getLogger(__name__)
SECONDS_TO_CONNECT, SECONDS_TO_END = 30, 60
SAMPLES = 100
"""Rows of a table of samples."""


@block("logger/wandb")
class WandB:
    """Weights & Biases: config, curves, samples, the data that went in and the checkpoint that came out.

    A resumed run goes on as the same one; a run that fails sends an alert. One that can't reach W&B is written offline,
    for `wandb sync` later.

    Args:
        group: null for the experiment's name, so that the runs of a sweep stand together.
        checkpoint: what is kept there of the model at the end: its weights' files, a reference to where they lie with
            their checksums, or nothing.
        mode: `offline` writes `wandb/offline-run-*` into the run folder; `online` sends; null does as WANDB_MODE says,
            or sends.
        name: null for the run's own id.
    """

    def __init__(
        self,
        *,
        project: Text = "mlplatform",
        entity: Text | None = None,
        name: Text | None = None,
        group: Text | None = None,
        tags: list[Text] | None = None,
        checkpoint: Literal["files", "reference"] | None = "reference",
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        need("wandb", "wandb")
        self.options = {"project": project, "entity": entity, "group": group, "tags": tags}
        self.name, self.checkpoint, self.mode = name, checkpoint, mode or os.environ.get("WANDB_MODE") or "online"
        self.run: Any = None

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin the run, or go on with it under the same id."""
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")  # the run says where it is; W&B adds nothing
        self.folder, known = folder, record.read(folder)
        identity = known.get("wandb_id") or secrets.token_hex(4)
        record.update(folder, wandb_id=identity)
        settings = wandb.Settings(
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_meta=True,  # it holds the command line
            silent=True,
            init_timeout=SECONDS_TO_CONNECT,
            finish_timeout=SECONDS_TO_END,
        )

        def begin(mode: Any) -> Any:
            if mode == "online" and not wandb.login(prompt=False, verify=False):
                raise RuntimeError("no API key: set WANDB_API_KEY or run `wandb login`")
            name = self.name or known["id"]
            group = self.options["group"] or known.get("experiment")
            options = {
                **self.options,
                "group": group,
                "name": name,
                "id": identity,
                "dir": str(folder),
                "settings": settings,
            }
            return wandb.init(mode=mode, resume="allow", **options)

        try:
            self.run = begin(self.mode)
        except Exception as error:
            if self.mode == "offline":
                raise
            told = " ".join(str(error).split())[:160]
            log.warning("W&B: %s; writing offline, send it later: wandb sync %s/wandb/offline-run-*", told, folder)
            wandb.teardown()  # the failed run would hold on to its id
            self.run = begin("offline")
        self.run.config.update(config, allow_val_change=True)
        self._say_data(known.get("data") or {})

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve. W&B drops the steps it has: those that a resumed run does again."""
        self.run.log(values, step=step)

    def finish(self, status: str, error: str | None) -> None:
        """Keep the samples and the checkpoint, and end the run; a preempted one may go on, a failed one is told."""
        self.run.summary["status"] = status
        try:
            self._keep_samples()
            self._keep_checkpoint()
            if status == "failed":
                self.run.alert(f"{self.run.name} failed", error or "no reason was given", level="ERROR")
        finally:
            self.run.finish(exit_code=0 if status in ("finished", "preempted") else 1)

    def _say_data(self, data: dict[str, Any]) -> None:
        """Name what goes in by its fingerprint: as an input where W&B is reached, which offline runs can't state."""
        import wandb

        if not (fingerprint := data.get("fingerprint")):
            return
        made = wandb.Artifact(f"data-{fingerprint[:16]}", type="dataset", metadata={"fingerprint": fingerprint})
        with made.new_file("data.json", mode="w") as file:
            json.dump(data, file, indent=1, default=str)
        (self.run.log_artifact if self.run.offline else self.run.use_artifact)(made)

    def _keep_samples(self) -> None:
        """Make a table of the texts the run wrote."""
        import wandb

        files = sorted((self.folder / "samples").glob("*.txt"))[-SAMPLES:]
        rows: list[Any] = [[file.stem, file.read_text(encoding="utf-8", errors="replace")] for file in files]
        if rows:
            self.run.log({"samples": wandb.Table(columns=["sample", "text"], data=rows)})

    def _keep_checkpoint(self) -> None:
        """Keep the newest whole checkpoint's weights, under one name for the versions of this run's model."""
        import wandb

        newest, _ = newest_whole(self.folder / "checkpoints")
        if self.checkpoint is None or newest is None:
            return
        known = record.read(self.folder)
        about = {
            "run": known.get("id"),
            "checkpoint": newest.name,
            "data": (known.get("data") or {}).get("fingerprint"),
        }
        made = wandb.Artifact(f"model-{self.run.id}", type="model", metadata=about | (known.get("metrics") or {}))
        for file in sorted([*newest.glob("*.safetensors"), *newest.glob("*.json")]):
            if "optimizer" in file.name:
                continue
            if self.checkpoint == "files":
                made.add_file(str(file))
            else:
                made.add_reference(file.resolve().as_uri(), name=file.name)
        self.run.log_artifact(made, aliases=[newest.name.replace("=", "-")])
