"""`mlplatform describe|generate|harness|import|export`: models as such, their way from and to Hugging Face's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.config import as_yaml, composed
from mlplatform.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from torch import nn


def describe(arguments: Arguments) -> None:
    """Print a model's tree, parameters by path, FLOPs per token and memory, worked out on the meta device."""
    arguments.plain(most=0)
    length = arguments.whole("length", 0, least=1) if arguments.flag("length") else None
    result = composed(arguments).check("model")
    from mlplatform.models.describe import describe as describe_spec
    from mlplatform.registry import Spec

    with result.located():
        told = describe_spec(Spec.of(result.config["model"], "model", "model"), length)
    print(json.dumps(told.data(), indent=2) if arguments.flag("json") else told.text())
    suggest(
        f"mlplatform config why model.trunk {' '.join(arguments.overrides())}".rstrip(), "mlplatform train --dry-run"
    )


def generate(arguments: Arguments) -> None:
    """Print a prompt and what a model makes of it."""
    source, prompt = arguments.words if len(arguments.words) == 2 else arguments.plain(most=2, least=2)
    asked = {
        "max_new_tokens": arguments.whole("tokens", 100, least=1),
        "temperature": arguments.number("temperature", 0.8),
        "top_k": arguments.whole("top-k", 50, least=1),
        "seed": arguments.whole("seed", 0),
    }
    from mlplatform.cli.pretrained import folder_of, load, tokenizer_of
    from mlplatform.generation.generate import generate as continue_text

    folder = folder_of(source)
    tokenizer = tokenizer_of(folder)
    if tokenizer is None:
        raise DataError(f"{folder}: no tokenizer.json there, so the prompt can't be read")
    model = load(folder, config_dirs=arguments.options.get("config-dir", ()))
    print(continue_text(model, tokenizer, prompt, **asked))
    suggest(f"mlplatform generate {source} PROMPT --temperature 0 --tokens 200", f"mlplatform export {source} FOLDER")


def harness(arguments: Arguments) -> None:
    """Print a model's figures on tasks of lm-evaluation-harness; a run keeps them among its evaluations."""
    (source,) = arguments.plain(most=1, least=1)
    tasks, batch = arguments.text("tasks", ""), arguments.whole("batch", 8, least=1)
    asked = {
        "limit": arguments.whole("limit", 1, least=1) if arguments.flag("limit") else None,
        "shots": arguments.whole("shots", 0) if arguments.flag("shots") else None,
    }
    if not tasks:
        raise DataError("--tasks FOLDER|NAMES: a folder of task YAMLs, or names of the harness's tasks")
    from mlplatform.cli.pretrained import folder_of, load, tokenizer_of
    from mlplatform.cli.runs import table
    from mlplatform.runs import harness as scoring

    folder = folder_of(source)
    tokenizer = tokenizer_of(folder)
    if tokenizer is None:
        raise DataError(f"{folder}: no tokenizer.json there, so the tasks' texts can't be read")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(folder, device=device, config_dirs=arguments.options.get("config-dir", ()))
    found = scoring.harness(model, tokenizer, tasks, batch=batch, **asked)
    kept = scoring.keep(folder, found, tasks, **asked) if (folder / "run.json").is_file() else None
    if arguments.flag("json"):
        about = {"model": source, "tasks": tasks, **asked, "shortened": found["shortened"]}
        print(json.dumps({**about, "metrics": found["metrics"]}, indent=2))
    else:
        print(table([(metric, f"{value:.6g}") for metric, value in found["metrics"].items()]))
        if found["shortened"]:
            print(f"{found['shortened']} requests lost the beginning of their context: the model reads no more")
        if kept:
            print(f"the figures and every answer are in {kept}/")
    suggest(f"mlplatform harness {source} --tasks {tasks} --json", "mlplatform ls")


def import_(arguments: Arguments) -> None:
    """Load a Hugging Face folder or Hub id, every key and tensor accounted for; save it, its tokenizer and its YAML."""
    source, target = arguments.plain(most=2, least=2)
    folder = Path(target)
    model = copy(source, folder, arguments)
    own = folder / "conf" / "model" / f"{folder.resolve().name}.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(f"# {source}, as imported\n{as_yaml(model.spec)}", encoding="utf-8")
    print(f"wrote {own}")
    chosen = f"--config-dir {folder / 'conf'} model={own.stem} init_from={folder}"
    suggest(
        f"mlplatform generate {folder} 'Once upon a time'",
        f"mlplatform train {chosen} tokenizer=file tokenizer.path={folder}",
    )


def export(arguments: Arguments) -> None:
    """Write a run's model, with its tokenizer, as a folder Hugging Face loads."""
    source, target = arguments.plain(most=2, least=2)
    if arguments.flag("adapter"):
        adapter(source, Path(target))
        return
    copy(source, Path(target), arguments)
    suggest(f"python -c \"from transformers import AutoModel; AutoModel.from_pretrained('{target}')\"")


def adapter(source: str, target: Path) -> None:
    """Write the adapter of a run alone, as peft reads it."""
    _need_empty(target)
    from mlplatform.runs.export import export_adapter
    from mlplatform.runs.folder import find

    folder = Path(source) if Path(source).is_dir() else find(source, Path("outputs"))
    print(f"adapter: {export_adapter(folder, target):,} parameters\nwrote {target}/")
    suggest(f"mlplatform export {source} FOLDER  (merged)")


def _need_empty(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: is there already; name a folder that is new or empty")


def copy(source: str, target: Path, arguments: Arguments) -> nn.Module:
    """Load a model strictly, save it at `target` and return it. Raises CheckpointError when something is there."""
    _need_empty(target)
    from mlplatform.cli.pretrained import folder_of, load, processor_of, tokenizer_of
    from mlplatform.interop import save

    folder = folder_of(source)
    model = load(folder, config_dirs=arguments.options.get("config-dir", ()))
    tokenizer, processor = tokenizer_of(folder), processor_of(folder)
    save(model, target, tokenizer=tokenizer)
    if processor is not None:
        processor.save(target)
    state = model.state_dict()
    size = sum(tensor.nbytes for tensor in state.values()) / 1e6
    told = f"{sum(p.numel() for p in model.parameters()):,} parameters in {len(state)} tensors, {size:,.1f} MB"
    family = (model.spec.get("hf") or {}).get("model_type")  # type: ignore[union-attr]
    print(f"{family}: {told}; tokenizer: {'yes' if tokenizer else 'none there'}\nwrote {target}/")
    return model
