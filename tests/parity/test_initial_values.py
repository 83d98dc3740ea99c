"""A model made here starts as transformers' of the same config does: mean, spread and shape of every tensor."""

from __future__ import annotations

import re
from collections import defaultdict
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from cases import CASES
from oracle import Case, tensors_of
from torch import Tensor

import mlplatform as mp

DEPARTURES = {
    "wav2vec2*:*pos_conv_embed*": "torch's default; what transformers sets is lost in the parametrisation",
    "hubert:*pos_conv_embed*": "torch's default; what transformers sets is lost in the parametrisation",
    "unispeech:*pos_conv_embed*": "torch's default; what transformers sets is lost in the parametrisation",
    "blip*:*vision_model.*": "1e-10, the default of its config, which only suits files",
    "blip:e[mn]*": "1e-10, the default of its config, which only suits files",
    "fastvlm:*.timm_model.*": "0.02 for the convolutions of timm's network too",
    "siglip:*patch_embedding.weight": "LeCun's rule, 1.14 times as wide: what it cuts off lies far outside",
    "siglip:*head.attention.out_proj.weight": "LeCun's rule, 1.14 times as wide: what it cuts off lies far outside",
    "siglip:logit_*": "zero; the paper starts at log 10 and -10",
}
"""family:tensor of theirs -> how theirs starts, where ours starts otherwise (docs/initialisation.md says why)."""
ONCE = list({(case.family, case.model): case for case in reversed(CASES)}.values())[::-1]
KURTOSIS = 0.6
"""Halfway between a uniform distribution's 1.8 and a normal one's 3."""


def pooled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the tensors of all layers alike."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        alike = re.sub(r"\.\d+\.", ".*.", name)
        found[f"{alike} {tuple(tensor.shape)}"].append(tensor.double().flatten())
    return {name: torch.cat(parts) for name, parts in found.items()}


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two samples may come from one distribution: within five standard errors, and of one shape."""
    count = len(theirs)
    mean = (ours.mean() - theirs.mean()).abs()
    if count == 1:
        return bool(mean < 1e-6)
    widths = ours.std(), theirs.std()
    if not all(widths):
        return bool(mean < 1e-6 and widths[0] == widths[1])
    wide = max(widths)
    error = 5 / count**0.5
    if mean > 2**0.5 * error * wide + 1e-9 or abs(widths[0] - widths[1]) > error * wide:
        return False
    shapes = [(((x - x.mean()) / x.std()) ** 4).mean() for x in (ours, theirs)]
    return count < 1000 or bool(abs(shapes[0] - shapes[1]) < KURTOSIS)


@cache
def found(number: int) -> set[str]:
    """Return what starts otherwise in one of the cases."""
    with TemporaryDirectory() as folder:
        return different(ONCE[number], Path(folder))


def different(case: Case, folder: Path, spec: dict[str, object] | None = None) -> set[str]:
    """Return the tensors, layers alike as one, that start otherwise here than in transformers."""
    torch.manual_seed(0)
    case.model._from_config(case.config, attn_implementation="eager").save_pretrained(folder / "theirs")
    mp.save(mp.build(spec or case.load(folder / "theirs").spec), folder / "ours")
    theirs, ours = (pooled(tensors_of(folder / name)) for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    return {name.split(" ")[0] for name in theirs if not alike(ours[name], theirs[name])}


@pytest.mark.parametrize("number", range(len(ONCE)), ids=[f"{case.family}-{case.model.__name__}" for case in ONCE])
def test_every_tensor_starts_alike(number: int) -> None:
    said = [key.partition(":") for key in DEPARTURES]
    allowed = [pattern for family, _, pattern in said if fnmatch(ONCE[number].family, family)]
    assert not {name for name in found(number) if not any(fnmatch(name, pattern) for pattern in allowed)}


@pytest.mark.parametrize("key", DEPARTURES)
def test_every_departure_is_one(key: str) -> None:
    """What is said to start otherwise does: a reason that no longer holds has to go."""
    family, _, pattern = key.partition(":")
    numbers = [number for number, case in enumerate(ONCE) if fnmatch(case.family, family)]
    assert any(fnmatch(name, pattern) for number in numbers for name in found(number))


@pytest.mark.parametrize(
    ("family", "path", "tensor"),
    [("gpt2", "std", "wte"), ("gpt2", "parts.*.mlp.down.weight.std", "mlp.c_proj"), ("t5", "std", "EncDecAttention.k")],
)
def test_control(family: str, path: str, tensor: str, tmp_path: Path) -> None:
    """A number that is half as large again is seen, at the tensors it is for."""
    [case, *_] = [case for case in ONCE if case.family == family]
    torch.manual_seed(0)
    case.model._from_config(case.config).save_pretrained(tmp_path / "seen")
    spec = case.load(tmp_path / "seen").spec
    node = spec["init"]
    if path != "std":
        node = node["parts"][path.removeprefix("parts.").removesuffix(".std")]
    node["std"] *= 1.5
    assert any(tensor in name for name in different(case, tmp_path, spec))
