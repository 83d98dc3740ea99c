"""Models with weights: a Hugging Face folder, a Hub id or one of our run folders, by the YAML it belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlplatform.cli.compose import compose_model
from mlplatform.cli.library import Library
from mlplatform.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mlplatform.processors.tokenizer import Tokenizer


FETCHED = "fetched:"
RUN_NAME = re.compile(r"(^|/)last$|(^|/)\d{4}-\d\d-\d\d_\d{6}(-\d+)?$")


class Families:
    """The YAMLs a checkpoint may belong to: those of the user's folders first, then the shipped ones."""

    def __init__(self, config_dirs: Iterable[str | Path] = ()) -> None:
        self.config_dirs = list(config_dirs)
        from mlplatform.interop import families

        folders = [folder.within("model") for folder in Library(self.config_dirs).folders]
        self.known = families(file for folder in folders if folder for file in sorted(folder.glob("*.yaml")))
        self.compose: Callable[[str], dict[str, Any]] = lru_cache(maxsize=None)(self._compose)

    def _compose(self, name: str) -> dict[str, Any]:
        return compose_model(name, (), self.config_dirs).check().config

    def find(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the composed spec for a config.json. Raises CheckpointError when no YAML states its model_type."""
        from mlplatform.interop import choose

        return choose(config, self.known, self.compose)

    def knowing(self, tensor: str) -> list[str]:
        """Return the YAMLs that have a rule for a tensor of that name."""
        from mlplatform.interop.parts import weight_rules
        from mlplatform.interop.weight_rules import WeightRules

        names = sorted({name for names in self.known.values() for name in names})
        return [n for n in names if WeightRules(weight_rules(self.compose(n), False, every_head=True)).knows(tensor)]


def folder_of(source: str | Path, outputs: Path = Path("outputs"), **hub: Any) -> Path:
    """Return the folder of a source: itself, a run by its name under `outputs`, or where the files of a Hub id are.

    Raises RunError or CheckpointError when there is none.
    """
    from mlplatform.interop import fetch
    from mlplatform.runs.folder import find

    folder = Path(source).expanduser()
    if folder.exists():
        return folder
    return find(str(source), outputs) if RUN_NAME.search(str(source)) else fetch(str(source), **hub)


def load(
    source: str | Path,
    *,
    head: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    config_dirs: Iterable[str | Path] = (),
    **hub: Any,
) -> nn.Module:
    """Return the model a source holds, as `mlplatform.load` says."""
    from mlplatform.interop import load as load_folder

    folder = folder_of(source, **hub)
    if (folder / "run.json").is_file():
        from mlplatform.runs.export import load_run

        if head is not None:
            raise CheckpointError(f"{folder}: a run's model has the head it was trained with; leave head= away")
        return load_run(folder, device=device, dtype=dtype)
    shelf = Families(config_dirs)
    return load_folder(folder, shelf.find, device=device, dtype=dtype, head=head, others=shelf.knowing)


def with_sources(config: dict[str, Any], config_dirs: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Return a run's config with what it stands on found: runs by their names, fetched sets, and a teacher's YAML."""
    outputs = Path(config.get("outputs", "outputs"))
    config = dict(config)
    if config.get("init_from"):
        config["init_from"] = _found(config["init_from"], outputs)
    if parts := config.get("init_parts"):
        config["init_parts"] = {part: _found(source, outputs) for part, source in parts.items()}
    for tool in ("tokenizer", "processor"):
        if path := (config.get(tool) or {}).get("path"):
            config[tool] = {**config[tool], "path": _found(path, outputs, tool)}
    teacher = config.get("teacher")
    if not teacher or teacher.get("model"):
        return config
    from mlplatform.interop.checkpoint_files import read_json

    folder = folder_of(_found(teacher["source"], outputs), outputs)
    found = {**teacher, "source": str(folder)}
    if not (folder / "run.json").is_file():
        found["model"] = Families(config_dirs).find(read_json(folder / "config.json"))
    return {**config, "teacher": found}


def _found(source: str, outputs: Path, part: str = "") -> str:
    """Return the folder of a run's name (or a part of it) or of a fetched set; any other source as it is."""
    if source.startswith(FETCHED):
        from mlplatform.data.sets.fetching import resolve

        return str(resolve(source.removeprefix(FETCHED)))
    if RUN_NAME.search(source) and not Path(source).exists():
        return str(folder_of(source, outputs) / part)
    return source


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """Return the tokenizer a folder holds, None when there is none. Raises DataError for a broken one."""
    from mlplatform.processors.tokenizer import load as load_tokenizer

    places = (folder, folder / "tokenizer")  # a run folder keeps it apart
    return next((load_tokenizer(place) for place in places if (place / "tokenizer.json").is_file()), None)


def processor_of(folder: Path) -> Any:
    """Return what a folder prepares images or sound with, None when it has nothing for them."""
    places = (folder, folder / "processor")  # a run folder keeps it apart
    names = ("preprocessor_config.json", "processor_config.json")
    for place in places:
        if any((place / name).is_file() for name in names):
            from mlplatform.processors.configured import folder as load_folder

            return load_folder(path=str(place))
    return None
