"""Loading a checkpoint of some 500 MB beside transformers' from_pretrained: time, and the peak resident size.

python benchmarks/load.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SIZE = ["trunk.dim=1024", "trunk.depth=9", "trunk.layer.attention.heads=16", "trunk.layer.attention.kv_heads=16"]
SIZE += ["trunk.layer.mlp.width=2816", "trunk.input.vocab=4096", "heads.lm.tied=true"]
CHILD = """
import sys, time
which, folder = sys.argv[1:]
import torch
torch.set_num_threads(2)
if which == "ours":
    import mlplatform as mp
    import mlplatform.interop, mlplatform.models
else:
    import transformers
    transformers.LlamaForCausalLM
sys.path.insert(0, {here!r})
from measure import PeakMemory
with PeakMemory() as memory:
    start = time.perf_counter()
    model = mp.load(folder) if which == "ours" else transformers.LlamaForCausalLM.from_pretrained(folder)
    total = sum(p.double().sum().item() for p in model.parameters())  # touch every page
    seconds = time.perf_counter() - start
print(seconds, memory.above, total)
"""


def one(which: str, folder: str) -> tuple[float, float, float]:
    """Load in a fresh process; return (seconds, bytes above the start, checksum)."""
    code = CHILD.format(here=str(Path(__file__).parent))
    out = subprocess.run([sys.executable, "-c", code, which, folder], check=True, capture_output=True, text=True).stdout
    seconds, above, total = (float(word) for word in out.split()[-3:])
    return seconds, above, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    import mlplatform as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.save(mp.build("llama", SIZE), folder)
        size = sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))
        one("ours", folder), one("theirs", folder)  # the file is in the page cache from here on, for both
        pairs = [(one("ours", folder), one("theirs", folder)) for _ in range(rounds)]
    if any(own[2] != other[2] for own, other in pairs):
        raise SystemExit("the two loaded different weights")
    speed = statistics.median(other[0] / own[0] for own, other in pairs)
    print(f"checkpoint {size / 2**20:.0f} MB; loading is {speed:.2f}x as fast as from_pretrained")
    for name, which in (("ours", 0), ("theirs", 1)):
        seconds = statistics.median(pair[which][0] for pair in pairs)
        above = statistics.median(pair[which][1] for pair in pairs)
        print(
            f"{name:7} {seconds:6.2f} s   peak above start {above / 2**20:6.0f} MB, {above / size:.2f}x the weights"
        )


if __name__ == "__main__":
    main()
