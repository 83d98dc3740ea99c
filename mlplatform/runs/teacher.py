"""The teacher of a run: a finished model the task learns from."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from mlplatform.errors import CheckpointError, DataError, SpecError, listing
from mlplatform.models import build
from mlplatform.models.start import Read
from mlplatform.registry import Natural, Spec, Text, block
from mlplatform.runs.weights import Source, source_of

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

    @cached_property
    def found(self) -> Source:
        """What the folder holds, opened once; nothing was read.

        Raises:
            SpecError: its YAML is not known. CheckpointError: the folder is missing or damaged.
        """
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: no such folder")
        if self.model is None and not (self.folder / "run.json").is_file():
            told = f"{self.folder} is no run folder, so the YAML of its model is needed"
            raise SpecError(problems=[("teacher.model", f"{told}: +model@teacher.model=bert")])
        return source_of(str(self.folder), self.model.data if self.model else {}, as_filed=True)

    def shell(self) -> nn.Module:
        """Return the teacher without weights."""
        return build(self.found.spec, device="meta")

    def values(self) -> Read:
        """Return how it gets them."""
        return Read(self.found.tensors, dict.fromkeys(self.found.fresh, 0))

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

    def lessons(self, model: nn.Module) -> Callable[[], Iterator[tuple[str, Tensor]]]:
        """Return what gives a student what `layers` says of the teacher's weights; the rest it draws, and says so.

        Raises:
            SpecError: there are not as many layers, or they are of other sizes.
        """
        layers, given = self.layers or [], self.found.shapes
        state = model.state_dict()
        depths = [len({_layer(name) for name in names if _layer(name) is not None}) for names in (state, given)]
        if len(layers) != depths[0] or max(layers, default=0) >= depths[1]:
            told = f"{layers} names {len(layers)} layers; the student has {depths[0]}"
            raise SpecError(problems=[("teacher.layers", f"{told}, the teacher {depths[1]}, numbered from 0")])
        learned: dict[str, list[str]] = {}
        fresh = []
        for name, tensor in state.items():
            number = _layer(name)
            theirs = name if number is None else _numbered(name, layers[number])
            if theirs not in given:
                fresh.append(name)
                continue
            if given[theirs] != tensor.shape:
                told = f"{name} is {list(tensor.shape)} and the teacher's {list(given[theirs])}"
                raise SpecError(problems=[("teacher.layers", f"{told}; a student starts from one of its own widths")])
            learned.setdefault(theirs, []).append(name)
        if fresh:
            log.warning("not in the teacher, so they are initialised: %s", listing(fresh, 4))
        return lambda: ((ours, t.clone()) for name, t in self.found.tensors() for ours in learned.get(name, ()))


LAYER = re.compile(r"^(trunk\.layers\.)(\d+)(\..*)$")


def _layer(name: str) -> int | None:
    found = LAYER.match(name)
    return int(found[2]) if found else None


def _numbered(name: str, number: int) -> str:
    return LAYER.sub(rf"\g<1>{number}\g<3>", name)
