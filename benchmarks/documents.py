"""Packed rows attended to document by document, beside one mask of the whole row, alternately in one process.

python benchmarks/documents.py

Time of a training step of a 17M Llama and of its attention alone, by processor time on one thread; then the memory of a
step. Documents of 30 to 300 tokens, other ones in every step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from measure import paired
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import mlplatform as mp
from mlplatform.blocks import attention, documents
from mlplatform.context import Context

VOCAB, ROWS, HEADS, LENGTHS = 4096, 2, 8, (256, 512, 1024, 2048)
SIZE = [
    f"trunk.input.vocab={VOCAB}",
    "trunk.dim=512",
    "trunk.depth=4",
    f"trunk.layer.attention.heads={HEADS}",
    f"trunk.layer.attention.kv_heads={HEADS}",
    "trunk.layer.mlp.width=1408",
]


def packed(length: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Return rows of documents, each cut where the row ends."""
    ids, places = (torch.zeros(ROWS, length, dtype=torch.long) for _ in range(2))
    for row in range(ROWS):
        start, number = 0, 0
        while start < length:
            size = min(length - start, int(torch.randint(30, 301, (), generator=draw)))
            number += 1
            ids[row, start : start + size], places[row, start : start + size] = number, torch.arange(size)
            start += size
    return {"document_ids": ids, "position_ids": places}


def with_mask(call: Callable[[], Any]) -> Any:
    """Run something where no documents are found, so that a mask of each row is made."""
    attention.documents_apart = lambda *_: None
    try:
        return call()
    finally:
        attention.documents_apart = documents.documents_apart


class Step:
    """Forward, loss and backward of a model, on the next batch at every second call: once each way."""

    def __init__(self, length: int, bf16: bool) -> None:
        self.model = mp.build("llama", [*SIZE, f"trunk.context_length={length}"]).train()
        self.length, self.bf16, self.calls, self.draw = length, bf16, 0, torch.Generator().manual_seed(0)

    def __call__(self) -> list[Tensor]:
        if self.calls % 2 == 0:
            tokens = torch.randint(0, VOCAB, (ROWS, self.length), generator=self.draw)
            self.batch = {"input_ids": tokens, "labels": tokens, **packed(self.length, self.draw)}
        self.calls += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(**self.batch, logits=False).loss
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.model.zero_grad(set_to_none=True)
        return [loss.detach(), *gradients]


class Attending(Step):
    """Forward and backward of the first layer's attention alone, without its projections."""

    def __call__(self) -> list[Tensor]:
        if self.calls % 2 == 0:
            dtype = torch.bfloat16 if self.bf16 else torch.float32
            shape = (4, ROWS, HEADS, self.length, 512 // HEADS)
            *self.qkv, self.grad = torch.randn(shape, generator=self.draw).to(dtype).unbind()
            self.ids = packed(self.length, self.draw)["document_ids"]
        self.calls += 1
        block: Any = self.model.get_submodule("trunk.layers.0.attention")
        context = Context(torch.arange(self.length)[None], documents=self.ids)
        q, k, v = (t.requires_grad_() for t in self.qkv)
        mixed = block.attended(q, k, v, context)
        return [mixed.detach(), *torch.autograd.grad(mixed, (q, k, v), self.grad)]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest, of each beside its largest number."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


def time_table(rounds: int) -> None:
    print("| what | precision | length | documents s | mask s | speed-up | differ by |\n|---|---|--:|--:|--:|--:|--:|")
    for name, kind in (("step", Step), ("attention", Attending)):
        for bf16 in (False, True):
            for length in LENGTHS:
                step = kind(length, bf16)
                differs = difference(step(), with_mask(step))
                ratio, ours, theirs = paired(step, partial(with_mask, step), rounds, time.process_time)
                cells = [name, "bf16" if bf16 else "fp32", str(length), f"{ours:.3f}", f"{theirs:.3f}"]
                print(f"| {' | '.join(cells)} | {ratio:.2f}x | {differs:.0e} |", flush=True)


def peak(call: Callable[[], object]) -> float:
    """Return the most megabytes of tensors alive at once in a call, above its start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events: Any = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes)) / 2**20


def memory_table() -> None:
    print("| length | documents MB | mask MB |\n|--:|--:|--:|")
    for length in LENGTHS:
        step = Step(length, bf16=False)
        step()
        with_mask(step)  # what is made once is made now
        ours, theirs = peak(step), peak(partial(with_mask, step))
        print(f"| {length} | {ours:.0f} | {theirs:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed rows, document by document and with one mask.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    documents.LONG = 1  # also where a mask is used for being no slower
    time_table(rounds)
    print()
    memory_table()


if __name__ == "__main__":
    main()
