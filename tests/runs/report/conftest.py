"""A real browser, without a window: Debian's Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return Chromium's path, installed where apt can. Skips where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update"], capture_output=True)
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "chromium"], capture_output=True)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("no Chromium, and apt-get can't install it here")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:  # a new profile folder, in a temporary place
        opened = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Return what opens a page; at the end there were no errors in its console and no request to anywhere else."""
    trouble: list[str] = []
    opened: list[Any] = []

    def go(where: Path | str, width: int = 1200, scheme: str = "light") -> Any:
        address = where if isinstance(where, str) else where.resolve().as_uri()
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda said: trouble.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        inside = ("file:", "data:") if address.startswith("file:") else (address.split("/", 3)[2],)
        page.on("request", lambda r: None if any(part in r.url for part in inside) else trouble.append(r.url))
        page.goto(address)
        opened.append(page)
        return page

    yield go
    for page in opened:
        page.close()
    assert trouble == []
