"""What is shown is kept in log.txt, with the time and without secrets."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest

from mlplatform.errors import RunError
from mlplatform.runs.screen import Screen
from mlplatform.runs.secrets import Scrubber
from mlplatform.training.progress import Lines

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def test_lines_and_steps_are_shown_and_kept(tmp_path: Path) -> None:
    shown = io.StringIO()
    screen = Screen(Lines(shown), tmp_path / "log.txt", Scrubber(["/mnt/team"]))
    screen.say("reading /mnt/team/plays")
    screen.step(1, 0.5, {"train/loss": 2.5})
    screen.step(2, 1.0, {"train/loss": 2.25})
    screen.close()
    assert shown.getvalue().splitlines()[0] == "reading /mnt/team/plays"
    kept = (tmp_path / "log.txt").read_text().splitlines()
    assert all(re.match(STAMP, line) for line in kept)
    assert kept[0].endswith("reading ***/plays")
    assert "step=1 loss=2.5000" in kept[1]
    assert "step=2 loss=2.2500" in kept[2]


def test_the_librarys_warnings_are_shown_while_it_is_entered(tmp_path: Path) -> None:
    shown = io.StringIO()
    screen = Screen(Lines(shown), tmp_path / "log.txt", Scrubber())
    logger = logging.getLogger("mlplatform.data.tokens")
    with screen.warnings():
        logger.warning("%d bad rows left out", 2)
        logger.info("not shown")
    logger.warning("after")
    assert shown.getvalue() == "2 bad rows left out\n"
    assert (tmp_path / "log.txt").read_text().endswith("2 bad rows left out\n")


def test_a_session_adds_to_the_log_of_the_one_before(tmp_path: Path) -> None:
    for text in ("one", "two"):
        Screen(Lines(io.StringIO()), tmp_path / "log.txt", Scrubber()).say(text)
    assert [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["one", "two"]


def test_a_full_disk_is_one_line(full_disk: Path) -> None:
    (full_disk / "all").write_bytes(b"0" * ((2 << 20) - 4096))
    screen = Screen(Lines(io.StringIO()), full_disk / "log.txt", Scrubber())
    with pytest.raises(RunError, match=r"log\.txt: can't be written: No space left on device"):
        screen.say("x" * 100_000)
