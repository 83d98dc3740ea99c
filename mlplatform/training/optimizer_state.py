"""An optimizer's state as a checkpoint keeps it: JSON and tensors, by the names of parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mlplatform.training.shards import Piece


def split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor | Piece]]:
    """Turn an optimizer's state dict into JSON and tensors, both by parameter names instead of numbers."""
    names: dict[int, str] = {}
    groups = []
    for group in state["param_groups"]:
        names.update(zip(group["params"], group["param_names"], strict=True))
        groups.append({key: value for key, value in group.items() if key not in ("params", "param_names")})
        groups[-1]["names"] = group["param_names"]
    tensors: dict[str, Tensor | Piece] = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor | Piece):
                tensors[f"{key}/{names[number]}"] = value
            else:
                plain.setdefault(names[number], {})[key] = value
    return {"groups": groups, "plain": plain}, tensors


def join_optimizer(described: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The reverse of `split_optimizer`."""
    groups, state, numbers = [], {}, {}
    for group in described["groups"]:
        group = {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}
        own = list(group.pop("names"))
        numbers.update({name: len(numbers) + i for i, name in enumerate(own)})
        groups.append({**group, "params": [numbers[name] for name in own], "param_names": own})
    for full, tensor in tensors.items():
        key, _, name = full.partition("/")
        state.setdefault(numbers[name], {})[key] = tensor
    for name, entries in described["plain"].items():
        state.setdefault(numbers[name], {}).update(entries)
    return {"state": state, "param_groups": groups}
