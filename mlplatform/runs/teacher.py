"""The teacher of a run: a finished model the task learns from."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from mlplatform.errors import DataError, SpecError, listing
from mlplatform.interop import load
from mlplatform.registry import Natural, Spec, Text, block
from mlplatform.runs.weights import load_run

log = logging.getLogger(__name__)


@block("teacher/folder")
class Teacher:
    """A model with its weights, from a run folder or a folder of Hugging Face's.

    Args:
        source: the folder.
        model: its YAML, where the folder is Hugging Face's; the command line finds it by config.json.
        layers: the student starts from the teacher's weights, its layers from these of the teacher's.
    """

    def __init__(
        self, *, source: Text, model: Annotated[Spec, "model"] | None = None, layers: list[Natural] | None = None
    ) -> None:
        self.folder, self.model, self.layers = Path(source).expanduser(), model, layers
        self._loaded: nn.Module | None = None

    def load(self) -> nn.Module:
        """Return the teacher in fp32, ready to answer; loaded once.

        Raises:
            SpecError: its YAML is not known. CheckpointError: the folder is missing or damaged.
        """
        if self._loaded is None:
            if (self.folder / "run.json").is_file():
                self._loaded = load_run(self.folder, dtype=torch.float32)
            elif self.model is None and self.folder.is_dir():
                told = f"{self.folder} is no run folder, so the YAML of its model is needed"
                raise SpecError(problems=[("teacher.model", f"{told}: +model@teacher.model=bert")])
            else:
                spec = self.model.data if self.model else {}
                self._loaded = load(self.folder, lambda _: spec, dtype=torch.float32)
            self._loaded.requires_grad_(False).eval()
        return self._loaded

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise DataError when the teacher was trained with other tokens than the run's."""
        from mlplatform.processors.tokenizer import load as load_tokenizer

        for place in (self.folder / "tokenizer", self.folder):
            if (place / "tokenizer.json").is_file():
                own, theirs = (t.backend.get_vocab() for t in (tokenizer, load_tokenizer(place)))
                if own != theirs:
                    told = f"{place}: the teacher's tokens are not the run's, so neither are its answers"
                    raise DataError(f"{told}; set tokenizer=file tokenizer.path={place}")
                return

    @torch.no_grad()
    def start(self, model: nn.Module) -> None:
        """Give a student what `layers` says of the teacher's weights; what the teacher lacks stays as it is.

        Raises:
            SpecError: there are not as many layers, or they are of other sizes.
        """
        if self.layers is None:
            return
        state, given = model.state_dict(), self.load().state_dict()
        depths = [len({_layer(name) for name in names if _layer(name) is not None}) for names in (state, given)]
        if len(self.layers) != depths[0] or max(self.layers, default=0) >= depths[1]:
            told = f"{self.layers} names {len(self.layers)} layers; the student has {depths[0]}"
            raise SpecError(problems=[("teacher.layers", f"{told}, the teacher {depths[1]}, numbered from 0")])
        fresh = []
        for name, tensor in state.items():
            number = _layer(name)
            theirs = given.get(name if number is None else _numbered(name, self.layers[number]))
            if theirs is None:
                fresh.append(name)
            elif theirs.shape != tensor.shape:
                told = f"{name} is {list(tensor.shape)} and the teacher's {list(theirs.shape)}"
                raise SpecError(problems=[("teacher.layers", f"{told}; a student starts from one of its own widths")])
            else:
                tensor.copy_(theirs)
        if fresh and not next(model.parameters()).is_meta:
            log.warning("not in the teacher, so they are initialised: %s", listing(fresh, 4))


LAYER = re.compile(r"^(trunk\.layers\.)(\d+)(\..*)$")


def _layer(name: str) -> int | None:
    found = LAYER.match(name)
    return int(found[2]) if found else None


def _numbered(name: str, number: int) -> str:
    return LAYER.sub(rf"\g<1>{number}\g<3>", name)
