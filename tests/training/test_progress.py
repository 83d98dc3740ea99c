"""Plain lines off a terminal, a bar on one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mlplatform.training.progress import Bar, Lines, Pace, display, duration

VALUES = {"train/loss": 2.34567, "train/lr": 0.00031234, "perf/tokens_per_second": 8123.4}


def test_a_line_every_five_seconds_and_at_both_ends() -> None:
    clock, out = [0.0], io.StringIO()
    lines = Lines(out, lambda: clock[0])
    for step in range(1, 41):
        clock[0] = step * 1.0
        lines.step(step, step / 40, VALUES)
    written = out.getvalue().splitlines()
    assert [line.split()[0] for line in written] == [f"step={n}" for n in (1, 6, 11, 16, 21, 26, 31, 36, 40)]
    assert written[0] == "step=1 loss=2.3457 lr=0.000312 tok/s=8123 eta=?"
    assert written[1] == "step=6 loss=2.3457 lr=0.000312 tok/s=8123 eta=34s"
    assert written[-1].endswith("eta=0s")


def test_what_is_not_known_yet_is_left_out() -> None:
    out = io.StringIO()
    Lines(out).step(1, 0.1, {"train/loss": 1.0})
    assert out.getvalue() == "step=1 loss=1.0000 eta=?\n"


def test_the_estimate_counts_from_where_this_session_began() -> None:
    clock = [50.0]
    pace = Pace(lambda: clock[0])
    assert pace.eta(0.5) is None  # resumed half way
    clock[0] = 60.0
    assert pace.eta(0.6) == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0, "0s"), (59.6, "1m00s"), (125, "2m05s"), (12_000, "3h20m"), (187_200, "2d04h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    bar = Bar(Console(file=out, force_terminal=True, width=120, color_system=None))
    bar.step(1, 0.25, VALUES)
    bar.say("step=1 validation: loss=[2.0]")
    bar.step(2, 0.5, VALUES)
    bar.close()
    shown = out.getvalue()
    assert "step=1 validation: loss=[2.0]" in shown  # not taken for markup
    assert "50% step=2 loss=2.3457 lr=0.000312 tok/s=8123" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_chooses_by_the_stream() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(display(io.StringIO()), Lines)
    assert isinstance(display(Terminal()), Bar)
