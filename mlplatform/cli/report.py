"""`mlplatform report RUN|EXPERIMENT/ ...`: a page of runs as one offline file."""

from __future__ import annotations

from pathlib import Path

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.runs import outputs
from mlplatform.errors import RunError


def report(arguments: Arguments) -> None:
    """Write a report of one run, several, or all runs of an experiment; without a name, of the last run."""
    from mlplatform.runs.folder import write_whole
    from mlplatform.runs.report.gather import gather
    from mlplatform.runs.report.page import render

    words = arguments.words or ["last"]
    folders = [folder for word in words for folder in named(word, outputs(arguments))]
    whole = len(words) == 1 and words[0].endswith("/")
    into = Path(arguments.text("into", "") or default(words, folders))
    if into.is_dir():
        raise RunError(f"--into {into}: is a folder; name the file: --into {into / 'report.html'}")
    if not into.parent.is_dir():
        raise RunError(f"--into {into}: there is no folder {into.parent}")
    page = render(gather(outputs(arguments), list(dict.fromkeys(folders)), words[0].rstrip("/") if whole else None))
    write_whole(into, page)
    print(f"wrote {into} ({len(page.encode()) / 1000:,.0f} kB, needs no network)")
    suggest("mlplatform ui", "mlplatform compare RUN RUN")


def named(word: str, outputs: Path) -> list[Path]:
    """Return the folders a word names: all runs of `experiment/`, or one run."""
    from mlplatform.runs.folder import find, runs_in
    from mlplatform.runs.index import check_experiment

    experiment = word.rstrip("/")
    if word.endswith("/") and not (Path(word) / "run.json").is_file():
        check_experiment(outputs, experiment)
        if not (folders := runs_in(outputs, experiment)):
            raise RunError(f"{outputs}/{experiment}: no runs in it yet")
        return folders
    return [find(experiment, outputs)]


def default(words: list[str], folders: list[Path]) -> Path:
    """Return where a report goes: into the run's folder, the experiment's, or here when runs of several are told."""
    if len(words) == 1:
        return (folders[0].parent if words[0].endswith("/") and len(folders) > 1 else folders[0]) / "report.html"
    return Path("report.html")
