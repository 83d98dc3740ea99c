"""The dispatcher: help, verbs, options, exit codes, and a start without torch in under a second."""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mlplatform.cli import main as cli
from mlplatform.cli.arguments import Arguments, parse
from mlplatform.errors import SpecError

HEAVY = ("torch", "lightning", "transformers", "wandb", "pyarrow", "tokenizers", "numpy", "huggingface_hub")
QUICK = {
    "--help": (),
    "train --help": (),
    "ls": (),
    "config show": ("hydra",),
    "config show model.trunk --json": ("hydra",),
    "config why model.trunk.depth": ("hydra",),
    "config schema model": (),
    "config groups": ("hydra",),
    "completion bash": (),
}


@pytest.mark.parametrize("command", QUICK)
def test_quick_commands_import_nothing_heavy_and_take_under_a_second(command: str, tmp_path: Path) -> None:
    """Measured as processor time of a fresh process, which a busy machine does not stretch."""
    code = (
        "import sys; from mlplatform.cli.main import main\n"
        f"code = main({command.split()!r})\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_import_of_the_package_is_cheap() -> None:
    code = f"import sys, mlplatform; mlplatform.compose; print([n for n in {(*HEAVY, 'hydra')!r} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_names_every_verb_and_each_verb_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"  {verb.name} " in overview
        assert cli.main([*verb.name.split(), "-h"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"mlplatform {verb.name}")
        assert all(f"--{option.name}" in text for option in verb.options)


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.name)
def test_every_verb_is_there(verb: cli.Verb) -> None:
    module, _, function = verb.target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("trian", "no verb 'trian' (did you mean 'train'?)"),
        ("config", "config needs a second word: groups, schema, show, why"),
        ("config shwo", "config has no 'shwo' (did you mean 'show'?)"),
        ("config show --jsn", "has no option '--jsn' (did you mean '--json'?)"),
        ("config show -j", "has no option '-j'"),
        ("config show --json=1", "--json takes no value"),
        ("config show --json --json", "--json is given twice"),
        ("config show --config-dir", "--config-dir needs a value: --config-dir FOLDER"),
        ("config show --config-dir /no/such", "--config-dir /no/such: no such folder"),
        ("config show a b", "'b' is one word too many"),
        ("config why", "something is missing: mlplatform config why KEY"),
        ("config why model.trunk.dept", "model.trunk: there is no 'dept' (did you mean 'depth'?)"),
        ("config schema modle", "no group 'modle' (did you mean 'model'?)"),
        ("config groups modle", "no group 'modle' (did you mean 'model'?)"),
        ("completion fish", "completion fish: there are bash and zsh"),
        ("optimizer.lr=1", "the verb comes first: mlplatform train optimizer.lr=1"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(typed: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(typed.split()) == 2
    said = capsys.readouterr()
    assert wanted in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err


def test_a_bug_is_one_line_and_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(arguments: Arguments) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("mlplatform.cli.config.schema", broken)
    assert cli.main(["config", "schema"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ZeroDivisionError: by zero")
    file = Path(said.split("traceback is in ")[1].split()[0])
    assert "Traceback" in file.read_text()
    file.unlink()
    monkeypatch.setenv("MLPLATFORM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["config", "schema"])


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: Arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlplatform.cli.config.schema", interrupted)
    assert cli.main(["config", "schema"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_reader_that_stops_early_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m mlplatform.cli.main config schema | head -n 1",
        shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.stdout == "{\n"
    assert "Broken" not in done.stderr


def test_options_and_words_are_told_apart() -> None:
    verb = next(v for v in cli.VERBS if v.name == "config show")
    given = parse(verb, ["key", "--config-dir", "a", "x=1", "--config-dir=b", "~y", "--", "--odd=1"])
    assert given.options == {"config-dir": ["a", "b"]}
    assert given.plain(most=1) == ["key"]
    assert given.overrides() == ["x=1", "~y", "--odd=1"]


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "inf", "nan"])
def test_numbers_of_options_are_checked(text: str) -> None:
    verb = next(v for v in cli.VERBS if v.name == "data show")
    with pytest.raises(SpecError, match=f"--samples {text}: it should be"):
        parse(verb, [f"--samples={text}"]).whole("samples", 3, least=1)


def test_completion_knows_verbs_options_choices_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*words: str) -> list[str]:
        assert cli.main(["--words", *words]) == 0
        return capsys.readouterr().out.split()

    assert asked("con") == ["config"]
    assert asked("config", "s") == ["schema", "show"]
    assert asked("train", "--c") == ["--config-dir"]
    assert "model=gpt2" in asked("train", "model=")
    assert asked("train", "model.trunk.dep") == ["model.trunk.depth="]
    assert asked("config", "why", "model.trunk.dep") == ["model.trunk.depth"]


def test_the_completion_script_works_in_bash() -> None:
    script = (
        f'mlplatform() {{ {sys.executable} -m mlplatform.cli.main "$@"; }}\n'
        "source <(mlplatform completion bash 2>/dev/null)\n"
        'COMP_LINE="mlplatform train model=gp"; COMP_POINT=${#COMP_LINE}; _mlplatform; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    found = done.stdout.split()
    assert "gpt2" in found, done.stderr
    assert all(word.startswith("gpt2") for word in found)


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "groups", "model", "--json"]) == 0
    assert "llama" in json.loads(capsys.readouterr().out)["model"]
