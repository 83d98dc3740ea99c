"""The parity oracle: a tiny model of transformers, its files, and ours loaded from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

import mlplatform as mp
from mlplatform.interop.loading import groups_of
from mlplatform.interop.parts import weight_rules
from mlplatform.interop.weight_rules import WeightRules

transformers.logging.disable_progress_bar()
VOCAB, ROWS, LENGTH = 99, 3, 12


@dataclass
class Case:
    """One row of the table.

    Args:
        family: the YAML's name. variant: what is special here.
        model: the class of transformers. config: its config.
        inputs: made from (padding side or None); token batches by default.
        fields: outputs compared, dotted (`hidden_states.-1`); theirs, and ours when the name differs.
        tokenwise: fields with one row per token, compared at real tokens only.
        break_at: (path in the spec, wrong value): the control that must fail.
        within: largest allowed difference. labels: whether gradients of the loss are compared.
        prepare: changes the reference before it is saved. head: ours, where the file's class doesn't say it.
    """

    family: str
    variant: str
    model: type
    config: Any
    break_at: tuple[str, Any]
    inputs: Callable[[str | None], dict[str, Tensor]] | None = None
    fields: tuple[str, ...] = ("logits",)
    tokenwise: bool = True
    paddings: tuple[str | None, ...] = (None, "right", "left")
    within: float = 1e-5
    labels: bool = True
    config_dirs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] | None = None
    head: str | None = None

    @property
    def name(self) -> str:
        return f"{self.family}-{self.variant}"

    def load(self, folder: Path) -> Any:
        """Return our model of a folder."""
        return mp.load(folder, config_dirs=self.config_dirs, head=self.head)


def randomised(case: Case) -> nn.Module:
    """Build the reference with every parameter moved away from its initial value, so that a wrong mapping shows."""
    torch.manual_seed(0)
    model = randomise(case.model._from_config(case.config, attn_implementation="eager").eval())
    if case.prepare is not None:
        case.prepare(model)
    return model


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Move every parameter and statistic away from its initial value, keeping the size of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(0.2 * noise)
            elif any(word in name for word in ("embed", "wte", "wpe", "shared", "position", "table")):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_var", "correction_bias")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            elif name.endswith(("running_mean", ".weight", ".bias")):  # of frozen norms
                buffer.add_(0.2 * torch.randn(buffer.shape, generator=generator))
    return model


def token_batch(padding: str | None) -> dict[str, Tensor]:
    """Return input_ids and, when padded, an attention_mask with rows of 12, 9 and 5 real tokens."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(5, VOCAB, (ROWS, LENGTH), generator=generator)
    if padding is None:
        return {"input_ids": tokens}
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for row, real in enumerate((LENGTH, 9, 5)):
        if padding == "right":
            mask[row, :real] = 1
        else:
            mask[row, -real:] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def pick(output: Any, path: str) -> Tensor:
    """Follow a dotted path of names and numbers."""
    for part in path.split("."):
        if type(output) is dict:
            output = output[part]
        else:
            output = output[int(part)] if part.lstrip("-").isdigit() else getattr(output, part)
    return torch.cat(output) if isinstance(output, list) else output  # theirs of each image, since transformers 5.24


def difference(case: Case, ours: nn.Module, theirs: nn.Module, padding: str | None) -> float:
    """Return the largest difference over the case's fields, at real tokens."""
    batch = (case.inputs or token_batch)(padding)
    options = dict(case.options)
    if any("hidden_states" in name for name in case.fields):
        options["output_hidden_states"] = True
    with torch.no_grad():
        expected, got = theirs(**batch, **options), ours(**batch, **options)
    worst = 0.0
    for name in case.fields:
        gap = (pick(expected, name) - pick(got, name)).abs()
        for mask in (batch.get("attention_mask"), batch.get("decoder_attention_mask")):
            if case.tokenwise and mask is not None and gap.shape[:2] == mask.shape:
                gap = gap[mask.bool()]
        worst = max(worst, gap.max().item())
    return worst


def labels_for(case: Case, batch: Mapping[str, Tensor], output: Tensor) -> Tensor:
    """Return labels the reference's loss takes, with padded positions left out."""
    if output.dim() == 2:
        return torch.arange(output.shape[0]) % output.shape[1]
    labels = torch.randint(0, output.shape[-1], output.shape[:2], generator=torch.Generator().manual_seed(3))
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    return labels if mask is None or mask.shape != labels.shape else labels.masked_fill(mask == 0, -100)


def gradient_gap(case: Case, ours: nn.Module, theirs: nn.Module) -> float:
    """Return the largest gradient difference relative to each tensor's largest entry, mapped by the weight rules.

    A tensor whose true gradient is zero (key biases: the softmax cancels them) is measured against the model's largest.
    """
    batch = (case.inputs or token_batch)("right" if "right" in case.paddings else None)
    options = dict(case.options)
    if not {**options, **batch}.keys() & {"return_loss", "labels"}:  # pairs are their own labels
        with torch.no_grad():
            options["labels"] = labels_for(case, batch, theirs(**batch, **options).logits)
    for model in (ours, theirs):
        model.zero_grad()
        model(**batch, **options).loss.backward()
    state = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in ours.named_parameters()}
    rules = WeightRules(weight_rules(ours.spec, bare=False))  # type: ignore[arg-type]
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    expected = revert_weight_conversion(theirs, expected)  # theirs fuse experts in memory, not on disk
    floor = 1e-3 * max(g.abs().max() for g in expected.values())
    worst, compared = 0.0, 0
    for piece in rules.plan({n: t.shape for n, t in state.items()}, None):
        for name, gradient in piece.to_theirs(state, groups_of(ours, piece)).items():
            if name in expected:
                top = expected[name].abs().max()
                gap = (gradient - expected[name]).abs().max()
                worst, compared = max(worst, (gap / torch.maximum(top, floor)).item()), compared + 1
    assert compared > 5, "hardly a gradient was compared"
    return worst


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder's safetensors files."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """Return config.json without what says who wrote it."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    return config


def broken(case: Case, folder: Path) -> nn.Module:
    """Return our model with the folder's weights and one wrong number in its spec: the control."""
    right = case.load(folder)
    spec = json.loads(json.dumps(right.spec))
    path, value = case.break_at
    node: Any = spec
    for part in path.split(".")[:-1]:
        node = node[part]
    assert node.get(path.rpartition(".")[2]) != value, "the control changes nothing"
    node[path.rpartition(".")[2]] = value
    wrong = mp.build(spec)
    wrong.load_state_dict(right.state_dict())
    return wrong.eval()
