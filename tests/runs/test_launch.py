"""From a config to a run folder: all checks first, nothing half-written; ranks that stop together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_runs import composed, curves, finished, prepared

from mlplatform.cli.compose import compose_model
from mlplatform.errors import DataError, PlatformError, RunError, SpecError
from mlplatform.models import build
from mlplatform.registry import Spec
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import read_config
from mlplatform.runs.folder import runs_in
from mlplatform.runs.launch import prepare
from mlplatform.runs.resume import resume
from mlplatform.training.checkpoints import newest_whole, step_of


def test_a_prepared_folder_holds_the_config_and_what_was_typed(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "seed=4", "experiment=plays")
    assert folder.parent == tmp_path / "outputs" / "plays"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "overrides.yaml", "run.json", "env.txt"}
    asked = composed(tmp_path, "seed=4", "experiment=plays").config
    assert asked["trainer"].pop("devices") == "auto"
    made = read_config(folder)
    assert made["trainer"].pop("devices") == 1
    assert made == asked
    assert yaml.safe_load((folder / "overrides.yaml").read_text()) == ["seed=4", "experiment=plays"]
    known = record.read(folder)
    assert (known["status"], known["seed"], known["argv"][:2]) == ("running", 4, ["mlplatform", "train"])
    assert known["data"]["train"]["documents"] == 32


@pytest.mark.parametrize(("strategy", "devices"), [("single", 1), ("ddp", 2), ("fsdp", 2)])
def test_a_strategy_takes_the_devices_there_are(tmp_path: Path, strategy: str, devices: int) -> None:
    folder = prepared(tmp_path, f"strategy={strategy}")  # on CPUs, two processes
    assert read_config(folder)["trainer"]["devices"] == record.read(folder)["devices"] == devices


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (["task=masked_lm"], SpecError, r"task=masked_lm does not fit this single_tower"),
        (["data.path=/no/such/plays.jsonl"], DataError, r"/no/such/plays\.jsonl"),
        (["model.trunk.input.vocab=200"], SpecError, r"256 bytes"),
        (["trainer.devices=2"], SpecError, r"strategy=single runs on one device"),
        (["strategy=ddp", "trainer.devices=4096"], SpecError, r"trainer\.devices.*4096.*this machine has"),
        (
            ["strategy=fsdp", "trainer.devices=1"],
            SpecError,
            r"trainer\.devices: strategy=fsdp divides .*trainer\.devices=1; set it to 2",
        ),
        (
            ["strategy=fsdp", "strategy.replicate=3", "trainer.devices=2"],
            SpecError,
            r"replicate: 3 does not divide the 2",
        ),
        (["strategy=fsdp_tp", "strategy.tensor=3", "trainer.devices=4"], SpecError, r"tensor: 3 does not divide the 4"),
        (
            ["strategy=tp", "trainer.devices=4"],
            SpecError,
            r"attention\.heads=2 can't be divided by 4 ranks; 2 ranks would",
        ),
        (["strategy=ep", "trainer.devices=2"], SpecError, r"strategy=ep divides experts .* this model has none"),
        (["strategy=zero1", "trainer.devices=2"], SpecError, r"optimizer: muon reads whole .* use optimizer=adamw"),
        (["trainer.max='2 furlongs'"], SpecError, r"2 furlongs"),
        (["schedule.warmup='5 parsecs'"], SpecError, r"5 parsecs"),
        (["init_from=/no/such/folder"], PlatformError, r"/no/such/folder"),
        (["experiment=../up"], SpecError, r"experiment='\.\./up' is no folder name"),
        (["batch.length=1000"], PlatformError, r"batch\.length|context"),
    ],
)
def test_every_mistake_is_an_error_before_anything_is_written(
    tmp_path: Path, overrides: list[str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as caught:
        prepared(tmp_path, *overrides)
    assert isinstance(caught.value, PlatformError)
    assert not (tmp_path / "outputs").exists()


def sizes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield three sizes of Llama and one model of another family."""
    for name, depth, dim in (("llama_small", 2, 64), ("llama_medium", 4, 256), ("llama_huge", 200, 65536)):
        overrides = [f"trunk.depth={depth}", f"trunk.dim={dim}", f"trunk.layer.mlp.width={dim}"]
        yield (
            name,
            compose_model(
                "llama_tiny", [*overrides, "trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=4"]
            ).config,
        )
    yield "gpt2", compose_model("gpt2").config


def test_a_model_larger_than_the_machine_is_refused_with_the_size_that_fits(tmp_path: Path) -> None:
    big = ["model.trunk.dim=16384", "model.trunk.depth=900", "model.trunk.layer.mlp.width=65536"]
    result = composed(tmp_path, *big, "model.trunk.layer.attention.heads=128")
    start = time.monotonic()
    with pytest.raises(RunError) as caught:
        prepare(result.config, overrides=[], argv=[], sizes=sizes)
    assert time.monotonic() - start < 30
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith("model: ")
    assert "B parameters need" in told
    assert "GiB for weights, gradients and optimizer" in told or "GiB for weights and gradients" in told
    assert "model=llama_medium fits, with " in told
    assert not (tmp_path / "outputs").exists()


def test_a_model_that_only_fits_in_parts_is_refused_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    two = ["optimizer=adamw", "trainer.devices=2", "model.trunk.dim=64", "model.trunk.layer.mlp.width=512"]
    made = {
        kind: Spec.of(composed(tmp_path, *two, f"strategy={kind}").config, "run").build() for kind in ("ddp", "fsdp")
    }
    count = sum(p.numel() for p in build(made["ddp"].model, device="meta").parameters())
    room = SimpleNamespace(total=2 * 16 * count * 3 // 4)  # fp32 weights, gradients and moments: 16 bytes, in two
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)
    made["fsdp"].check()
    with pytest.raises(RunError, match=r"GiB for weights, gradients and optimizer on each of 2 devices, and a device"):
        made["ddp"].check()


def test_a_disk_without_room_for_the_folder_leaves_none(tmp_path: Path, full_disk: Path) -> None:
    (full_disk / "all").write_bytes(b"0" * ((2 << 20) - 4096))
    with pytest.raises(RunError, match="No space left on device"):
        prepared(tmp_path, f"outputs={full_disk / 'outputs'}")
    assert runs_in(full_disk / "outputs") == []
    assert not any((full_disk / "outputs" / "default").iterdir())


@pytest.mark.distributed
def test_two_ranks_stop_together_at_sigterm_and_one_goes_on(tmp_path: Path) -> None:
    """A run of two ranks is told to stop; it goes on with one rank and ends as one rank's run from the start."""
    options = ["strategy=ddp", "trainer.devices=2", "model.trunk.layer.dropout=0", "trainer.max='400 steps'"]
    folder = prepared(tmp_path, *options)
    script = f"from mlplatform.runs.launch import start; from pathlib import Path; print(start(Path({str(folder)!r})))"
    said = tmp_path / "said"
    with said.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 240
        while len(metrics.read(folder)) < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, said.read_text()
    finally:
        process.kill()
    assert said.read_text().endswith("preempted\n")
    known = record.read(folder)
    saved, _ = newest_whole(folder / "checkpoints")
    assert saved is not None
    assert (known["status"], known["steps"]) == ("preempted", step_of(saved))
    assert not os.path.exists(f"/proc/{known['pid']}")  # noqa: PTH110
    end = known["steps"] + 2
    alone = {"trainer.devices": 1, "strategy.kind": "single", "trainer.max": f"{end} steps"}
    assert resume(folder, alone) == "finished"
    assert record.read(folder)["steps"] == end
    assert runs_in(tmp_path / "outputs") == [folder]


def test_the_same_config_gives_the_same_run(tmp_path: Path) -> None:
    one, two = finished(tmp_path), finished(tmp_path)
    assert one != two
    assert curves(one) == curves(two)
    assert curves(finished(tmp_path, "seed=1")) != curves(one)


def test_init_from_a_run_starts_with_its_weights(tmp_path: Path) -> None:
    first = finished(tmp_path)
    second = finished(tmp_path, f"init_from={first}", "model.trunk.layer.dropout=0", "trainer.max='1 steps'")
    start, end = (curves(run)[index] for run, index in ((second, 0), (first, -1)))
    assert start["train/loss"] < curves(first)[0]["train/loss"]
    assert abs(start["train/loss"] - end["validation/loss"]) < 0.3


def test_init_from_another_size_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    first = finished(tmp_path)
    with pytest.raises(PlatformError, match=r"init_from=.*is \[\d+, 32\] there and \[\d+, 64\] in this run's model"):
        prepared(tmp_path, f"init_from={first}", "model.trunk.dim=64")
    assert runs_in(tmp_path / "outputs") == [first]
