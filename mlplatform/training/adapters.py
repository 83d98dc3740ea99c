"""Adapters on a frozen model, by peft: LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353), QLoRA (arXiv:2305.14314)."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlplatform.blocks.heads import VocabularyLinear
from mlplatform.errors import SpecError, did_you_mean, listing
from mlplatform.models.start import Holder, Start
from mlplatform.registry import Fraction, Positive, PositiveFloat, Text, block
from mlplatform.training.freezing import freeze, matches

NAME = "default"
"""What peft calls the one adapter there is, within the names of its weights."""


@block("adapter/lora")
class LoRA:
    """What is added to a linear map: alpha / rank * B(A(x)), with A (rank, in) and B (out, rank), B zero at the start.

    Args:
        rank, alpha: as in the formula.
        dropout: on what A reads.
        targets: path patterns of linear maps, or of what holds them (`*.attention`, `*.mlp.up`).
        train: path patterns of what trains beside the adapters, whole: a new head.
        dora: the directions get the adapter, and the length of every row is a weight of its own.
        quantize: `nf4` keeps the frozen linear maps in 4 bits (QLoRA); it needs bitsandbytes and CUDA.
    """

    def __init__(
        self,
        *,
        rank: Positive = 8,
        alpha: PositiveFloat = 16.0,
        dropout: Fraction = 0.0,
        targets: list[Text] = ["*.attention.q", "*.attention.v"],  # noqa: B006  (read as data, never changed)
        train: list[Text] = [],  # noqa: B006
        dora: bool = False,
        quantize: Literal["nf4"] | None = None,
    ) -> None:
        if importlib.util.find_spec("peft") is None:
            raise SpecError("adapters need peft: pip install 'mlplatform[adapters]'")
        if quantize and (importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available()):
            lacks = "a CUDA device" if not torch.cuda.is_available() else "bitsandbytes (pip install bitsandbytes)"
            raise SpecError(f"quantize={quantize} needs {lacks}, which is not here; set adapter.quantize=null")
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets
        self.train, self.dora, self.quantize = train, dora, quantize

    def apply(self, model: nn.Module, seed: int = 0) -> None:
        """Freeze a model and put the adapters in.

        Its linear maps that get one become peft's layers: `X.weight` is `X.base_layer.weight` then. Where the model
        has no memory yet, adapters get their values with it.

        Raises:
            SpecError: a pattern names nothing an adapter can stand on.
        """
        chosen = self._chosen(model)
        freeze(model, ["*", *(f"!{pattern}" for pattern in self.train)], "adapter.train")
        also = [p for p in model.parameters() if p.requires_grad]
        if self.quantize and next(model.parameters()).device.type != "meta":
            _quantise(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._inject(chosen, model)
        for parameter in also:
            parameter.requires_grad_()
        model.adapted = True  # type: ignore[assignment]  # its checkpoints hold what trains alone
        if hasattr(model, "first_values"):
            model.first_values = Adapted(model.first_values, self, seed)  # type: ignore[assignment,arg-type]

    def drawn(self, layer: Any, weight: Tensor | None) -> dict[str, Tensor]:
        """Return the first values of the adapter in one of peft's layers, by name, as `apply` draws them.

        Args:
            weight: what it stands on, which DoRA reads.
        """
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta").to_empty(device="cpu")
        if weight is not None:
            plain.weight = nn.Parameter(weight, requires_grad=False)
        self._inject(["alone"], holder := nn.ModuleDict({"alone": plain}))
        del plain.weight  # peft's objects refer to each other, so that they stay until they are looked for
        return dict(holder["alone"].state_dict())

    def _inject(self, modules: list[str], model: nn.Module) -> None:
        _peft().inject_adapter_in_model(self.config(modules), model)

    def config(self, modules: list[str], **more: Any) -> Any:
        """Return peft's config for the linear maps of those names."""
        return _peft().LoraConfig(
            r=self.rank,
            lora_alpha=int(self.alpha) if float(self.alpha).is_integer() else self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            use_dora=self.dora,
            target_modules=modules,
            **more,
        )

    def _chosen(self, model: nn.Module) -> list[str]:
        # These are read by their weight, not called: an adapter on one would never be asked.
        used_apart = {id(m.out) for m in model.modules() if isinstance(m, VocabularyLinear)}
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in used_apart]
        for pattern in self.targets:
            if not any(matches(name, [pattern]) for name in linear):
                told = f"'{pattern}' names no linear map an adapter can stand on{did_you_mean(pattern, linear)}"
                raise SpecError(problems=[("adapter.targets", f"{told}; there are {listing(linear, 8)}")])
        return [name for name in linear if matches(name, self.targets)]


class Adapted:
    """The values of a model with adapters that has no memory yet (models/start.py's Start).

    peft itself draws each adapter, one after the other from the random numbers it takes for all of them.
    """

    def __init__(self, below: Start, adapter: LoRA, seed: int) -> None:
        self.below, self.adapter, self.seed = below, adapter, seed

    @torch.no_grad()
    def fill(self, model: nn.Module, holder: Holder) -> None:
        """Give the model its values, then the adapters theirs."""
        with _without(model) as layers:
            self.below.fill(model, holder)
        with torch.random.fork_rng(devices=[]), _new_tensors(torch.float32):
            torch.manual_seed(self.seed)
            for path, layer in layers.items():
                weight = holder.whole(f"{path}.base_layer.weight") if self.adapter.dora else None
                for name, tensor in self.adapter.drawn(layer, weight).items():
                    holder.put(f"{path}.{name}", tensor)


@contextlib.contextmanager
def _new_tensors(dtype: torch.dtype) -> Iterator[None]:
    """Within, peft draws in this type, whatever Lightning makes new tensors in: of others come other numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _layers(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers by path."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@contextlib.contextmanager
def _without(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Within, linear maps stand in the model without their adapters, under the names they have in the plain one."""
    layers = _layers(model)
    for path, layer in layers.items():
        _place(model, path, layer.get_base_layer())
    yield layers
    for path, layer in layers.items():
        _place(model, path, layer)


def _place(model: nn.Module, path: str, module: nn.Module) -> None:
    holder, _, last = path.rpartition(".")
    setattr(model.get_submodule(holder), last, module)


def _peft() -> Any:
    """Return peft. It imports torchao, at whose types torch grumbles to whoever reads the run's output."""
    grumbling = logging.getLogger("torch.utils._pytree")
    before = grumbling.level
    grumbling.setLevel(logging.ERROR)
    try:
        import peft

        return peft
    finally:
        grumbling.setLevel(before)


def adapter_tensors(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return, by the path of each adapted linear map, its `lora_A`, `lora_B` and, of DoRA, `lora_magnitude_vector`."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
            path, between, _ = name.partition(f".{part}.{NAME}")
            if between:
                found.setdefault(path, {})[part] = tensor
    return found


def trained_beside(model: nn.Module) -> dict[str, Tensor]:
    """Return what trains beside the adapters, by its name in the model."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}


def merge(model: nn.Module) -> nn.Module:
    """Add the adapters to the weights they stand on and take them out: the plain model again, in place."""
    for path, layer in _layers(model).items():
        layer.merge(safe_merge=True)  # raises where the sum is not finite
        _place(model, path, layer.get_base_layer())
    model.adapted = False  # type: ignore[assignment]
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


def _quantise(model: nn.Module) -> None:
    """Put every linear map of the towers into 4 bits (NF4, scales quantised too); the head stays."""
    import bitsandbytes as bnb  # type: ignore[import-not-found]

    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or name.split(".")[0] == "head":
            continue
        small = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
        small.weight = bnb.nn.Params4bit(
            module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        small.bias = module.bias
        _place(model, name, small)
