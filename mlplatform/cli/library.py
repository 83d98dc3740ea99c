"""The folders config options are found in, as Hydra's repository: every file comes through the hardened reader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import ListConfig, OmegaConf

from mlplatform import places
from mlplatform.cli.safe_yaml import Document, read
from mlplatform.errors import SpecError, did_you_mean, listing

MOST_LOADS = 10_000


@dataclass(frozen=True)
class Folder:
    """A folder of options; `mount` is the group its files stand in, empty for a folder of groups."""

    path: Path
    mount: str
    shown: str
    """How messages name the folder."""

    def within(self, config_path: str) -> Path | None:
        """Return where a group or option of that name would lie in this folder."""
        parts = config_path.split("/") if config_path else []
        if any(part in ("", ".", "..") for part in parts):
            return None
        if self.mount:
            if parts[:1] != [self.mount]:
                return None
            parts = parts[1:]
        return self.path.joinpath(*parts)


def folders(config_dirs: Iterable[str | Path] = ()) -> list[Folder]:
    """Return the folders options are looked up in: the user's first, then the shipped conf/ and recipes/.

    Raises SpecError for a folder of the user's that doesn't exist.
    """
    result = []
    for given in config_dirs:
        path = Path(given).expanduser()
        if not path.is_dir():
            raise SpecError(f"--config-dir {given}: {'not a folder' if path.exists() else 'no such folder'}")
        result.append(Folder(path, "", str(given).rstrip("/")))
    return [*result, Folder(places.conf(), "", "conf"), Folder(places.recipes(), "recipes", "recipes")]


class Library(ConfigRepository):
    """Hydra's view of the folders. Loaded files are kept for one composition.

    Args:
        roots: configs that stand in no file, by name: the defaults list each one is.
    """

    def __init__(self, config_dirs: Iterable[str | Path] = (), roots: dict[str, list[Any]] | None = None) -> None:
        if version.getbase() is None:
            version.setbase("1.3")
        self.folders = folders(config_dirs)
        self.documents = {name: Document({"defaults": defaults}, "") for name, defaults in (roots or {}).items()}
        self.results: dict[str, ConfigResult | None] = {}
        self.trail: list[str] = []
        """Every option Hydra asked for, in order: a cycle shows here."""

    def document(self, config_path: str) -> Document | None:
        """Return the file behind an option such as `model/llama`, or None when no folder has it."""
        if config_path not in self.documents:
            for folder in self.folders:
                path = folder.within(f"{config_path}.yaml")
                if path is not None and path.is_file():
                    shown = str(Path(folder.shown, path.relative_to(folder.path)))
                    self.documents[config_path] = read(path, shown)
                    break
        return self.documents.get(config_path)

    def options(self, group: str) -> list[str]:
        """Return the names that may stand after `group=`."""
        found = [f.within(group) for f in self.folders]
        return sorted({file.stem for path in found if path and path.is_dir() for file in path.glob("*.yaml")})

    def groups(self) -> list[str]:
        """Return every group that has options."""
        found = set()
        for folder in self.folders:
            for file in folder.path.rglob("*.yaml"):
                parts = file.relative_to(folder.path).parent.parts
                found.add("/".join((folder.mount, *parts) if folder.mount else parts))
        return sorted(found - {""})

    def need(self, group: str, option: str) -> Document:
        """Return the file of an option. Raises SpecError with the nearest name and all there are."""
        document = self.document(f"{group}/{option}")
        if document is None:
            raise SpecError(no_option(group, option, self.options(group)))
        return document

    # ---- Hydra's interface ----
    def load_config(self, config_path: str) -> ConfigResult | None:
        self.trail.append(config_path)
        if len(self.trail) > MOST_LOADS:
            raise SpecError(f"{config_path}: reached after {MOST_LOADS} entries of defaults lists; they lead too far")
        if config_path not in self.results:
            self.results[config_path] = self._load(config_path)
        return self.results[config_path]

    def _load(self, config_path: str) -> ConfigResult | None:
        document = self.document(config_path)
        if document is None:
            return None
        stated = document.data.get("defaults")
        if not isinstance(stated, list | None):
            raise SpecError(f"{document.place('defaults')}: 'defaults' is a list of options, not {stated!r}")
        try:
            defaults = OmegaConf.create(stated or [])
            assert isinstance(defaults, ListConfig)
            items = self._create_defaults_list(config_path, defaults)
        except (ValueError, AssertionError) as error:
            raise SpecError(f"{document.place('defaults')}: {' '.join(str(error).split())}") from None
        header: dict[str, str | None] = {"package": document.package}
        return ConfigResult("mlplatform", document.name, OmegaConf.create({}), header, items)

    def group_exists(self, config_path: str) -> bool:
        return bool(self.options(config_path))

    def config_exists(self, config_path: str) -> bool:
        return self.document(config_path) is not None

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        return self.options(group_name)

    def get_sources(self) -> list[Any]:
        return []


def no_option(group: str, option: object, options: list[str]) -> str:
    """Return the message for an option that doesn't exist."""
    there = f"there are {listing(options, 40)}" if options else "there are none"
    return f"no {group} '{option}'{did_you_mean(str(option), options)}; {there}"
