"""A sweep's folder, `outputs/<name>/`: beside the runs of its trials, what the sweep is and what came of it.

sweep.json      what was typed, the space, how many trials, the jobs; overrides and space never change
code/           the code it was begun with, which every trial runs
study.db        the study (study.journal for jobs); trials.jsonl: a line for each trial that ended
logs/           what the trials' processes said; workers/: what the jobs said; job.sh: what they are
summary.txt     what came of it, once all trials have ended
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.runs.config_file import private_file
from mlplatform.runs.folder import write_whole
from mlplatform.runs.secrets import MASK, Scrubber

FILE, SUMMARY = "sweep.json", "summary.txt"


def make(folder: Path) -> None:
    """Make the folder of a new sweep. Raises RunError when another one has it, or it can't be made."""
    if (folder / FILE).exists():
        told_apart = f"mlplatform sweep --continue {folder}, or set experiment= to a new name"
        raise RunError(f"{folder}: holds a sweep already; go on with it: {told_apart}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: can't be made: {error.strerror}; set outputs= to another place") from None


def find(name: str, outputs: Path) -> Path | None:
    """Return the folder of a sweep by its path or its name; None when it is no sweep's."""
    return next((p for p in (Path(name), outputs / name) if (p / FILE).is_file()), None)


def told(folder: Path) -> dict[str, Any]:
    """Return what a sweep is, with the masked words as this user's cache has them.

    Raises:
        RunError: it can't be read.
    """
    known = _shown(folder)
    if any(word.endswith(f"={MASK}") for word in known["overrides"]):
        with contextlib.suppress(OSError, ValueError):
            known["overrides"] = json.loads(private_file(folder).read_text(encoding="utf-8"))
    return known


def tell(folder: Path, **changes: Any) -> None:
    """Change what a sweep's folder says of it; secrets among its overrides go to the user's cache."""
    if "overrides" in changes:
        words, shown = changes["overrides"], Scrubber().words(changes["overrides"])
        if words != shown:
            private_file(folder).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(private_file(folder), json.dumps(words), mode=0o600)
        changes = {**changes, "overrides": shown}
    before = _shown(folder) if (folder / FILE).exists() else {}
    write_whole(folder / FILE, json.dumps({**before, **changes}, indent=1) + "\n")


def _shown(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / FILE}: can't be read: {error}") from None
