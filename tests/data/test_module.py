from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import lightning as L
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

from mlplatform.data.collate import IGNORED, Batch, NextToken, Row
from mlplatform.data.material import DocumentMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.sources import JSONLines, Source
from mlplatform.errors import DataError
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Spec

Make = Callable[..., DataModule]


def _steps(module: DataModule, count: int) -> list[list[Batch]]:
    return list(islice(iter(module.train_dataloader()), count))


def _global(modules: list[DataModule], count: int) -> list[list[list[int]]]:
    """Return the token rows of each global batch, ranks in order."""
    ranks = [_steps(module, count) for module in modules]
    return [
        [row for rank in ranks for micro in rank[step] for row in micro["input_ids"].tolist()] for step in range(count)
    ]


def test_an_item_is_one_optimizer_step_in_micro_batches(make_module: Make) -> None:
    for world, micro, expected in [(1, 2, [2, 2, 2, 2]), (2, 3, [3, 1]), (4, 8, [2])]:
        step = _steps(make_module(1 % world, world, micro=micro), 1)[0]
        assert [len(batch["input_ids"]) for batch in step] == expected
        assert set(step[0]) == {"input_ids", "labels", "document_ids", "position_ids"}
    assert set(_steps(make_module(layout="padded"), 1)[0][0]) == {"input_ids", "labels", "attention_mask"}


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_global_batches_do_not_depend_on_ranks_or_workers(make_module: Make, layout: str) -> None:
    def unpadded(batches: list[list[list[int]]]) -> list[list[list[int]]]:
        return [[[i for i in row if i != 2] for row in batch] for batch in batches]  # 2 is the pad token

    alone = unpadded(_global([make_module(layout=layout)], 12))
    for world, workers in [(1, 2), (2, 0), (2, 2), (4, 0)]:
        modules = [make_module(rank, world, layout=layout, workers=workers) for rank in range(world)]
        assert unpadded(_global(modules, 12)) == alone
    assert unpadded(_global([make_module(layout=layout, seed=4)], 12)) != alone


@pytest.mark.parametrize(("before", "after"), [((1, 0), (1, 0)), ((1, 2), (1, 0)), ((2, 0), (4, 0)), ((4, 0), (1, 2))])
def test_resume_in_the_middle_of_an_epoch_is_exact(
    make_module: Make, before: tuple[int, int], after: tuple[int, int]
) -> None:
    undisturbed = make_module()
    steps = undisturbed.samples_per_epoch // 8 + 4  # into the second epoch
    expected = _global([undisturbed], steps)

    def modules(world: int, workers: int) -> list[DataModule]:
        return [make_module(rank, world, workers=workers) for rank in range(world)]

    first = modules(*before)
    taken = _global(first, 5)
    states = [module.state_dict() for module in first]
    assert states == [{"consumed": 40}] * before[0]
    second = modules(*after)
    for module in second:
        module.load_state_dict(states[0])
    assert taken + _global(second, steps - 5) == expected


def test_an_epoch_holds_every_row_once(make_module: Make) -> None:
    module = make_module(sequences=1, micro=1)
    count = module.samples_per_epoch
    rows = [tuple(step[0]["input_ids"][0].tolist()) for step in _steps(module, count)]
    expected = [tuple(module.train_rows.row(n, 3, 0)["input_ids"].tolist()) for n in range(count)]
    assert sorted(rows) == sorted(expected)
    assert rows != expected


def test_starting_a_loader_draws_nothing_from_the_runs_generator(make_module: Make) -> None:
    module = make_module()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    _steps(module, 2)
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


class Counting(L.LightningModule):
    """Notes what the loader's state is when a step ends, which is when checkpoints are written."""

    def __init__(self, data: DataModule) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.data, self.states, self.validated = data, [], 0

    def training_step(self, step: list[Batch], index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        (self.weight * step[0]["input_ids"].sum()).backward()
        optimizer.step()

    def on_train_batch_end(self, *_: Any) -> None:
        self.states.append(self.data.state_dict()["consumed"])

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning")
def test_under_lightning_the_state_counts_trained_batches_only(make_module: Make, workers: int) -> None:
    data = make_module(workers=workers)
    model = Counting(data)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_steps=6,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accelerator="cpu",
        use_distributed_sampler=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, datamodule=data)
    assert model.states == [8, 16, 24, 32, 40, 48]
    assert model.validated == 2 * len(list(data.val_dataloader()))


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_counts_every_byte_once_for_any_ranks(
    make_module: Make, source: Source, layout: str, world: int
) -> None:
    sums = []
    for rank in range(world):
        module = make_module(rank, world, sequences=6, layout=layout)
        batches = list(module.val_dataloader())
        real = [b for b in batches if "filler" not in b]
        sums.append([len(batches), sum(int(b["num_bytes"]) for b in real), sum(_targets(b) for b in real)])
        assert [b["input_ids"].tolist() for b in batches] == [b["input_ids"].tolist() for b in module.val_dataloader()]
    held_out = [d.text for d in source.documents() if d.validation]
    assert len({batches for batches, _, _ in sums}) == 1
    assert sum(size for _, size, _ in sums) == sum(len(text.encode()) for text in held_out)
    encoded = [module.tokenizer.encode(text, specials=False) for text in held_out]
    assert sum(targets for _, _, targets in sums) == sum(len(ids) + 1 for ids in encoded)


def _targets(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != IGNORED).sum())  # as a causal head counts them


def test_bits_per_byte_of_a_known_model(make_module: Make, source: Source) -> None:
    """A model that gives each token 1/400 costs log2(400) bits a token; the bytes are the held-out text's."""
    module = make_module()
    loss = size = 0.0
    for batch in module.val_dataloader():
        logits = torch.zeros(*batch["input_ids"].shape, 400)
        labels = batch["labels"][:, 1:].flatten()
        loss += float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="sum"))
        size += int(batch["num_bytes"])
    held_out = [d.text for d in source.documents() if d.validation]
    tokens = sum(len(module.tokenizer.encode(text, specials=False)) + 1 for text in held_out)
    expected = tokens * math.log2(400) / sum(len(text.encode()) for text in held_out)
    assert loss / math.log(2) / size == pytest.approx(expected, rel=1e-6)


def test_bytes_are_counted_whatever_a_tokenizer_drops(source: Source, scenes: list[str]) -> None:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator(scenes, trainer)
    roles = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]"}
    tokenizer = Tokenizer(backend, roles, "wordpiece", {})
    shape = Spec.of({"kind": "rows", "length": 32}, "batch", "batch")
    module = DataModule(DocumentMaterial(source, tokenizer), shape, NextToken(tokenizer.filler), 0, 0, 1)
    counted = sum(int(batch["num_bytes"]) for batch in module.val_dataloader())
    assert counted == sum(len(d.text.encode()) for d in source.documents() if d.validation)


def test_without_a_validation_split_there_is_no_loader(source: Source, bpe: Tokenizer) -> None:
    whole = JSONLines(path=str(source.files[0]), validation=0.0)
    shape = Spec.of({"kind": "rows", "length": 32}, "batch", "batch")
    module = DataModule(DocumentMaterial(whole, bpe), shape, NextToken(bpe.filler), 0, 0, 1)
    assert module.val_dataloader() == []
    assert module.record()["validation"] == {"documents": 0, "tokens": 0, "bytes": 0}


def test_bytes_per_token_and_the_record(make_module: Make, source: Source) -> None:
    module = make_module()
    texts = list(source.train_texts())
    targets = sum(len(module.tokenizer.encode(text, specials=False)) + 1 for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert module.material.bytes_per_token == pytest.approx(size / targets)
    record = module.record()
    assert record["train"] == {"documents": len(texts), "tokens": targets + len(texts), "bytes": size}
    assert record["fingerprint"] == source.fingerprint()
    assert record["samples_per_epoch"] == module.samples_per_epoch


class Dies(NextToken):
    """A task whose worker is killed, as by the system when memory runs out."""

    def __call__(self, rows: list[Row]) -> Batch:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows)


class Hangs(NextToken):
    """A task whose worker never answers."""

    def __call__(self, rows: list[Row]) -> Batch:
        if torch.utils.data.get_worker_info() is not None:
            time.sleep(600)
        return super().__call__(rows)


@pytest.mark.parametrize("collator", [Dies, Hangs])
def test_a_worker_that_dies_or_hangs_is_told_with_the_source(
    source: Source, bpe: Tokenizer, collator: type[NextToken]
) -> None:
    shape = Spec.of({"kind": "rows", "length": 32, "workers": 1, "timeout": 2}, "batch", "batch")
    module = DataModule(DocumentMaterial(source, bpe), shape, collator(bpe.filler), 0, 0, 1)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"^rows\.jsonl: a data worker died or hung: DataLoader .*batch\.workers=0$"):
        _steps(module, 1)
    assert time.monotonic() - started < 30
