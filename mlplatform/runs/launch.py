"""From a composed config to a run: checks, the folder, then the worker in this process or one per device."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import yaml

from mlplatform.errors import RunError
from mlplatform.registry import Spec
from mlplatform.runs import record
from mlplatform.runs.config_file import read_config, write_config
from mlplatform.runs.experiment import Experiment, Sizes
from mlplatform.runs.folder import CANCELLED, VARIABLE, create, write_whole
from mlplatform.runs.stopping import handling
from mlplatform.runs.submit import launcher_of, submit
from mlplatform.training.checkpoints import newest_whole, step_of
from mlplatform.training.signals import STOPPING

STOPPED = -signal.SIGTERM
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def prepare(
    config: dict[str, Any],
    *,
    overrides: list[str],
    argv: list[str],
    from_environment: Iterable[str] = (),
    config_dirs: Iterable[str] = (),
    sizes: Sizes | None = None,
) -> tuple[Path, Experiment]:
    """Check a config in full, read its data, and make its run folder.

    Args:
        overrides, argv: what was typed, for the record.
        from_environment: dotted paths of values that came from the environment; they are masked as secrets are.
        config_dirs: the user's folders of options; a run that waits takes a copy of them along.
        sizes: returns (name, spec) of the models there are, for the advice when this one is too large.

    Raises:
        PlatformError: before anything is written.
    """
    config = anchored(config)
    experiment: Experiment = Spec.of(config, "run").build()
    config["trainer"] = experiment.trainer.data
    place = experiment.check(sizes)
    data = experiment.prepare(place)
    folder = create(experiment.outputs, experiment.experiment)
    try:
        scrub = write_config(folder, config, from_environment)
        typed = yaml.safe_dump(scrub.words(overrides), allow_unicode=True)
        write_whole(folder / "overrides.yaml", typed)
        name, devices = experiment.experiment, experiment.trainer["devices"]
        record.begin(folder, name, experiment.seed, scrub.words(argv), devices, data.record())
        if folders := [str(Path(given).expanduser().resolve()) for given in config_dirs]:
            record.update(folder, config_dirs=folders)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, experiment


def anchored(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the folders a run stands on as whole paths: it may go on from anywhere."""

    def whole(source: str | None) -> str | None:
        folder = Path(source).expanduser() if source else None
        return str(folder.resolve()) if folder and folder.is_dir() else source

    anchored = {**config, "init_from": whole(config.get("init_from"))}
    anchored["init_parts"] = {part: whole(source) for part, source in (config.get("init_parts") or {}).items()}
    if teacher := config.get("teacher"):
        anchored["teacher"] = {**teacher, "source": whole(teacher["source"])}
    return anchored


def start(folder: Path, experiment: Experiment | None = None) -> record.Status:
    """Run a prepared folder, in this process or as one process per device under torchrun; or submit it as a job.

    Ranks that died are started again, from the last whole checkpoint, as often as `trainer.restarts` says; an error of
    the user's, which would only come again, ends the run.

    Returns:
        `finished` or `preempted`; `queued` for a job.

    Raises:
        RunError: a rank failed; the record says why.
    """
    config = read_config(folder)
    launcher = launcher_of(config)
    if not launcher.here:
        submit(launcher, [folder], folder)
        return "queued"
    from mlplatform.runs.worker import run

    (folder / CANCELLED).unlink(missing_ok=True)
    trainer = config["trainer"]
    devices, restarts = trainer.get("devices", 1), trainer.get("restarts", 0)
    if devices == 1 and not restarts:
        return run(folder, experiment)
    code, found = run_ranks(folder, devices, ["mlplatform.worker", str(folder.resolve())]), record.read(folder)
    while restarts and code not in (0, STOPPED) and found["status"] == "failed" and found.get("again"):
        restarts -= 1
        last, _ = newest_whole(folder / "checkpoints")
        record.add_event(folder, step_of(last) if last else 0, "restarted", found["error"])
        code, found = run_ranks(folder, devices, ["mlplatform.worker", str(folder.resolve())]), record.read(folder)
    if found["status"] == "running" and code == STOPPED:  # before the first step
        found = record.update(folder, status="preempted")
    if found["status"] in ("finished", "preempted"):
        return found["status"]
    if found["status"] == "running":
        found = record.update(folder, status="failed", error=f"a rank ended with exit code {code}")
    raise RunError(f"{folder}: {found.get('error') or f'a rank ended with exit code {code}'}")


def run_ranks(folder: Path, devices: int, module: list[str], said: IO[bytes] | None = None) -> int:
    """Run a module with its arguments as one rank per device of this machine (elastic.py).

    Returns:
        0, 1 when a rank failed, or `STOPPED` when a signal ended it.

    The first of SIGINT and those of `STOPPING` is handed to rank 0, which tells the others, so that all stop after the
    same step and save; the next one kills them. They stand in a session of their own, or Ctrl-C would reach each of
    them as well. What they print goes to `said` where it is given.
    """
    command = [sys.executable, "-m", "mlplatform.runs.elastic", str(folder), str(devices), *module]
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    environment[VARIABLE] = str(folder.resolve())
    record.update(folder, pid=None)
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=said, stderr=said)
    caught: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        caught.append(number)
        if len(caught) > 1:
            os.killpg(process.pid, signal.SIGKILL)
            return
        try:  # the agent itself while there is no rank 0, or none any more
            os.kill(record.read(folder).get("pid") or process.pid, signal.SIGTERM)
        except ProcessLookupError:
            process.terminate()

    with handling(hand_on, *STOPPING, signal.SIGINT):
        code = process.wait()
    return STOPPED if caught and code else code
