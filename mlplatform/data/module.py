"""The data of a run: the split of a source as batches, in an order that neither ranks nor workers change."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from mlplatform.data.collate import Batch, Collator, Row, trained_share
from mlplatform.data.order import GlobalBatches, Sample, in_turn
from mlplatform.data.packing import Rows, emptied, rows
from mlplatform.data.sources import Source
from mlplatform.data.tokens import Store, tokenised
from mlplatform.errors import DataError, SpecError
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Natural, Positive, Spec, block

log = logging.getLogger(__name__)
ENDLESS = 2**31 - 1
"""The length a train loader states. Lightning reads one batch ahead of a loader without a length, and the state would
then count a batch that was not trained on."""


@block("batch/rows")
class BatchShape:
    """How many sequences go into one optimizer step, and how they are laid out.

    Args:
        sequences: sequences of one optimizer step, over all ranks and micro-batches.
        micro: sequences of one forward pass of one rank, at most.
        length: tokens of a sequence, at most.
        layout: `packed` puts documents one after the other and keeps them apart by `document_ids`; `padded` gives each
            document its own rows.
        workers: processes that read ahead; 0 reads in the training process.
        timeout: seconds after which a silent worker is an error.
    """

    def __init__(
        self,
        *,
        sequences: Positive = 32,
        micro: Positive = 8,
        length: Positive = 256,
        layout: Literal["packed", "padded"] = "packed",
        workers: Natural = 0,
        timeout: Positive = 300,
    ) -> None:
        if length < 8:
            raise SpecError(f"length={length} is too short for a sequence; 8 tokens are the least")
        self.sequences, self.micro, self.length, self.layout = sequences, micro, length, layout
        self.workers, self.timeout = workers, timeout


class DataModule(L.LightningDataModule):
    """Train and validation batches of one source.

    An item of the train loader is all one rank does in one optimizer step: a list of micro-batches. An item of the
    validation loader is one micro-batch. The keys of a batch are those of collate.py.

    Args:
        data: the source. batch: a `batch` spec. collator: the task's, from `task.collator(tokenizer, length)`.
        seed: orders the samples. rank, world: which part of each global batch is this process's.
    """

    def __init__(
        self,
        data: Spec | Source,
        tokenizer: Tokenizer,
        batch: Spec,
        collator: Collator,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        super().__init__()
        self.source: Source = data.build() if isinstance(data, Spec) else data
        self.tokenizer, self.collator, self.seed, self.rank, self.world = tokenizer, collator, seed, rank, world
        self.shape: BatchShape = batch.build()
        if self.shape.sequences % world:
            told = f"{batch.path or 'batch'}.sequences={self.shape.sequences} is not a multiple of the {world} ranks"
            raise SpecError(f"{told}; the next is {-(-self.shape.sequences // world) * world}")
        self.store: Store | None = None
        self.loader: TrainLoader | None = None

    def setup(self, stage: str | None = None) -> None:
        """Tokenise the source, or find its tokens in the cache, and lay both splits out as rows.

        Raises:
            DataError: unreadable data, an empty split, too little text, or rows with no (or only) targets.
        """
        if self.store is not None:
            return
        store = tokenised(self.source, self.tokenizer)
        if store.skipped:
            log.warning("%d bad rows left out: %s", sum(store.skipped.values()), store.skipped)
        shape, filler = self.shape, self.tokenizer.filler
        layout = (shape.layout, shape.length, self.collator.overlap, filler)
        self.train_rows, self.validation_rows = rows(store.train, *layout), rows(store.validation, *layout)
        self.loader = TrainLoader(self)
        self.store = store
        trained_share(self.first_rows(min(32, len(self.train_rows))))

    def first_rows(self, count: int) -> Batch:
        """Return the first `count` rows of training as one micro-batch."""
        batch = GlobalBatches(len(self.train_rows), count, self.seed, 0, 1)
        return self.collator([_row(self.train_rows, sample, self.seed) for sample in next(iter(batch))])

    def train_dataloader(self) -> TrainLoader:
        """Return the endless loader of optimizer steps; the same one each time, so that its state lasts."""
        self.setup()
        assert self.loader is not None
        return self.loader

    def val_dataloader(self) -> list[Any] | DataLoader[Batch]:
        """Return the loader of this rank's validation micro-batches, in fixed order; none without such a split."""
        self.setup()
        count = len(self.validation_rows)
        if count == 0:
            return []
        turns = in_turn(count, self.shape.micro, self.rank, self.world)
        reader = _Reader(self.validation_rows, 0)
        return DataLoader(
            reader,
            batch_sampler=turns,  # type: ignore[arg-type]
            collate_fn=self.collator,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    @property
    def samples_per_epoch(self) -> int:
        """Sequences in one epoch; `sequences` of them make one optimizer step."""
        self.setup()
        return len(self.train_rows)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text a train token stands for on average: bits per byte = loss / ln 2 / this."""
        self.setup()
        assert self.store is not None
        return self.store.train.bytes / (len(self.store.train) - self.store.train.documents)

    def record(self) -> dict[str, Any]:
        """Return what the run record keeps about the data."""
        self.setup()
        assert self.store is not None
        splits = {
            name: {"documents": split.documents, "tokens": len(split), "bytes": split.bytes}
            for name, split in (("train", self.store.train), ("validation", self.store.validation))
        }
        return {
            **splits,
            "samples_per_epoch": self.samples_per_epoch,
            "bytes_per_token": round(self.bytes_per_token, 4),
            "vocabulary": self.tokenizer.vocab_size,
            "fingerprint": self.source.fingerprint(),
            "skipped_rows": self.store.skipped,
            "cache": str(self.store.folder),
        }

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
        order = GlobalBatches(
            len(data.train_rows), shape.sequences, data.seed, data.rank, data.world, start=self.consumed
        )
        loader = DataLoader(
            _Reader(data.train_rows, data.seed),
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=_MicroBatches(data.collator, shape.micro),
            num_workers=shape.workers,
            timeout=shape.timeout if shape.workers else 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, so that starting a loader draws nothing from the run's generator
        )
        try:
            for step in loader:
                self.consumed += shape.sequences
                yield step
        except RuntimeError as error:
            if not str(error).startswith("DataLoader"):
                raise
            why = str(error).splitlines()[0]
            raise DataError(f"{data.source.name}: a data worker died or hung: {why}; try batch.workers=0") from None

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


class _MicroBatches:
    def __init__(self, collator: Collator, micro: int) -> None:
        self.collator, self.micro = collator, micro

    def __call__(self, step: list[Row]) -> list[Batch]:
        return [self.collator(step[i : i + self.micro]) for i in range(0, len(step), self.micro)]


def _row(split: Rows, sample: Sample, seed: int) -> Row:
    if sample.number is None:
        return Row(emptied(split.row(0, seed, 0), split.filler), seed, sample.epoch, -1)
    return Row(split.row(sample.number, seed, sample.epoch), seed, sample.epoch, sample.number)
