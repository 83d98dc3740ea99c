"""Error rates on a run's own held-out recordings without training: the bar for a recipe that transcribes.

    python scripts/transcript_baselines.py OVERRIDES

The overrides are those of `mlplatform train`: `recipes=wav2vec2_digits`. Beside what was said stand

    constant   the one transcript to train on that has the fewest word errors over 200 of them
    nearest    the transcript of the recording to train on whose log-mel spectrogram, 24 frames long, is nearest
    start      what the weights of `init_from` say, where a decoder writes: as it is, and with numerals read as words
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence

import jiwer
import numpy as np
import torch
from held_out import call
from numpy.typing import NDArray

from mlplatform.cli.compose import compose
from mlplatform.cli.pretrained import with_sources
from mlplatform.data.records import Record
from mlplatform.data.sets.sound import WORDS, ordinal
from mlplatform.data.sound import at_rate
from mlplatform.processors.audio import log_mel, mel_filters
from mlplatform.registry import Spec
from mlplatform.tasks.transcripts import plain

RATE, FRAMES, JUDGES = 16000, 24, 200


def constant(train: Sequence[str]) -> str:
    """Return the transcript with the fewest word errors, of some and over some."""
    judges = list(train[:JUDGES])
    return min(sorted(set(judges)), key=lambda one: jiwer.wer(judges, [one] * len(judges)))


def pictures(records: Sequence[Record]) -> NDArray[np.float32]:
    """Return the log-mel spectrogram of each recording, 24 frames long, with mean 0 and length 1."""
    filters = torch.from_numpy(mel_filters(40, 400, RATE)).float()
    found = []
    for record in records:
        wave = torch.from_numpy(at_rate(record["audio"], RATE))
        seen = log_mel(torch.nn.functional.pad(wave, (400, 400))[None], filters, 400, 160)
        seen = torch.nn.functional.interpolate(seen, FRAMES, mode="linear").flatten()
        found.append(torch.nn.functional.normalize(seen - seen.mean(), dim=0).numpy())
    return np.stack(found)


def nearest(train: Sequence[Record], held_out: Sequence[Record]) -> list[str]:
    """Return the transcript of each held-out recording's nearest one."""
    best = (pictures(held_out) @ pictures(train).T).argmax(1)
    return [plain(train[number]["text"]) for number in best.tolist()]


def numerals_read(text: str) -> str:
    """Return a text with numbers to 99 as words: `20th` -> `twentieth`."""

    def words(found: re.Match[str]) -> str:
        number, place = int(found[1]), ordinal if found[2] else str
        if number in WORDS:
            return place(WORDS[number])
        return f"{WORDS[number - number % 10]} {place(WORDS[number % 10])}"

    return re.sub(r"\b(\d\d?)(st|nd|rd|th)?\b", words, text)


def of_run(overrides: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return what is said in each held-out recording of a run's config, and what each baseline says."""
    result = compose("train", list(overrides)).check()
    with result.located():
        experiment = Spec.of(with_sources(result.config), "run").build()
        data = experiment.prepare(experiment.check())
    train, held_out = data.records("train"), data.records("validation")
    wanted = [plain(record["text"]) for record in held_out]
    known = [plain(record["text"]) for record in train]
    said = {"constant": [constant(known)] * len(wanted), "nearest": nearest(train, held_out)}
    if experiment.init_from is not None and experiment.task.kind == "speech_seq2seq":
        task = experiment.build_task(experiment.build_model()).eval()
        task.settle(experiment.tools, held_out)
        written: list[str] = []
        with torch.no_grad():
            for batch in data.held_out("validation"):
                written += [plain(text) for text in task.transcripts(batch, task.scored(batch))]
        said |= {"start": written, "start, read": [numerals_read(text) for text in written]}
    return wanted, said


def report(overrides: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Print the table."""
    wanted, said = of_run(overrides)
    say(f"{len(wanted)} held-out recordings\nbaseline     WER    CER")
    for name, texts in said.items():
        say(f"{name:11}  {jiwer.wer(wanted, texts):.3f}  {jiwer.cer(wanted, texts):.3f}")


if __name__ == "__main__":
    sys.exit(call(report, sys.argv[1:]))
