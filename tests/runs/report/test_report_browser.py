"""Reports in Chromium: drawn, readable on a phone, in the dark and on paper, and nothing asked of the network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import SCRIPT, made, predictions, sweep

from mlplatform.runs.report.gather import gather
from mlplatform.runs.report.page import render

pytestmark = pytest.mark.browser
Visit = Callable[..., Any]
INK = """() => [...document.querySelectorAll('canvas')].map(canvas => {
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 200) seen.add(data[i] * 65536 + data[i + 1] * 256 + data[i + 2]);
  return seen.size;
})"""
WIDE = """(width) => [...document.querySelectorAll('main *')].filter(element =>
  element.getBoundingClientRect().right > width + 1 && !element.closest('.scroll, details:not([open])')
).map(element => element.outerHTML.slice(0, 80))"""
LINE = """(place) => {
  const canvas = document.querySelectorAll('canvas')[place];
  return canvas.toDataURL();
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's report, with a long name, pictures with boxes, sound and a text that would be a script."""
    from PIL import Image

    outputs = tmp_path_factory.mktemp("outputs")
    folders = sweep(outputs, config={"data": {"path": f"/a/very/long/place/{'x' * 120}{SCRIPT}"}})
    for folder in folders:
        (folder / "samples").mkdir()
        (folder / "samples" / "step=00000060.txt").write_text(f"ROMEO:\n{'o' * 300} {SCRIPT}")
        Image.new("RGB", (64, 48), "teal").save(folder / "a.png")
        box = {"category": "cat", "score": 0.9, "bbox": [4, 4, 20, 20]}
        line = {"number": 0, "image": str(folder / "a.png"), "objects": [box], "prediction": {"objects": [box]}}
        predictions(folder, [line, {"number": 1, "text": SCRIPT * 3, "prediction": {"label": "w" * 200}}])
    file = outputs / "report.html"
    file.write_text(render(gather(outputs, folders, SCRIPT)))
    return file


@pytest.mark.parametrize(
    ("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark"), (320, "light")]
)
def test_every_chart_is_drawn_and_nothing_overflows(visit: Visit, report: Path, width: int, scheme: str) -> None:
    page = visit(report, width, scheme)
    inks = page.evaluate(INK)
    assert len(inks) == 7
    assert all(ink >= 4 for ink in inks)  # a grid, labels, and at least two curves
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(WIDE, width)
    assert wide == []
    assert "stolen" not in page.title() or page.title().startswith("</script>")
    assert page.locator("main img").count() == 4
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in paper[4:-1].split(",")) < 200
    assert dark == (scheme == "dark")


def test_the_controls_change_what_is_drawn(visit: Visit, report: Path) -> None:
    page = visit(report)
    seen = {page.evaluate(LINE, 0)}

    def changed(act: Callable[[], Any]) -> bool:
        act()
        now = page.evaluate(LINE, 0)
        new = now not in seen
        seen.add(now)
        return new

    assert changed(lambda: page.locator("#logy").check())
    assert changed(lambda: page.locator("#logx").check())
    assert changed(lambda: page.locator("#over").select_option("tokens"))
    assert changed(lambda: page.locator("#over").select_option("time"))
    assert changed(lambda: page.locator("#smoothing").fill("0.95"))
    assert page.locator(".controls output").first.text_content() == "0.95"
    assert changed(lambda: page.locator("#legend button").first.click())
    assert page.locator("#legend button").first.get_attribute("aria-pressed") == "false"
    assert changed(lambda: page.locator("#theme").click())
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_cursor_reads_a_value(visit: Visit, report: Path) -> None:
    page = visit(report)
    box = page.locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    said = page.locator(".chart output").first.text_content()
    assert "lr=" in said
    step, value = said.rsplit("  ", 1)[1].split(": ")
    assert 20 <= int(step) <= 40
    assert 1.9 < float(value) < 7


def test_the_keyboard_reaches_everything(visit: Visit, report: Path) -> None:
    page = visit(report)
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:5] == ["theme", "smoothing", "over", "logx", "logy"]


def test_one_run_has_its_losses_together(visit: Visit, tmp_path: Path) -> None:
    folder = made(tmp_path, "2026-11-23_120000", steps=400)
    (tmp_path / "r.html").write_text(render(gather(tmp_path, [folder])))
    page = visit(tmp_path / "r.html")
    assert page.locator(".chart").count() == page.locator("canvas").count() == 6
    assert page.locator(".chart h3").first.text_content().startswith("loss train validation")


def test_smoothing_counts_its_memory_in_steps(visit: Visit, tmp_path: Path) -> None:
    """A curve that was thinned unevenly is smoothed as the whole one: here a constant with its points far apart."""
    folder = made(tmp_path, "2026-11-23_120000", steps=2)
    steps = [*range(1, 101), *range(200, 10_000, 200)]
    rows = [{"step": step, "train/loss": 3.0 if step <= 100 else 1.0} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.html").write_text(render(gather(tmp_path, [folder])))
    page = visit(tmp_path / "r.html")
    page.locator("#smoothing").fill("0.9")
    box = page.locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] - 40)
    value = float(page.locator(".chart output").first.text_content().rsplit(": ", 1)[1])
    memory = 0.9 ** (9700 / ((9800 - 1) / (len(steps) - 1)))
    assert value == pytest.approx(1 + 2 * memory, abs=1e-3)


def test_a_run_without_metrics_is_a_page_too(visit: Visit, tmp_path: Path) -> None:
    folder = made(tmp_path, "2026-11-23_120000", status="failed", error="RunError: no room", metrics={}, best=None)
    (folder / "metrics.jsonl").unlink()
    (tmp_path / "r.html").write_text(render(gather(tmp_path, [folder])))
    page = visit(tmp_path / "r.html")
    assert "Nothing was logged yet" in page.text_content("main")
    assert "RunError: no room" in page.text_content(".failure")


def test_it_prints_in_light_colours_with_two_charts_a_row(visit: Visit, report: Path, tmp_path: Path) -> None:
    page = visit(report, scheme="dark")
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert page.evaluate("document.documentElement.dataset.theme || ''") == ""  # as it was
    if shutil.which("pdftoppm") is None:
        return
    from PIL import Image

    command = ["pdftoppm", "-r", "40", "-f", "1", "-l", "1", "-png", str(tmp_path / "report.pdf"), str(tmp_path / "p")]
    subprocess.run(command, check=True)
    image = Image.open(next(tmp_path.glob("p-*.png"))).convert("RGB")
    assert image.getpixel((image.width - 4, 4)) == (255, 255, 255)
    blue = [x for x in range(image.width) for y in range(image.height) if _blue(image.getpixel((x, y)))]
    assert min(blue) < image.width / 3
    assert max(blue) > image.width * 2 / 3  # curves in both columns


def _blue(pixel: Any) -> bool:
    red, green, blue = pixel
    return blue > 150 and blue - red > 60 and blue - green > 40
