"""A disk that gets full, a Slurm on this machine, and W&B kept in a folder of the test's own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_local.sh"
MISSING = ("only root can install them", "apt-get can't install")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB. Skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs can't be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(autouse=True)
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep W&B's files, cache and credentials away from the user's; it reads them once per process."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Bring Slurm up for as long as a test of this machine wants it; leave one alone that was there before."""

    def script(word: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPT, word], capture_output=True, text=True, timeout=300)

    with (
        Path("/tmp/mlplatform-slurm-tests.lock").open("w") as users,
        Path("/tmp/mlplatform-slurm-start.lock").open("w") as starting,
    ):
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(starting, fcntl.LOCK_EX)  # two processes of a test run would start it at once
        was_up = script("status").returncode == 0
        started = script("start")
        fcntl.flock(starting, fcntl.LOCK_UN)
        if started.returncode and any(told in started.stderr for told in MISSING):
            pytest.skip(f"no Slurm here: {started.stderr.strip()}")
        assert started.returncode == 0, started.stderr
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = script("env").stdout.strip().partition("=")[2]
        yield
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process's tests go on with it
            return
        if not was_up:
            script("stop")
