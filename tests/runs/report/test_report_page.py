"""The file itself: small, whole, escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

from made_runs import SCRIPT, made, predictions, sweep

from mlplatform.cli.main import main
from mlplatform.runs.report.gather import gather
from mlplatform.runs.report.page import figure, mean, render
from mlplatform.runs.report.seeds import Mean


def test_nothing_a_stranger_wrote_can_run(tmp_path: Path) -> None:
    """Two guards: every text is escaped, and the policy runs the page's own two scripts by their hashes."""
    evil = {"config": {"data": {"path": SCRIPT}}, "argv": ["mlplatform", "train", f"data.path={SCRIPT}"]}
    one = made(tmp_path, "2026-11-23_120000", error=SCRIPT, status="failed", host=SCRIPT, **evil)
    two = made(tmp_path, "2026-11-23_130000", experiment="x<b>", seed=1)
    (one / "samples").mkdir()
    (one / "samples" / "step=1.txt").write_text(SCRIPT)
    predictions(one, [{"number": 0, SCRIPT: SCRIPT, "prediction": {"label": SCRIPT}}], split=SCRIPT.replace("/", "_"))
    rows = (one / "metrics.jsonl").read_text().replace("train/loss", SCRIPT.replace('"', '\\"'))
    (one / "metrics.jsonl").write_text(rows)
    page = render(gather(tmp_path, [one, two], SCRIPT))
    assert "stolen" in page
    assert "<img" not in page.replace('<img src="data:', "")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2
    allowed = policy[1].replace("&#39;", "'")
    assert [f"'sha256-{one}'" in allowed for one in hashes] == [True, True]
    assert "connect-src" not in allowed
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert any(SCRIPT in chart["title"] or SCRIPT in chart["series"] for chart in json.loads(data[1])["charts"])


def test_twenty_runs_of_ten_thousand_points_are_under_half_a_megabyte(tmp_path: Path) -> None:
    folders = [made(tmp_path, f"2026-11-23_{n:06d}", lr=0.001 * (n + 1), seed=n, steps=10_000) for n in range(20)]
    page = render(gather(tmp_path, folders))
    assert len(page.encode()) < 500_000
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert all(len(run["told"]["train/loss"]["x"]) >= 200 for run in data["runs"])
    assert "chosen by largest triangle" in page


def test_the_command_writes_where_it_is_told_and_says_what_it_wrote(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = sweep(tmp_path / "outputs")
    assert main(["report", "plays/"]) == 0
    assert (tmp_path / "outputs" / "plays" / "report.html").is_file()
    assert "wrote outputs/plays/report.html (" in capsys.readouterr().out
    assert main(["report"]) == 0
    assert len(list(folders[0].parent.glob("*/report.html"))) == 1
    assert main(["report", f"plays/{folders[0].name}", folders[1].name]) == 0
    assert "Settings that differ" in (tmp_path / "report.html").read_text()
    assert main(["report", "plays/", "--into", "outputs"]) == 2
    assert "name the file: --into outputs/report.html" in capsys.readouterr().err
    assert main(["report", "play/"]) == 2
    assert "did you mean 'plays'" in capsys.readouterr().err
    assert main(["report", "plays/", "--into", "no/x.html"]) == 2
    assert "there is no folder no" in capsys.readouterr().err
    assert not list(tmp_path.rglob(".report*"))


def test_numbers_of_tables() -> None:
    assert [figure(v) for v in (None, 12345, 2.0, 0.00012345, 1234567.0, 0.0, "x")] == [
        "–", "12,345", "2.0000", "0.0001234", "1.235e+06", "0.0000", "x",
    ]  # fmt: skip
    assert mean(Mean(173.99213, 6.94, 3)) == "174.0 ± 6.9"
    assert mean(Mean(2.01344, 0.0051, 3)) == "2.0134 ± 0.0051"
    assert mean(Mean(2.0, None, 1)) == mean(Mean(2.0, 0.0, 3)) == "2.0000"
    assert mean(None) == "–"
