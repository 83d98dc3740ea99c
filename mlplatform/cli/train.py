"""`mlplatform train`: compose, check, make the run folder, run. With `--dry-run`, only say what would run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.compose import Composed, compose_model
from mlplatform.cli.config import composed
from mlplatform.cli.departures import told_apart
from mlplatform.cli.library import Library
from mlplatform.cli.runs import display_asked, shown_as
from mlplatform.errors import SpecError


def train(arguments: Arguments) -> int:
    """Train a model. Returns 0; every mistake in the config is an error before anything is written."""
    arguments.plain(most=0)
    if arguments.flag("multirun"):
        from mlplatform.cli.launching import multirun

        return multirun(arguments)
    result = composed(arguments).check()
    if arguments.flag("dry-run"):
        print(dry_run(result, arguments))
        suggest(arguments.again("train"), arguments.again("data preview"))
        return 0
    display = display_asked(arguments)
    from mlplatform.runs.launch import start

    folder, experiment = prepared(result, arguments)
    with shown_as(display):
        status = start(folder, experiment)
    ended(arguments, folder, status)
    return 0


def prepared(result: Composed, arguments: Arguments) -> tuple[Path, Any]:
    """Check a composed config in full and make its run folder; return it with the experiment."""
    from mlplatform.runs.launch import prepare

    with result.located():
        return prepare(
            runnable(result, arguments),
            overrides=result.overrides,
            argv=["mlplatform", *sys.argv[1:]],
            from_environment=result.from_environment,
            config_dirs=arguments.options.get("config-dir", ()),
            sizes=lambda: sizes(arguments),
        )


def ended(arguments: Arguments, folder: Path, status: str) -> None:
    """Say what comes next after a session, and the job where there is one.

    `--quiet` prints the folder alone, `--json` nothing more.
    """
    if arguments.flag("quiet"):
        print(folder)
    elif not arguments.flag("json"):
        if status == "queued":
            from mlplatform.runs import record

            print(f"job {record.read(folder)['job']} is in the queue: {folder}")
            suggest(after(folder, status), "mlplatform ls")
        else:
            suggest(after(folder, status), f"mlplatform report {folder}", "mlplatform ls")


def after(folder: Path, status: str) -> str:
    """Return the command that comes next after a session of a run: only a run that ended with a sample can go on."""
    if status == "queued":
        return f"mlplatform status {folder}   |   mlplatform logs {folder} -f   |   mlplatform cancel {folder}"
    if status != "finished":
        return f"mlplatform resume {folder}"
    writes = (folder / "samples").is_dir()
    return f"mlplatform generate {folder} 'To be'" if writes else f"mlplatform evaluate {folder}"


def runnable(result: Composed, arguments: Arguments) -> dict[str, Any]:
    """Return the config to run; a model that Hugging Face's files can't say is one without an `hf` map, and said so."""
    name = result.choices.get("model")
    model = told_apart(result.config["model"], name, arguments.options.get("config-dir", []))
    if reason := (model.get("hf") or {}).get("departs"):
        print(f"note: {reason}; checkpoints load here, and can't be exported to Hugging Face", file=sys.stderr)
    return {**whole(result, arguments), "model": model}


def whole(result: Composed, arguments: Arguments) -> dict[str, Any]:
    """Return the config with the runs it stands on found."""
    from mlplatform.cli.pretrained import with_sources

    return with_sources(result.config, arguments.options.get("config-dir", ()))


def sizes(arguments: Arguments) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, spec) of every model there is, for the advice to take one that fits this machine."""
    folders = arguments.options.get("config-dir", [])
    for name in Library(folders).options("model"):
        with contextlib.suppress(SpecError):  # a broken YAML of the user's is no advice
            yield name, compose_model(name, (), folders).check().config


def dry_run(result: Composed, arguments: Arguments, array: int | None = None) -> str:
    """Check everything short of reading the data, build the model on the meta device, and say what would run.

    For a job that is its script too; `array` says of how many runs it is, where it is of several.
    """
    from mlplatform.models.describe import describe
    from mlplatform.registry import Spec
    from mlplatform.runs.secrets import masked

    config = whole(result, arguments)
    with result.located():
        experiment = Spec.of(config, "run").build()
        place = experiment.check(lambda: sizes(arguments))
        batch = Spec.of(config["batch"], "batch", "batch").build()
        told = describe(Spec.of(config["model"], "model", "model"), batch.length)
    trainer = Spec.of(config["trainer"], "trainer", "trainer")
    memory = told.memory().get(trainer["precision"]) or told.memory()["fp32"]
    parts, each = batch.factors
    tokens = parts * each
    nodes = max(1, place.world // place.devices)
    where = (
        f"strategy {config['strategy']['kind']} on {f'{nodes} x ' if nodes > 1 else ''}{place.devices} {place.device}"
    )
    how = (trainer["max"], trainer["precision"], _kind(config["optimizer"]), config["schedule"]["kind"], where)
    lines = {
        "model": f"{_name(config['model'])}, {told.total:,} parameters; task {config['task']['kind']}",
        "memory": f"{memory['training'] / 2**20:,.1f} MiB for weights, gradients and AdamW, before activations",
        "data": f"{config['data']['kind']} {config['data'].get('path', '')}{_tools(config)}",
        "batch": f"{parts} x {each} = {tokens:,} tokens a step, {batch.layout}, {batch.micro} sequences at a time",
        "train": ", ".join(how),
        "compute": f"{told.data()['flops_per_token']['training'] * tokens / 1e12:,.3f} TFLOPs a step",
        "folder": f"{config.get('outputs', 'outputs')}/{config.get('experiment', 'default')}/DATE_TIME",
    }
    changed = f"{len(result.overrides)} overrides; all checks passed, nothing was written"
    said = "\n".join([*(f"{name:<8} {text}" for name, text in lines.items()), changed])
    if experiment.launcher.here:
        return said
    shown = masked(config, result.from_environment)[0]
    folder = Path(config.get("outputs", "outputs"), config.get("experiment", "default"), "multirun" if array else "")
    return f"{said}\n\n{experiment.launcher.script(folder.resolve() / 'DATE_TIME', shown, array)}".rstrip()


def _tools(config: dict[str, Any]) -> str:
    return "".join(f", {name} {config[name]['kind']}" for name in ("tokenizer", "processor") if config.get(name))


def _name(model: dict[str, Any]) -> str:
    return (model.get("hf") or {}).get("model_type") or model["kind"]


def _kind(spec: dict[str, Any]) -> str:
    return str(spec.get("kind") or spec["_target_"])
