"""MLflow: config and curves in an SQLite file beside the runs, or on a server."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError, SpecError
from mlplatform.registry import Text, block
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import leaves
from mlplatform.runs.folder import write_whole
from mlplatform.runs.trackers.tracker import need

log = logging.getLogger(__name__)
SECONDS_TO_END, LONGEST_WAIT = 60.0, 60.0
ID = "mlflow_run.txt"
BATCH, LETTERS = 900, 6000
"""What MLflow takes at once: 1,000 metrics, and letters of one parameter."""
REFUSED = re.compile(r"[^\w\-./ ]")
"""Letters MLflow takes in no name: a checkpoint's rules have `*` and `{q,k,v}`."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Trying again is done here, where training does not wait for it."""
STATUS = {"finished": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}


@block("logger/mlflow")
class MLflow:
    """MLflow: `mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db` shows the runs.

    A thread reads the run's metrics.jsonl and sends what is new, so training waits for no server, nothing is lost while
    one is away, and a resumed run sends what the one before could not.

    Args:
        uri: `sqlite:///FILE` or `http://SERVER`; null for `outputs/mlflow.db`. MLflow keeps no plain files now.
        project: MLflow's experiment; null for the run's own.
    """

    def __init__(self, *, uri: Text | None = None, project: Text | None = None) -> None:
        need("mlflow", "mlflow")
        need("sqlalchemy", "mlflow")
        if uri is not None and not uri.startswith(("sqlite:///", "http://", "https://")):
            raise SpecError(f"uri: {uri!r}: MLflow no longer keeps plain files; use sqlite:///FILE or http://SERVER")
        self.uri, self.project = uri, project
        self.news, self.ended = threading.Event(), threading.Event()
        self.trouble: str | None = None
        self.mark, self.run_id, self.last = "", "", -1

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin sending, or go on with the same run of MLflow's."""
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # the tables of a new file are no news
        self.folder, self.config = folder, config
        self.thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self.thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Let the thread know; it reads the values from metrics.jsonl."""
        self.news.set()

    def finish(self, status: str, error: str | None) -> None:
        """Wait until all is sent, but not for long. Raises RunError when something is left."""
        self.ended.set()
        self.news.set()
        self.thread.join(SECONDS_TO_END)
        if self.thread.is_alive() or self.trouble:
            raise RunError(f"not all was sent: {self.trouble or 'the server is slow'}; a resumed run sends the rest")
        self._client().set_terminated(self.run_id, STATUS.get(status, "FAILED"))
        if error:
            self._client().set_tag(self.run_id, "error", error[:LETTERS])

    def _follow(self) -> None:
        """Send what is new until the run has ended and all was sent, or it has ended and the server is away."""
        wait = 1.0
        while True:
            self.news.clear()
            ending = self.ended.is_set()
            try:
                self._send()
                self.trouble, wait = None, 1.0
            except Exception as error:  # whatever MLflow raises; metrics.jsonl is the buffer
                told = " ".join(str(error).split())[:160]
                if self.trouble is None:
                    log.warning("MLflow: %s; training goes on, and what is missed is sent later", told)
                self.trouble = told
            if ending:
                return
            if self.trouble is None:
                self.news.wait()
            else:
                self.ended.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _send(self) -> None:
        from mlflow.entities import Metric

        client = self._client()
        if not self.run_id:
            self.run_id = self._begun(client)
        while True:
            rows, mark, _ = metrics.since(self.folder, self.mark, 1 << 18)
            found = [
                Metric(name, value, round(1000 * row["time"]), row["step"])
                for row in rows
                if row["step"] > self.last
                for name, value in row.items()
                if name not in ("step", "time") and value is not None
            ]
            for start in range(0, len(found), BATCH):
                client.log_batch(self.run_id, metrics=found[start : start + BATCH])
            if mark == self.mark:
                return
            self.mark = mark

    def _begun(self, client: Any) -> str:
        """Return the id of this folder's run at MLflow, begun there or found again with the last step it has."""
        known = record.read(self.folder)
        kept = self.folder / ID  # no field of run.json: the main thread writes that
        if kept.is_file() and self._knows(client, own := kept.read_text(encoding="utf-8")):
            histories = (client.get_metric_history(own, name) for name in client.get_run(own).data.metrics)
            self.last = max((point.step for points in histories for point in points), default=-1)
            client.update_run(own, status="RUNNING")
            return own
        name = self.project or known.get("experiment") or "default"
        there = client.get_experiment_by_name(name)
        place = there.experiment_id if there else client.create_experiment(name)
        tags = {"mlflow.runName": known["id"], "folder": str(self.folder.resolve())}
        run = client.create_run(place, tags=tags).info.run_id
        parameters = list({REFUSED.sub("_", k): str(v)[:LETTERS] for k, v in leaves(self.config).items()}.items())
        from mlflow.entities import Param

        for start in range(0, len(parameters), 100):
            part = [Param(key, value) for key, value in parameters[start : start + 100]]
            client.log_batch(run, params=part)
        write_whole(kept, run)
        return run

    @staticmethod
    def _knows(client: Any, run: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return client.get_run(run) is not None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _client(self) -> Any:
        from mlflow import MlflowClient

        beside = self.folder.resolve().parent.parent / "mlflow.db"
        return MlflowClient(self.uri or f"sqlite:///{beside}")
