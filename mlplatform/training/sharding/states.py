"""The state of an optimizer in the groups of one process, whatever the strategy, and the way back.

A sharded run keeps tensors of a mesh, and tensors of none, in groups of their own: an optimizer takes a group in one
go. A checkpoint says nothing of that: its groups are those of one process. The tensors stay as they are divided.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

State = dict[str, Any]
PLACES = ("params", "param_names")


def joined_state(optimizer: Optimizer, model: nn.Module) -> State:
    """Return an optimizer's state dict, with the groups of one process."""
    own = optimizer.state_dict()
    return regrouped(own["param_groups"], by_name(own), [name for name, _ in model.named_parameters()])


def regrouped(given: list[State], entries: dict[str, State], names: list[str]) -> State:
    """Return a state dict whose groups of equal options are one, their parameters in the model's order.

    Args:
        given: groups, with `param_names`. entries: by the parameters' names, which `names` has in the model's order.
    """
    groups: list[tuple[State, list[str]]] = []
    for group in given:
        options = {key: value for key, value in group.items() if key not in PLACES}
        same = next((members for other, members in groups if other == options), None)
        if same is None:
            groups.append((options, same := []))
        same.extend(group["param_names"])
    place = {name: i for i, name in enumerate(names)}
    whole: State = {"state": {}, "param_groups": []}
    number = 0
    for options, members in groups:
        members.sort(key=place.__getitem__)
        numbers = list(range(number, number := number + len(members)))
        whole["param_groups"].append({**options, "params": numbers, "param_names": members})
        whole["state"] |= {i: entries[name] for i, name in zip(numbers, members, strict=True) if name in entries}
    return whole


def divided_state(optimizer: Optimizer, joined: State) -> State:
    """Return a state dict in the groups of this rank's optimizer, by the parameters' names."""
    entries = by_name(joined)
    options = {name: group for group in joined["param_groups"] for name in group["param_names"]}
    own: State = {"state": {}, "param_groups": []}
    number = 0
    for group in optimizer.param_groups:
        names = group["param_names"]
        numbers = list(range(number, number := number + len(names)))
        saved = {key: value for key, value in options[names[0]].items() if key not in PLACES}
        own["param_groups"].append({**saved, "params": numbers, "param_names": names})
        own["state"] |= {i: entries[name] for i, name in zip(numbers, names, strict=True) if name in entries}
    return own


def by_name(state: State) -> dict[str, State]:
    """Return a state dict's entries by the names of their parameters."""
    names = {
        number: name
        for group in state["param_groups"]
        for number, name in zip(group["params"], group["param_names"], strict=True)
    }
    return {names[number]: dict(entries) for number, entries in state["state"].items()}
