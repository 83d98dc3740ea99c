"""The baselines of written and preferred texts: n-grams by hand, the nearest source, and a run's own records."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = "text_baselines.py"
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # it stands beside what it imports


def test_character_logs_are_witten_bells(script: ModuleType) -> None:
    known, texts = ["abab", "ba"], ["ab", "", "bb"]
    letters, ends = 3, "|"
    pairs: dict[str, Counter[str]] = {}
    for text in known:
        for before, letter in zip("<" + text, text + ends, strict=True):
            pairs.setdefault(before, Counter())[letter] += 1
    alone = Counter("".join(text + ends for text in known))
    wanted = []
    for text in texts:
        total = 0.0
        for before, letter in zip("<" + text, text + ends, strict=True):
            p = (alone[letter] + len(alone) / letters) / (alone.total() + len(alone))
            if seen := pairs.get(before):
                p = (seen[letter] + len(seen) * p) / (seen.total() + len(seen))
            total += math.log(p)
        wanted.append(total)
    assert script.character_logs(known, texts, 2) == pytest.approx(wanted)


def rows(folder: Path, *rows: dict[str, str]) -> str:
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_is_written_without_a_model(script: ModuleType, tmp_path: Path) -> None:
    train = rows(tmp_path, {"source": "save the page", "target": "uno"}, {"source": "delete it", "target": "dos tres"})
    held = rows(tmp_path, {"source": "delete it now", "target": "dos tres"})
    said: list[str] = []
    data = ["data=json_rows", f"data.path={train}", f"data.validation={held}"]
    script.written([*data, "model=t5_tiny", "tokenizer=sentinel_bpe", "task=seq2seq"], said.append)
    assert said[0].split()[:3] == ["1", "records", "held"]
    assert [line.split()[-1] for line in said[1:]] == ["0.000", "0.000", "1.000"]


def test_what_is_preferred_without_a_model(script: ModuleType, tmp_path: Path) -> None:
    train = rows(tmp_path, *({"chosen": f"abab{'ab' * n}", "rejected": "b"} for n in range(9)))
    held = rows(tmp_path, {"chosen": "abab", "rejected": "aabb"}, {"chosen": "abab", "rejected": "babab"})
    said: list[str] = []
    script.preferred(
        ["data=json_rows", f"data.path={train}", f"data.validation={held}", "task=preference"], said.append
    )
    assert [line.split()[-1] for line in said[1:]] == ["0.250", "1.000", "1.000"]
