"""What ranks saw of held-out records, brought together."""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed


class Seen:
    """What a rank has seen since a pass began, of any kind and number: ranks evened out with fillers see none.

    torchmetrics gathers tensors only, and fails where ranks have unequally many, or of different shapes.
    """

    process_group: Any = None

    def __init__(self) -> None:
        self._own: list[Any] = []

    def to(self, device: Any) -> Seen:
        """Stay: what was seen lies in main memory."""
        return self

    def reset(self) -> None:
        """Forget it."""
        self._own = []

    def add(self, what: Any) -> None:
        """Add something; tensors in it go to main memory."""
        self._own.append(_in_memory(what))

    def of_all_ranks(self) -> list[Any]:
        """Return what each rank added, rank by rank. All ranks call it."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._own
        told: list[Any] = [None] * distributed.get_world_size(self.process_group)
        distributed.all_gather_object(told, self._own, group=self.process_group)
        return [one for rank in told for one in rank]


def _in_memory(what: Any) -> Any:
    if isinstance(what, Tensor):
        return what.detach().cpu()
    if isinstance(what, dict):
        return {key: _in_memory(value) for key, value in what.items()}
    return [_in_memory(one) for one in what] if isinstance(what, list) else what
