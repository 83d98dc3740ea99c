"""From a folder of Hugging Face's format to a module with its weights."""

from __future__ import annotations

import fnmatch
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlplatform.errors import CheckpointError
from mlplatform.interop.checkpoint_files import CheckpointFolder, explain_strangers, read_json
from mlplatform.interop.parts import (
    Find,
    base_prefix,
    head_of,
    ignored_weights,
    kept_of,
    read_config,
    tied_weights,
    weight_rules,
)
from mlplatform.interop.weight_rules import Piece, WeightRules
from mlplatform.models import build
from mlplatform.models.building import initialise_module

log = logging.getLogger(__name__)
OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}
"""How TensorFlow-born BERT files name the two parameters of a norm."""


class Opened:
    """A folder whose files fit a YAML tensor for tensor; none was read yet.

    Args:
        folder: config.json and safetensors, as `save_pretrained` writes them.
        find: returns the composed spec of the YAML for a config.json.
        head: the name of a head under the YAML's `heads`; None for the one the file says it has. A head the file
            has no weights for is a new one.
        others: names the YAMLs that have a rule for a tensor, for messages.

    Attributes:
        model: what it holds, on the meta device.
        fresh: the parts of it that are not in the files, each with its number of parameters.
        theirs: the (first) tensor of the files that gives each of ours.

    Raises:
        CheckpointError: the files are damaged or unsafe, or don't fit.
    """

    def __init__(
        self,
        folder: str | Path,
        find: Find,
        head: str | None = None,
        others: Callable[[str], list[str]] | None = None,
    ) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
        config = read_json(folder / "config.json")
        _note_code(folder, config)
        family = find(config)
        self.head = head_of(config, family, head)
        spec = read_config(config, family, self.head, find)
        self.files = CheckpointFolder(folder)
        spec = _untied_where_the_file_is(spec, self.files)
        self.model = build(spec, device="meta")
        self._pieces, self.fresh = _plan(self.model, spec, self.files, config, others, new_head=head is not None)
        self.theirs = {name: piece.theirs[0] for piece in self._pieces for name in piece.ours}
        self._finite = True
        self.model.hf_kept = kept_of(config, spec)  # type: ignore[assignment]
        _check_types(self.model, self._pieces, self.files)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield our tensors by name, of the files' types; most are views of a file's map."""
        shapes = {name: t.shape for name, t in self.model.state_dict().items()}
        for piece in self._pieces:
            for name, tensor in piece.to_ours(self.files.read, shapes, groups_of(self.model, piece)).items():
                if tensor.shape != shapes[name]:
                    raise CheckpointError(
                        f"{self.files.files[piece.theirs[0]]}: '{piece.theirs[0]}' is {list(tensor.shape)}, "
                        f"{name} of this config is {list(shapes[name])}"
                    )
                yield name, tensor
        self.files.close()

    def look_at(self, name: str, tensor: Tensor) -> None:
        """Warn of the first of our tensors that holds NaN or infinite values."""
        if self._finite and tensor.is_floating_point() and not all_finite(tensor):
            self._finite = False
            log.warning("%s: '%s' holds NaN or infinite values", self.files.files[self.theirs[name]], self.theirs[name])

    def told_of_fresh(self) -> None:
        """Warn of what the files lack."""
        for part, count in self.fresh.items():
            what = f"the head '{self.head}'" if part == "head" else part
            log.warning("%s is not in %s: its %d parameters are initialised", what, self.files.folder, count)


def load(
    folder: str | Path,
    find: Find,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    head: str | None = None,
    others: Callable[[str], list[str]] | None = None,
) -> nn.Module:
    """Build the model a folder holds and give it the folder's weights. A new head is initialised, and said so.

    Args:
        folder, find, head, others: as of `Opened`.
        device, dtype: of the parameters; None keeps each tensor's own dtype.

    Raises:
        CheckpointError: the files are damaged or unsafe, or don't fit the YAML tensor for tensor.
    """
    opened = Opened(folder, find, head, others)
    model = opened.model
    for name, tensor in opened.tensors():
        kept = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None).contiguous()
        opened.look_at(name, kept)
        put(model, name, kept)
    opened.told_of_fresh()
    for part in opened.fresh:
        initialise_module(model, part, torch.device(device), dtype)
    for module in model.modules():
        if hasattr(module, "restore_buffers"):  # tables that are in no file
            module.restore_buffers()  # type: ignore[operator]
    return model.eval()


def _note_code(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("auto_map") or any(folder.glob("*.py")):
        log.warning("%s brings Python code of its own; it is ignored, as no checkpoint runs code here", folder)


def _untied_where_the_file_is(spec: dict[str, Any], files: CheckpointFolder) -> dict[str, Any]:
    """Files may hold a tied tensor twice. Equal copies are one tensor; different ones mean it isn't tied (as in HF).

    With `hf.tied_by: file`, a file without the copy means it is tied.
    """
    for copy, source in tied_weights(spec).items():
        head = (spec.get("heads") or {}).get(spec.get("head")) if isinstance(spec.get("head"), str) else None
        by_file = (spec.get("hf") or {}).get("tied_by") == "file"
        if by_file and head and "tied" in head and copy not in files.files and source in files.files:
            head["tied"] = True
        both = copy in files.files and source in files.files
        if both and head and head.get("tied") and not torch.equal(files.read(copy), files.read(source)):
            log.warning("%s differs from %s, so the head is not tied", copy, source)
            head["tied"] = False
    return spec


def _plan(
    model: nn.Module,
    spec: Mapping[str, Any],
    files: CheckpointFolder,
    config: Mapping[str, Any],
    others: Callable[[str], list[str]] | None,
    new_head: bool,
) -> tuple[list[Piece], Counter[str]]:
    """Match the file's tensors and ours, each exactly once.

    Returns:
        The pieces, and the parts of ours the file lacks, each with its number of parameters.
    """
    aliases = _aliases(files)
    bare = _is_bare(spec, files)
    rules = WeightRules(weight_rules(spec, bare))
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    pieces = rules.plan(shapes, lambda name: name in aliases)
    lacking = [piece for piece in pieces if piece.theirs[0] not in aliases]
    fresh = [p for p in lacking if (new_head or not p.ours[0].startswith("head.")) and _owner(p.ours[0], spec)]
    pieces = [piece for piece in pieces if piece not in fresh]
    absent = [(piece, name) for piece in pieces for name in piece.theirs if name not in aliases]
    if absent:
        piece, name = absent[0]
        many = f" ({len(absent)} are missing)" if len(absent) > 1 else ""
        raise CheckpointError(f"{files.folder}: no tensor '{name}', which gives {piece.ours[0]}{many}")
    used = {name for piece in pieces for name in piece.theirs}
    left = [name for name in aliases if name not in used and not _dropped(name, spec, files, new_head, bare)]
    if left:
        raise explain_strangers(left, files.folder, files.files, others(left[0]) if others else [])
    for piece in pieces:
        piece.theirs = [aliases[name] for name in piece.theirs]
    return pieces, Counter(_owner(name, spec) for piece in fresh for name in piece.ours)


def _owner(name: str, spec: Mapping[str, Any]) -> str:
    """Return the part a parameter is of that a file may lack: the head, or one `hf.may_lack` names; empty for none."""
    parts = ("head", *((spec.get("hf") or {}).get("may_lack") or ()))
    return next((part for part in parts if name.startswith(f"{part}.")), "")


def _aliases(files: CheckpointFolder) -> dict[str, str]:
    """Return their names in today's spelling -> as the file has them."""
    found = {}
    for name in files.files:
        for old, new in OLD_SUFFIXES.items():
            if name.endswith(f"LayerNorm{old}"):
                found[name.removesuffix(old) + new] = name
                break
        else:
            found[name] = name
    return found


def _is_bare(spec: Mapping[str, Any], files: CheckpointFolder) -> bool:
    prefix = base_prefix(spec)
    return bool(prefix) and not any(name.startswith(prefix) for name in files.files)


def _dropped(name: str, spec: Mapping[str, Any], files: CheckpointFolder, new_head: bool, bare: bool) -> bool:
    """Whether a tensor without a place is one the YAML ignores, a copy of a tied one, or an unwanted head's."""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored_weights(spec)):
        return True
    if name in (tied := tied_weights(spec)) and tied[name] in files.files:
        return True
    if new_head and WeightRules(weight_rules(spec, bare, every_head=True)).knows(name):
        log.warning("'%s' belongs to a head that is not built", name)
        return True
    return False


def _check_types(model: nn.Module, pieces: list[Piece], files: CheckpointFolder) -> None:
    meta = model.state_dict()
    for piece in pieces:
        if not meta[piece.ours[0]].is_floating_point():  # a batch norm's number of batches
            continue
        for name in piece.theirs:
            if files.dtypes[name][0] not in "FB" or files.dtypes[name] == "BOOL":
                raise CheckpointError(
                    f"{files.files[name]}: '{name}' is {files.dtypes[name]}; a floating dtype is needed"
                )


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite. The sum tells at the memory's speed; it may overflow by itself."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make a tensor the parameter (or buffer) of that name."""
    module_name, _, last = name.rpartition(".")
    module = model.get_submodule(module_name)
    old = getattr(module, last)
    if isinstance(old, nn.Parameter):
        setattr(module, last, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        module.register_buffer(last, tensor)


def groups_of(model: nn.Module, piece: Piece) -> int | None:
    """Return the number of head groups a fused piece is interleaved by."""
    attribute = piece.op.get("groups")
    if attribute is None:
        return None
    attention = model.get_submodule(piece.ours[0].rsplit(".", 2)[0])
    value = getattr(attention, str(attribute), None)
    if not isinstance(value, int):
        raise CheckpointError(f"hf.weights: groups={attribute!r}; it is heads or kv_heads")
    return value
