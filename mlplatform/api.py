"""The Python face: `mp.compose`, `mp.build`, `mp.load`, `mp.load_processor`, `mp.save`.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlplatform.registry import Spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mlplatform.cli.compose import Composed

ConfigDirs = Iterable[str | Path]


def compose(model: str, overrides: Sequence[str] = (), *, config_dirs: ConfigDirs = ()) -> Spec:
    """Return the checked spec of a model by the name of its YAML, without importing torch.

    Args:
        model: an option of the group `model`: `llama`.
        overrides: as on the command line, relative to the model: `trunk.depth=2`, `block/mlp@trunk.layer.mlp=moe`.
        config_dirs: folders with YAML of your own: `FOLDER/model/mine.yaml`.

    Raises:
        SpecError: every problem, each with the file and line or the override it came from.
    """
    return _composed(model, overrides, config_dirs)[0]


def build(
    model: str | Mapping[str, Any] | Spec,
    overrides: Sequence[str] = (),
    *,
    config_dirs: ConfigDirs = (),
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a model, initialised, by the name of its YAML or from a spec.

    Args:
        device: `meta` builds the structure without memory for the parameters.
        dtype: of the parameters; fp32 when None.
        seed: of the initial values.

    Raises:
        SpecError: as `compose`, and for values that don't fit each other.
    """
    from mlplatform.models import build as build_spec

    if not isinstance(model, str):
        return build_spec(model, device=device, dtype=dtype, seed=seed)
    spec, composed = _composed(model, overrides, config_dirs)
    with composed.located():
        return build_spec(spec, device=device, dtype=dtype, seed=seed)


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    head: str | None = None,
    config_dirs: ConfigDirs = (),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
) -> nn.Module:
    """Load a model with its weights from a Hugging Face folder, a Hub id, or one of our run folders.

    The YAML is found by config.json's `model_type` among conf/model and the folders of `config_dirs`.

    Args:
        device, dtype: where the parameters go and what they become; None keeps the file's dtype.
        head: a head of the YAML other than the one config.json names; weights the file lacks are initialised.
        revision, cache_dir, token, offline: of the Hub (see `mlplatform.interop.fetch`).

    Raises:
        CheckpointError: the files are damaged or unsafe, or don't fit the YAML tensor for tensor.
    """
    from mlplatform.cli.pretrained import load as load_source

    hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "offline": offline}
    return load_source(source, head=head, device=device, dtype=dtype, config_dirs=config_dirs, **hub)


def load_processor(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Any:
    """Load what prepares a model's inputs from a Hugging Face folder, a Hub id, or one of our run folders.

    Returns:
        A tokenizer, an image or audio processor, or for CLIP, BLIP and LLaVA a processor of texts and images, by what
        the files say. All but the tokenizer are called: `processor(text, images)`, `processor(images)`.

    Raises:
        CheckpointError, DataError: a file is missing or says what can't be done; the message names it.
    """
    from mlplatform.cli.pretrained import folder_of
    from mlplatform.processors.loading import load_processor as load_folder

    folder = folder_of(source, revision=revision, cache_dir=cache_dir, token=token, offline=offline)
    return load_folder(folder / "tokenizer" if (folder / "run.json").is_file() else folder)


def save(model: nn.Module, folder: str | Path, *, tokenizer: Any = None, shard_size: int = 5 * 10**9) -> None:
    """Write a model as a folder that Hugging Face's `from_pretrained` loads.

    Args:
        tokenizer: written beside the weights. shard_size: bytes of tensors a file holds at most.

    Raises:
        SpecError: the model's YAML has no `hf:`.
        CheckpointError: the folder can't be written; nothing in it was changed.
    """
    from mlplatform import interop

    interop.save(model, folder, tokenizer=tokenizer, shard_size=shard_size)


def _composed(model: str, overrides: Sequence[str], config_dirs: ConfigDirs) -> tuple[Spec, Composed]:
    from mlplatform.cli.compose import compose_model
    from mlplatform.cli.departures import told_apart

    folders = list(config_dirs)
    composed = compose_model(model, overrides, folders).check()
    return Spec.of(told_apart(composed.config, model, folders), "model"), composed
