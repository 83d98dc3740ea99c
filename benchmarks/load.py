"""Loading a checkpoint of some 500 MB beside transformers' from_pretrained: time, and the peak resident size.

    python benchmarks/load.py

Each load is a fresh process: from its start to the weights in place (what a user waits for), the call alone with
everything imported, and the peak of the resident size above what it was before the call.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SIZE = ["trunk.dim=1024", "trunk.depth=9", "trunk.layer.attention.heads=16", "trunk.layer.attention.kv_heads=16"]
SIZE += ["trunk.layer.mlp.width=2816", "trunk.input.vocab=4096", "heads.lm.tied=true"]
OURS = """
import sys
import mlplatform as mp
import mlplatform.interop, mlplatform.models, mlplatform.cli.pretrained
load = mp.load
"""
THEIRS = """
import sys
from transformers import LlamaForCausalLM
load = LlamaForCausalLM.from_pretrained
"""
REST = """
import math, time
sys.path.insert(0, sys.argv[1])
from measure import PeakMemory
with PeakMemory() as memory:
    start = time.perf_counter()
    model = load(sys.argv[2])
    pages = [p.detach().flatten()[::1024].sum().item() for p in model.parameters()]  # every page of the weights
    seconds = time.perf_counter() - start
print(seconds, memory.above, math.fsum(pages))
"""


class Load(NamedTuple):
    process: float
    call: float
    above: float
    checksum: float


def one(code: str, folder: str) -> Load:
    """Load in a fresh process."""
    start = time.perf_counter()
    command = [sys.executable, "-c", code + REST, str(Path(__file__).parent), folder]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    call, above, checksum = (float(word) for word in out.split()[-3:])
    return Load(time.perf_counter() - start, call, above, checksum)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    import mlplatform as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.save(mp.build("llama", SIZE), folder)
        size = sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))
        one(OURS, folder), one(THEIRS, folder)  # from here on the file is in the page cache, for both
        pairs = [(one(OURS, folder), one(THEIRS, folder)) for _ in range(rounds)]
    if any(own.checksum != other.checksum for own, other in pairs):
        raise SystemExit("the two loaded different weights")
    print(f"checkpoint {size / 2**20:.0f} MB      process     call   peak above start")
    for name, which in (("ours", 0), ("from_pretrained", 1)):
        middle = [statistics.median(pair[which][field] for pair in pairs) for field in range(3)]
        print(f"{name:18} {middle[0]:8.2f} s {middle[1]:6.2f} s   {middle[2] / size:5.2f}x the weights")
    speed = [statistics.median(other[field] / own[field] for own, other in pairs) for field in (0, 1)]
    print(f"ours is {speed[0]:.2f}x as fast from the start of the process, {speed[1]:.2f}x for the call alone")


if __name__ == "__main__":
    main()
