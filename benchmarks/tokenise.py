"""Tokenising a large text: MB a second, how many cores work, and the peak of memory against the size.

    python benchmarks/tokenise.py [--megabytes 70 140]

The text is Shakespeare's plays over and over, each copy with its words in another order of scenes, as JSON Lines; the
tokenizer, of 8,192 tokens, is trained on one copy. Memory is bounded when the larger text needs no more than the
smaller one: the peak is the sum of all processes' resident sizes, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import tempfile
import threading
import time
from pathlib import Path

import psutil

from mlplatform.data.files import SHIPPED
from mlplatform.data.sources import JSONLines
from mlplatform.data.tokens import tokenised
from mlplatform.processors.tokenizer import Tokenizer, train

VOCAB = 8192


def write(path: Path, scenes: list[str], megabytes: int) -> None:
    """Write scenes in random order, all of them before any again, until the file has its size."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1_000_000:
            for scene in draw.sample(scenes, len(scenes)):
                file.write(json.dumps({"text": scene}) + "\n")
                if file.tell() >= megabytes * 1_000_000:
                    break


class Watch(threading.Thread):
    """Samples the resident size of this process and its children together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.1):
            total = 0
            for one in (own, *own.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)


def worked() -> float:
    """Return the processor time of this process and of its children that have ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(tokenizer: Tokenizer, path: Path) -> str:
    """Tokenise a file into an empty cache; return a row of the table."""
    watch, before, began = Watch(), worked(), time.perf_counter()
    watch.start()
    store = tokenised(JSONLines(path=str(path), validation=0.01), tokenizer)
    seconds = time.perf_counter() - began
    watch.done.set()
    watch.join()
    size = path.stat().st_size / 1e6
    cores = (worked() - before) / seconds
    tokens = len(store.train) + len(store.validation)
    speed, memory = f"{size / seconds:.1f} | {cores:.2f}", f"{watch.peak / 1e6:.0f} MB"
    return f"| {size:.0f} MB | {tokens / 1e6:.1f} M | {seconds:.1f} s | {speed} | {memory} |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[70, 140])
    sizes = parser.parse_args().megabytes
    with gzip.open(SHIPPED / "shakespeare_38plays.txt.gz", "rt", encoding="utf-8") as file:
        scenes = file.read().split("\n\nSCENE ")
    tokenizer = train(scenes, VOCAB, "causal")
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} before")
    print("| text | tokens | time | MB/s | cores used | peak memory |\n|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLPLATFORM_CACHE"] = f"{folder}/cache"
        for size in sizes:
            path = Path(folder) / f"{size}.jsonl"
            write(path, scenes, size)
            print(measure(tokenizer, path), flush=True)


if __name__ == "__main__":
    main()
