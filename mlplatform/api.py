"""The Python face: `mp.compose`, `mp.build`, `mp.load`, `mp.save`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    return Spec.of(_composed(model, overrides, config_dirs).config, "model")


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
    composed = _composed(model, overrides, config_dirs)
    with composed.located():
        return build_spec(Spec.of(composed.config, "model"), device=device, dtype=dtype, seed=seed)


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
    from mlplatform import interop

    folder = Path(source).expanduser()
    if (folder / "run.json").is_file():
        from mlplatform.runs.export import load_run

        return load_run(folder, device=device, dtype=dtype)
    if not folder.is_dir():
        folder = interop.fetch(str(source), revision=revision, cache_dir=cache_dir, token=token, offline=offline)
    return interop.load(folder, finder(config_dirs), device=device, dtype=dtype, head=head)


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


def finder(config_dirs: ConfigDirs = ()) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what finds the composed YAML for a config.json, among the user's folders and conf/model."""
    from mlplatform import interop, places

    dirs = [Path(folder) for folder in config_dirs]
    files = [f for folder in (*dirs, places.conf()) for f in sorted((folder / "model").glob("*.yaml"))]
    known = interop.families(files)
    return lambda config: interop.choose(config, known, lambda name: _composed(name, (), dirs).config)


def _composed(model: str, overrides: Sequence[str], config_dirs: ConfigDirs) -> Composed:
    from mlplatform.cli.compose import compose_model

    return compose_model(model, overrides, config_dirs).check()


def load(
    source: str | Path,
    *,
    head: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    config_dirs: ConfigDirs = (),
    **hub: Any,
) -> nn.Module:
    """Return a model with its weights, in eval mode, from a Hugging Face folder, a Hub id or one of our run folders.

    Args:
        head: the name of a head of the model's YAML; None for the one the source says it has.
        device, dtype: of the parameters; dtype None keeps each tensor's own.
        config_dirs: folders with YAML of your own; a family is added by `FOLDER/model/NAME.yaml`.
        hub: for a Hub id: `revision`, `cache_dir`, `token`, `offline`.

    Raises:
        CheckpointError: no such source, or files that are damaged, unsafe or don't fit the YAML tensor for tensor.
    """
    from mlplatform.cli.pretrained import load as load_source

    return load_source(source, head=head, device=device, dtype=dtype, config_dirs=config_dirs, **hub)


def save(model: nn.Module, folder: str | Path, *, tokenizer: Any = None) -> None:
    """Write a model as a folder Hugging Face's `from_pretrained` loads.

    Args:
        tokenizer: written beside it when given.

    Raises:
        SpecError: the model's YAML has no `hf`, or a value Hugging Face's config has no word for.
        CheckpointError: the folder can't be written; nothing in it was changed.
    """
    from mlplatform.interop import save as save_folder

    save_folder(model, folder, tokenizer=tokenizer)
