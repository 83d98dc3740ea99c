"""What a job asks for, as text: the script of one run and of an array, times, and where there is no Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import composed, prepared

from mlplatform.errors import RunError, SpecError
from mlplatform.registry import Spec
from mlplatform.runs.launchers.slurm import Slurm, seconds


def shown(devices: int = 1, **launcher: Any) -> dict[str, Any]:
    return {"trainer": {"devices": devices}, "experiment": "plays", "launcher": launcher}


def shell(**fields: Any) -> Spec:
    return Spec.of({"kind": "bash", **fields}, "shell", "launcher.shell")


def asked(script: str) -> dict[str, str]:
    """Return the #SBATCH lines as option -> value."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_job_takes_the_gpus_it_asks_for() -> None:
    assert Slurm(gres="gpu:a100:4").devices("auto") == Slurm(gres="shard:1,gpu:4").devices("cuda") == 4
    assert Slurm(gres="gpu:4").devices("cpu") == Slurm().devices("auto") == 1


def test_the_script_asks_for_what_the_config_says(tmp_path: Path) -> None:
    job = Slurm(
        partition="gpu", account="lab", time="36 h", nodes=2, cpus_per_task=8, gres="gpu:a100:4", notice=300,
        options=["--mem=64G"], shell=shell(modules=["cuda/12.4"], lines=["ulimit -n 4096"]),
    )  # fmt: skip
    script = job.script(tmp_path / "run", shown(4))
    wanted = {
        "partition": "gpu", "account": "lab", "time": "1-12:00:00", "nodes": "2", "ntasks-per-node": "4",
        "cpus-per-task": "8", "gres": "gpu:a100:4", "signal": "USR1@300", "mem": "64G", "requeue": "",
        "output": f"{tmp_path}/run/output.txt", "open-mode": "append", "job-name": "plays-run",
    }  # fmt: skip
    assert wanted.items() <= asked(script).items()
    lines = script.splitlines()
    assert lines.index("module load cuda/12.4") < lines.index("ulimit -n 4096") < len(lines) - 1
    assert "export OMP_NUM_THREADS=8 GOMP_SPINCOUNT=1000" in lines
    assert lines[-1].startswith("srun --kill-on-bad-exit=1 --cpus-per-task=8 ")
    assert "--no-requeue" in Slurm(requeue=False).script(tmp_path, shown())
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_an_array_reads_its_run_from_a_list(tmp_path: Path) -> None:
    home = tmp_path / "a folder"
    home.mkdir()
    script = Slurm(at_once=2).script(home, shown(), array=5)
    assert asked(script)["array"] == "0-4%2"
    assert asked(script)["output"] == f'"{home}/%a.txt"'
    (home / "runs.txt").write_text("".join(f"/runs/number {i}\n" for i in range(5)))
    [line] = [line for line in script.splitlines() if line.startswith("run=")]
    said = subprocess.run(
        ["bash", "-c", f'{line}; echo "$run"'],
        env={"SLURM_ARRAY_TASK_ID": "3", "PATH": "/usr/bin:/bin"},
        capture_output=True,
    )
    assert said.stdout == b"/runs/number 3\n"


def test_a_secret_is_in_no_script(tmp_path: Path) -> None:
    job = Slurm(shell=shell(variables={"WANDB_API_KEY": "hush", "A": "it's"}, lines=["***"]))
    script = Slurm(shell=shell(variables=job.shell.variables)).script(
        tmp_path, shown(shell={"variables": {"WANDB_API_KEY": "***", "A": "it's"}})
    )
    assert "hush" not in script
    assert "WANDB_API_KEY is secret" in script
    [line] = [line for line in script.splitlines() if line.startswith("export A=")]
    assert subprocess.run(["bash", "-c", f"{line}; echo $A"], capture_output=True, text=True).stdout == "it's\n"
    with pytest.raises(SpecError, match=r"launcher\.shell\.lines: a line holds a secret"):
        job.script(tmp_path, shown(shell={"lines": ["***"]}))


def test_the_workers_of_a_sweep_are_one_task_each_with_the_cores_of_a_trial(tmp_path: Path) -> None:
    script = Slurm(cpus_per_task=2, gres="gpu:4").workers_script(tmp_path / "search", shown(4), workers=3)
    wanted = {
        "array": "0-2", "nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "8", "gres": "gpu:4", "requeue": "",
        "output": f"{tmp_path}/search/workers/%a.txt", "job-name": "search-sweep", "signal": "USR1@120",
    }  # fmt: skip
    assert wanted.items() <= asked(script).items()
    lines = script.splitlines()
    assert "export OMP_NUM_THREADS=2 GOMP_SPINCOUNT=1000" in lines
    assert lines[-1].startswith("srun --cpus-per-task=8 ")
    assert lines[-1].endswith(' -m mlplatform.sweep_worker "$run" --worker "$SLURM_ARRAY_TASK_ID"')
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90 min", 5400), ("1.5 h", 5400), ("2 days", 172800), ("45 s", 45),
        ("1-12:00:00", 129600), ("12:00:00", 43200), ("2-06:30", 196200), ("100:00:30", 360030),
    ],
)  # fmt: skip
def test_times(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["90", "1:30", "tomorrow", "1:75:00", "-1 h", "1-12", "3 fortnights"])
def test_what_is_no_time_is_refused_with_the_ways_to_write_one(text: str) -> None:
    """`1:30` is minutes to Slurm and hours to most: neither is guessed."""
    with pytest.raises(SpecError, match="is no time; write it as '90 min', '12 h' or Slurm's '1-12:00:00'"):
        seconds(text)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"options": ["mem=64G"]}, "'mem=64G' is no option of sbatch"),
        ({"shell": {"variables": {"a b": 1}}}, "'a b' can't be a variable's name"),
        ({"time": "2 min", "notice": 120}, "'2 min' is not longer than launcher.notice=120 seconds"),
    ],
)
def test_fields_that_can_not_be(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        Slurm(**fields | ({"shell": shell(**fields["shell"])} if "shell" in fields else {}))


def test_without_slurm_the_command_says_where_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="there is no sbatch on the PATH; run this on a login node of the cluster"):
        prepared(tmp_path, "launcher=slurm")
    assert not (tmp_path / "outputs").exists()


def test_an_array_has_room_for_one_size_and_a_yaml_time_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"launcher\.time"):
        composed(tmp_path, "launcher=slurm", "launcher.time=5400")
