"""The data of a run: the split of a source as batches, in an order that neither ranks nor workers change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from mlplatform.data.ahead import one_ahead
from mlplatform.data.collate import Batch, Row
from mlplatform.data.examples import RecordRows
from mlplatform.data.material import Material
from mlplatform.data.order import Order, Sample, in_turn
from mlplatform.data.packing import Rows
from mlplatform.data.plan import Plan, Step
from mlplatform.data.shapes import BatchShape
from mlplatform.errors import DataError
from mlplatform.registry import Spec

Collates = Callable[[list[Row]], Batch]
FILLER = torch.ones(())
TOLD_BY = f"{DataError.__module__}.{DataError.__qualname__}: "
ENDLESS = 2**31 - 1
"""The length a train loader states. Lightning reads one batch ahead of a loader without a length, and the state would
then count a batch that was not trained on."""


class DataModule(L.LightningDataModule):
    """Train and validation batches of one run's data.

    An item of the train loader is all one rank does in one optimizer step: a list of micro-batches. An item of the
    validation loader is one micro-batch. The keys of a batch are those of collate.py, or of the task's examples.

    Args:
        material: the source with its tools (material.py). batch: a `batch` spec.
        collator: makes a micro-batch of rows: the task's collator or its examples.
        seed: orders the samples. rank, world: which part of each global batch is this process's.
    """

    def __init__(self, material: Material, batch: Spec, collator: Collates, seed: int, rank: int, world: int) -> None:
        super().__init__()
        self.material, self.collator, self.seed, self.rank, self.world = material, collator, seed, rank, world
        self.shape: BatchShape = batch.build()
        self.shape.check_world(world, batch.path)
        self.splits: Mapping[str, Rows] = {}
        self.order: Order
        self.plan: Plan
        self.loader: TrainLoader | None = None

    def setup(self, stage: str | None = None) -> None:
        """Lay every split out as rows.

        Raises:
            DataError: unreadable data, an empty split, too little text, or rows with no (or only) targets.
        """
        if self.splits:
            return
        self.splits = self.material.splits(self.shape, self.collator)
        self.order = self.material.order(self.train_rows, self.seed)
        self.plan = self.shape.plan(self.order, self.train_rows, self.seed)
        self.loader = TrainLoader(self)
        self.material.check(self.first_rows(min(32, len(self.train_rows))))

    @property
    def train_rows(self) -> Rows:
        """The rows that are trained on."""
        self.setup()
        return self.splits["train"]

    @property
    def validation_rows(self) -> Rows:
        """The rows that are held out."""
        self.setup()
        return self.splits["validation"]

    def first_rows(self, count: int) -> Batch:
        """Return the first `count` rows of training as one micro-batch."""
        return self.collator([_row(self.train_rows, sample, self.seed) for sample in self.order.samples(0, count)])

    def train_dataloader(self) -> TrainLoader:
        """Return the endless loader of optimizer steps; the same one each time, so that its state lasts."""
        self.setup()
        assert self.loader is not None
        return self.loader

    def val_dataloader(self) -> list[Any] | DataLoader[Batch]:
        """Return the loader of this rank's validation micro-batches; none without such a split."""
        return self.held_out("validation")

    def held_out(self, split: str) -> list[Any] | DataLoader[Batch]:
        """Return the loader of this rank's micro-batches of any split, each row once, in fixed order.

        A micro-batch has the key `numbers`, its rows' numbers in the split. One that only evens out the ranks has the
        key `filler`: it goes through the model and counts for nothing.
        """
        self.setup()
        rows = self.splits.get(split)
        if not rows:
            return []
        rows = rows.plain() if isinstance(rows, RecordRows) else rows
        return DataLoader(
            _Reader(rows, 0),
            batch_sampler=in_turn(len(rows), self.shape.micro, self.rank, self.world),  # type: ignore[arg-type]
            collate_fn=_HeldOut(self.collator),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def records(self, split: str) -> RecordRows:
        """Return the record of each row of a split; only where the data is records."""
        self.setup()
        rows = self.splits[split]
        assert isinstance(rows, RecordRows)
        return rows.plain()

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer, None where it has none."""
        return self.material.tokenizer

    @property
    def samples_per_epoch(self) -> int:
        """Sequences in one epoch."""
        return len(self.train_rows)

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in one epoch."""
        self.setup()
        return self.plan.steps_of(self.samples_per_epoch)

    def record(self) -> dict[str, Any]:
        """Return what the run record keeps about the data."""
        self.setup()
        return {**self.material.record(), "samples_per_epoch": self.samples_per_epoch}

    def state_dict(self) -> dict[str, int]:
        """Return how many sequences the run has consumed, over all ranks."""
        return self.train_dataloader().state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after that many sequences."""
        self.train_dataloader().load_state_dict(state_dict)


class TrainLoader:
    """Endless: each item is a list of micro-batches, this rank's part of the next global batch.

    Its state is the number of sequences delivered over all ranks. What workers have read ahead is not counted, so a
    run may go on with other ranks and workers.
    """

    def __init__(self, data: DataModule) -> None:
        self.data, self.consumed = data, 0

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[list[Batch]]:
        data, shape = self.data, self.data.shape
        loader = DataLoader(
            _StepReader(data.train_rows, data.seed, data.collator),
            sampler=_Steps(data.plan, self.consumed, data.rank, data.world),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=shape.workers,
            timeout=shape.timeout if shape.workers else 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, so that starting a loader draws nothing from the run's generator
        )
        try:
            for step, after in loader if shape.workers else one_ahead(_on_this_device(loader)):
                self.consumed = after
                yield step
        except DataError as error:  # of a worker: torch puts the traceback before the message
            raise DataError(str(error).splitlines()[-1].removeprefix(TOLD_BY)) from None
        except RuntimeError as error:
            if not str(error).startswith("DataLoader"):
                raise
            why = str(error).splitlines()[0]
            raise DataError(f"{data.material.name}: a data worker died or hung: {why}; try batch.workers=0") from None

    def state_dict(self) -> dict[str, int]:
        """Return `{"consumed": sequences}`."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after `state["consumed"]` sequences; takes effect at the next iteration."""
        self.consumed = int(state["consumed"])


class _Reader(Dataset[Row]):
    def __init__(self, split: Rows, seed: int) -> None:
        self.split, self.seed = split, seed

    def __getitem__(self, sample: Sample) -> Row:
        return _row(self.split, sample, self.seed)


class _HeldOut:
    """Makes a held-out micro-batch: fillers are left out, unless it has nothing else."""

    def __init__(self, collator: Collates) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> Batch:
        real = [row for row in rows if row.number >= 0]
        batch = self.collator(real or rows)
        return {**batch, "numbers": torch.tensor([row.number for row in real])} if real else {**batch, "filler": FILLER}


class _Steps:
    """Endless: what one rank reads in each step from a position on."""

    def __init__(self, plan: Plan, start: int, rank: int, world: int) -> None:
        self.plan, self.start, self.rank, self.world = plan, start, rank, world

    def __iter__(self) -> Iterator[Step]:
        position = self.start
        while True:
            step = self.plan.step(position, self.rank, self.world)
            yield step
            position = step.after


class _StepReader(Dataset[tuple[list[Batch], int]]):
    """Reads a step: its micro-batches, and the position after it."""

    def __init__(self, split: Rows, seed: int, collator: Collates) -> None:
        self.split, self.seed, self.collator = split, seed, collator

    def __getitem__(self, step: Step) -> tuple[list[Batch], int]:
        read = ([_row(self.split, sample, self.seed) for sample in batch] for batch in step.batches)
        return [self.collator(rows) for rows in read], step.after


def _as_it_is(step: Any) -> Any:
    return step


def _on_this_device(items: Iterable[Any]) -> Iterator[Any]:
    """Return the items, to be read by another thread: what it pins belongs to the device of the one that asks now."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def read() -> Iterator[Any]:
        if device is not None:
            torch.cuda.set_device(device)
        yield from items

    return read()


def _row(split: Rows, sample: Sample, seed: int) -> Row:
    number = -1 if sample.number is None else sample.number
    return Row(split.row(max(number, 0), seed, sample.epoch), seed, sample.epoch, number)
