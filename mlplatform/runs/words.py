"""What a run says at its start and its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlplatform.registry import Spec
from mlplatform.training.progress import duration


def count(number: float) -> str:
    """Return `3.4M`, `8.0B`, `950`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def banner(folder: Path, record: dict[str, Any], config: dict[str, Any], resumed: int) -> list[str]:
    """Return the lines a run starts with: where it goes, model, data, how it trains."""
    trunk, optimizer = config["model"].get("trunk", {}), config["optimizer"]
    batch, trainer = Spec(config["batch"], "batch", "batch").build(), Spec(config["trainer"], "trainer", "trainer")
    data, parameters = record["data"], record["parameters"]
    trained = record.get("trained_parameters", parameters)
    part = f" ({count(trained)} of them train)" if trained != parameters else ""
    shape = f", dim {trunk['dim']}, {trunk['depth']} layers" if "dim" in trunk else ""
    name = (config["model"].get("hf") or {}).get("model_type") or config["model"]["kind"]
    lines = [
        f"run    {folder}" + (f"   (resumed at step {resumed})" if resumed else ""),
        f"model  {name}, {count(parameters)} parameters{part}{shape}; task {config['task']['kind']}",
        f"data   {_amount(data)}; {_step(data, batch)} a step",
        f"train  {trainer['max']}, {trainer['precision']}, {optimizer.get('kind') or optimizer['_target_']}, "
        f"strategy {config['strategy']['kind']} on {trainer['devices']} device(s), seed {config.get('seed', 0)}",
    ]
    return lines


def _amount(data: dict[str, Any]) -> str:
    """Say how much there is to train on, of documents or of records."""
    train, words = data["train"], f", vocabulary {data['vocabulary']}" if data.get("vocabulary") else ""
    if "records" not in train:
        return f"{train['documents']} documents, {count(train['tokens'])} tokens{words}"
    classes = "".join(f", {len(names)} classes of {field}" for field, names in (data.get("classes") or {}).items())
    return f"{train['records']} records{classes}{words}"


def _step(data: dict[str, Any], batch: Any) -> str:
    parts, tokens = batch.factors
    counts_records = "records" in data["train"] and batch.divided == "sequences"
    return f"{parts} records" if counts_records else f"{parts} x {tokens} tokens"


def summary(folder: Path, record: dict[str, Any], sample: str | None) -> list[str]:
    """Return the lines a run ends with: how it went, a sample, where it is."""
    values = record.get("metrics") or {}
    best = record.get("best") or {}
    held_out = {name: value for name, value in values.items() if name.startswith("validation/")}
    order = sorted(held_out, key=lambda name: (name != "validation/loss", name))
    figures = ", ".join(f"{name.partition('/')[2].replace('_', ' ')} {held_out[name]:.4f}" for name in order)
    lines = [f"{record['status']} after {record['steps']} steps, {duration(record.get('seconds', 0.0))} of training"]
    if figures:
        lines.append(f"validation  {figures}" + (f"   (best at step {best['step']})" if best else ""))
    if sample:
        shown = sample.strip("\n").splitlines()
        lines += ["sample", *(f"  | {_printable(line)}" for line in shown[:12])]
    lines.append(f"run folder  {folder}")
    return lines


def _printable(line: str) -> str:
    """Return a line without characters that would drive the terminal; an untrained model writes any byte."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
