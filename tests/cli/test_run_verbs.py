"""The verbs that train and load, through `main`, on a real run of seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

import mlplatform as mp
from mlplatform.cli.main import main

TEXT = "\n\n".join(f"Scene {i}. The {w} said: {w} it is, and {w} it shall be." for i, w in enumerate("abcdefgh" * 25))
SMALL = [
    "data=text",
    "data.path=plays.txt",
    "data.document_separator='\\n\\n'",
    "model.trunk.input.vocab=300",
    "model.trunk.dim=32",
    "model.trunk.depth=1",
    "model.trunk.layer.attention.heads=2",
    "model.trunk.layer.attention.kv_heads=1",
    "model.trunk.layer.mlp.width=48",
    "batch.sequences=4",
    "batch.micro=2",
    "batch.length=32",
    "trainer.accelerator=cpu",
    "trainer.log_every=1 steps",
    "trainer.validate_every=2 steps",
    "trainer.checkpoint_every=2 steps",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a text and two finished runs in it."""
    folder, before = tmp_path_factory.mktemp("work"), Path.cwd()
    (folder / "plays.txt").write_text(TEXT)
    os.chdir(folder)
    os.environ["SOME_TOKEN"] = "hush-hush"
    try:
        assert main(["train", *SMALL, "optimizer=adamw", "trainer.max=4 steps", "prompt=${oc.env:SOME_TOKEN}"]) == 0
        assert main(["train", *SMALL, "trainer.max=2 steps", "optimizer=muon", "seed=3"]) == 0
        yield folder
    finally:
        os.chdir(before)
        del os.environ["SOME_TOKEN"]


def runs(here: Path) -> list[Path]:
    return sorted((here / "outputs" / "default").iterdir())


def test_train_leaves_a_run_that_loads(here: Path) -> None:
    first, second = runs(here)
    assert json.loads((first / "run.json").read_text())["status"] == "finished"
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert (config["optimizer"]["kind"], config["seed"], config["model"]["trunk"]["dim"]) == ("muon", 3, 32)
    model = mp.load(first)
    out = model(input_ids=torch.arange(10)[None])
    assert out.logits.shape == (1, 10, 300)


def test_the_environment_is_in_no_file_for_others(here: Path) -> None:
    """Files that only this user can read may hold it: the run itself needs it again on resume."""
    for file in runs(here)[0].rglob("*"):
        if file.is_file() and not file.stat().st_mode & 0o077:
            continue
        assert not file.is_file() or "samples" in file.parts or b"hush" not in file.read_bytes(), file


def test_dry_run_checks_and_writes_nothing(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLPLATFORM_CACHE", str(tmp_path / "cache"))
    assert main(["train", "--dry-run", "optimizer=muon", "model.trunk.depth=2"]) == 0
    said = capsys.readouterr()
    assert "llama" in said.out
    assert "muon" in said.out
    assert "Next: mlplatform train optimizer=muon model.trunk.depth=2" in said.err
    assert not list(tmp_path.iterdir())


def test_ls_lists_runs_and_compare_names_what_differs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["status"], row["steps"]) for row in rows] == [("finished", 4), ("finished", 2)]
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.count("finished") == 2
    names = [row["run"] for row in rows]
    assert main(["compare", *names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["optimizer.kind"] == ["adamw", "muon"]
    assert found["config"]["seed"] == [0, 3]
    assert "model.trunk.dim" not in found["config"]
    assert "validation/loss" in found["metrics"]
    assert main(["compare", *names]) == 0
    assert "optimizer.kind" in capsys.readouterr().out


def test_resume_goes_on_and_refuses_another_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = runs(here)[1]
    before = (second / "config.yaml").read_text()
    assert main(["resume", str(second), "seed=4"]) == 2
    assert "seed" in (said := capsys.readouterr().err)
    assert "esumed run may change trainer.max" in said
    assert main(["resume", str(second), "trainer.max=3"]) == 2
    assert "trainer.max: 3 is not allowed" in capsys.readouterr().err
    assert main(["resume", str(second)]) == 2
    assert "finished" in capsys.readouterr().err
    assert (second / "config.yaml").read_text() == before
    assert main(["resume", second.name, "trainer.max=3 steps"]) == 0
    assert json.loads((second / "run.json").read_text())["steps"] == 3
    assert main(["resume", "no-such-run"]) == 2
    assert "no run 'no-such-run'" in capsys.readouterr().err


def test_generate_export_import_and_train_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = runs(here)[0]
    assert main(["generate", f"default/{first.name}", "Scene", "--tokens", "5", "--temperature", "0"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Scene")
    assert main(["export", str(first), "hf"]) == 0
    assert main(["import", "hf", "mine"]) == 0
    assert "wrote mine" in capsys.readouterr().out
    assert main(["generate", "mine", "Scene", "--tokens=5", "--temperature=0"]) == 0
    assert capsys.readouterr().out == text
    state, again = mp.load(first).state_dict(), mp.load("mine").state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    chosen = ["--config-dir", "mine/conf", "model=mine", "init_from=mine", "tokenizer=file", "tokenizer.path=mine"]
    assert main(["train", *chosen, *SMALL[:3], *SMALL[9:], "trainer.max=1 steps", "experiment=tuned"]) == 0
    assert len(list((here / "outputs" / "tuned").iterdir())) == 1
    assert main(["import", "hf", "mine"]) == 2
    assert "mine: is there already" in capsys.readouterr().err
    assert main(["generate", "no/such-model", "x"]) == 2
    assert "'no/such-model' is neither a folder here" in capsys.readouterr().err


def test_data_show_prints_rows_with_what_the_loss_leaves_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", *SMALL, "--samples", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("--- sample") == 2
    assert "⟦<|bos|>⟧Scene" in said


def test_describe_as_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "model=llama", "model.trunk.depth=2", "--json", "--length", "128"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["length"] == 128
    assert told["parameters"]["total"] == 2 * 218_112_000 + 2 * 128256 * 4096 + 4096
    assert main(["describe", "model=gpt2"]) == 0
    assert "trunk.layers.0-11.attention.q.weight" in capsys.readouterr().out
    assert main(["describe", "model.trunk.layer.attention.kv_heads=5"]) == 2
    assert "the command line: model.trunk.layer.attention.kv_heads=5" in capsys.readouterr().err


def test_doctor_names_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"] == version("torch")
    assert "cpu" in report["devices"]
    assert main(["doctor"]) == 0
    assert "packages" in capsys.readouterr().out


@pytest.mark.slow
def test_verify_resume_proves_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-resume", *SMALL, "--steps", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"]
    assert json.loads((Path(found["undisturbed"]) / "run.json").read_text())["verify_resume"]["equal"]


def test_the_script_is_the_verb(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), "model.trunk.dimm=1"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "no field 'dimm' (did you mean 'dim'?)" in done.stderr


def test_a_quiet_run_prints_its_folder_and_a_json_run_its_events(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*SMALL, "trainer.max=2 steps", "experiment=shown"]
    assert main(["train", "--quiet", *small]) == 0
    said = capsys.readouterr()
    folder = Path(said.out.strip())
    assert (folder / "run.json").is_file()
    assert said.err == ""
    assert "finished after 2 steps" in (folder / "log.txt").read_text()
    assert main(["resume", str(folder), "--json", "trainer.max=4 steps"]) == 0
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    assert said.err == ""
    assert [e["event"] for e in events if e["event"] != "message"] == ["start", *["metrics"] * 3, "end"]
    assert [e["step"] for e in events if e["event"] == "metrics"] == [3, 4, 4]
    assert (events[-1]["status"], events[-1]["steps"], events[-1]["run"]) == ("finished", 4, str(folder))
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert next(e for e in events if e["event"] == "metrics")["train/loss"] == logged[-3]["train/loss"]
    assert main(["train", "--quiet", "--json", *small]) == 2
    assert "take one of them" in capsys.readouterr().err


def test_reproduce_says_whether_it_was_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = runs(here)[0]
    assert main(["reproduce", f"default/{first.name}", "--json"]) == 2
    assert "prompt was masked and its value is not on this machine" in capsys.readouterr().err
    assert main(["train", "--quiet", *SMALL, "trainer.max=2 steps", "experiment=shown"]) == 0
    folder = capsys.readouterr().out.strip()
    assert main(["reproduce", folder]) == 0
    said = capsys.readouterr().out
    assert "again  " in said
    assert "equal bit for bit" in said
    assert "code, data, versions and hardware are those of the first run" in said
    assert main(["reproduce", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True
