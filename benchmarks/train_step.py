"""One training step of a 30M Llama beside transformers' LlamaForCausalLM: same weights, batch, precision, optimizer.

python benchmarks/train_step.py            # time, one and two threads, fp32 and bf16-mixed
python benchmarks/train_step.py --memory   # memory of a step above its start, each in a process of its own
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile

import torch
from measure import PeakMemory, paired

import mlplatform as mp

VOCAB, LENGTH, ROWS = 32000, 512, 4
SIZE = [
    f"trunk.input.vocab={VOCAB}",
    "trunk.dim=384",
    "trunk.depth=6",
    f"trunk.context_length={LENGTH}",
    "trunk.layer.attention.heads=6",
    "trunk.layer.attention.kv_heads=6",
    "trunk.layer.mlp.width=1024",
]


def models(folder: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return our model and transformers' with the same weights, through a folder of Hugging Face's format."""
    import transformers

    ours = mp.build("llama", SIZE)
    mp.save(ours, folder)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    return ours.train(), theirs.train()


class Step:
    """Forward, loss, backward, AdamW."""

    def __init__(self, model: torch.nn.Module, precision: str, options: dict[str, bool]) -> None:
        self.model, self.bf16, self.options = model, precision == "bf16-mixed", options
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.batch = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))

    def __call__(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(input_ids=self.batch, labels=self.batch, **self.options).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def time_table(rounds: int) -> None:
    print(f"{'precision':12} {'threads':>7} {'ours s':>8} {'theirs s':>8} {'speed-up':>9} {'loss differs by':>16}")
    for precision in ("fp32", "bf16-mixed"):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with tempfile.TemporaryDirectory() as folder:
                ours, theirs = models(folder)
            own, other = Step(ours, precision, {"logits": False}), Step(theirs, precision, {})
            difference = abs(own() - other())
            own(), other()
            ratio, own_s, other_s = paired(own, other, rounds)
            print(
                f"{precision:12} {threads:7} {own_s:8.2f} {other_s:8.2f} {ratio:8.2f}x {difference:16.1e}", flush=True
            )


def memory_of(which: str, precision: str) -> int:
    """Return the bytes one step takes above its start (optimizer states already there)."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = models(folder)
    step = Step(ours, precision, {"logits": False}) if which == "ours" else Step(theirs, precision, {})
    del ours, theirs
    step()
    with PeakMemory() as memory:
        step()
    return memory.above


def memory_table(rounds: int) -> None:
    print(f"{'precision':12} {'ours MB':>8} {'theirs MB':>10} {'ratio':>6}")
    for precision in ("fp32", "bf16-mixed"):
        sizes: dict[str, list[int]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for which, found in sizes.items():
                command = [sys.executable, __file__, "--one", which, precision]
                found.append(
                    int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
                )
        ratio = statistics.median(a / b for a, b in zip(sizes["ours"], sizes["theirs"], strict=True))
        own, other = (statistics.median(sizes[w]) / 2**20 for w in ("ours", "theirs"))
        print(f"{precision:12} {own:8.0f} {other:10.0f} {ratio:5.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(memory_of(*arguments.one))
    elif arguments.memory:
        memory_table(min(arguments.rounds, 3))
    else:
        time_table(arguments.rounds)


if __name__ == "__main__":
    main()
