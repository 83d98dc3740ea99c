"""A divided run with an adapter, a reference, a teacher or parts of other models trains as one process does."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from free_port import free_port
from test_export_sharded import WIDE, Anonymous, in_processes
from tiny_runs import composed, curves, finished, prepared
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.tensor import DTensor

from mlplatform.cli.main import main
from mlplatform.interop import save
from mlplatform.models import build
from mlplatform.registry import Spec
from mlplatform.runs.weights import first_values, given
from mlplatform.runs.worker import run as work
from mlplatform.tasks.task import Task
from mlplatform.training.strategies import Place

pytestmark = pytest.mark.distributed

PLAIN = ["model.trunk.layer.dropout=0", "model.trunk.layer.attention.kv_heads=2", "optimizer=adamw"]
PAIRS = [
    {"prompt": f"number {n}:", "chosen": good, "rejected": bad}
    for n in range(14)
    for good, bad in (("the cat sleeps", "cat the sleeps"), ("a dog barks", "dog a barks"))
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("base"), *PLAIN, "model.trunk.depth=2", "trainer.max=2 steps")


def options(name: str, base: Path, folder: Path) -> list[str]:
    """Return the overrides of a run that has something beside its model."""
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    words = ["tokenizer=file", f"tokenizer.path={base / 'tokenizer'}"]
    preference = [*words, "model.trunk.depth=2", f"init_from={base}", "task=preference", "data=json_rows"]
    preference += [f"data.path={pairs}", "data.fields={}", "schedule=constant", "optimizer.lr=1e-2"]
    return {
        "reference": preference,
        "adapter": [*words, "model.trunk.depth=2", f"init_from={base}", "adapter=lora", "adapter.dora=true"],
        "teacher": [*words, "task=distillation_causal", "teacher=folder", f"teacher.source={base}",
                    "teacher.layers=[1]", "task.cosine=1.0"],
        "parts": [*words, "model.trunk.depth=2", "model.heads.lm.tied=false", f"init_parts={{trunk: {base}}}"],
    }[name]  # fmt: skip


def in_two(run: Path) -> list[dict[str, float]]:
    """Run a prepared folder by two ranks; return which share each held of the models there, as training began."""
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlplatform.runs.worker", "mlplatform.cli.compose"])
    envs = [{**both, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    processes = [context.Process(target=_rank, args=(run, env)) for env in envs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads((run.parent / f"held-{rank}.json").read_text()) for rank in "01"]


def _rank(run: Path, env: dict[str, str]) -> None:
    os.environ.update(env)
    begin = Task.configure_optimizers

    def looked_at(task: Any) -> Any:
        models = {name: getattr(task, name, None) for name in ("model", "reference", "teacher")}
        shares = {name: held(model) for name, model in models.items() if model is not None}
        (run.parent / f"held-{env['RANK']}.json").write_text(json.dumps(shares))
        return begin(task)

    Task.configure_optimizers = looked_at  # type: ignore[method-assign]
    assert work(run) == "finished"


def losses(rows: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """Return the losses by step and name."""
    return {(row["step"], name): value for row in rows for name, value in row.items() if name.endswith("/loss")}


def held(model: Any) -> float:
    """Return which share of a model's numbers this rank has."""
    parts = [p.to_local() if isinstance(p, DTensor) else getattr(p, "ds_tensor", p) for p in model.parameters()]
    return sum(p.numel() for p in parts) / sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("reference", "fsdp"),
        ("reference", "tp"),
        ("teacher", "fsdp"),
        ("teacher", "tp"),
        ("adapter", "fsdp"),
        ("parts", "fsdp"),
        ("reference", "zero3 strategy.keep=100"),
        ("teacher", "zero3 strategy.keep=100"),
        ("adapter", "zero3 strategy.keep=100"),
        ("parts", "zero3 strategy.keep=100"),
    ],
)
def test_two_ranks_train_as_one_process_and_hold_half(tmp_path: Path, base: Path, name: str, strategy: str) -> None:
    overrides = [*PLAIN, *options(name, base, tmp_path), "trainer.max=4 steps"]
    rows = curves(finished(tmp_path, *overrides))
    run = prepared(tmp_path, *overrides, *f"strategy={strategy}".split(), "trainer.devices=2")
    shares = in_two(run)
    assert all(len(own) == (2 if name in ("reference", "teacher") else 1) for own in shares)
    assert all(share < 0.55 for own in shares for share in own.values()), shares
    wanted, found = losses(rows), losses(curves(run))
    assert len(wanted) == 5
    assert found == {key: pytest.approx(value, rel=1e-5) for key, value in wanted.items()}
    assert main(["evaluate", str(run)]) == 0  # by one process, which has all of what stands beside
    told = json.loads((run / "evaluations/validation/metrics.json").read_text())["metrics"]
    assert told["validation/loss"] == pytest.approx(rows[-1]["validation/loss"], abs=1e-4)


@pytest.mark.parametrize("name", ["reference", "adapter"])
def test_two_ranks_go_on_exactly(tmp_path: Path, base: Path, name: str) -> None:
    overrides = [*PLAIN, *options(name, base, tmp_path), "trainer.max=4 steps", "strategy=fsdp", "trainer.devices=2"]
    in_two(whole := prepared(tmp_path, *overrides))
    part = prepared(tmp_path, *overrides)
    shutil.copytree(whole / "checkpoints/step=00000002", part / "checkpoints/step=00000002")
    in_two(part)
    assert curves(part) == [row for row in curves(whole) if row["step"] > 2]


# ---- memory ----


def _divide(place: Path, rank: int) -> None:
    """One of two ranks: make its part of a model of 130 MB with LoRA from a file in bf16; write down what it took."""
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
    adapter = Spec.of({"kind": "lora", "targets": ["trunk.layers"]}, "adapter", "adapter").build()
    share: Any = Spec.of({"kind": "fsdp"}, "strategy", "strategy").build().share(Place("cpu", 2, rank, 2))
    share.join("cpu")
    small = build(composed(place).config["model"], device="meta")  # what is imported and kept is no part of it
    adapter.apply(given(small, first_values(small, None, {}), later=True))
    share.divide(small)
    spec = composed(place, *WIDE).config["model"]
    with Anonymous() as taken:
        model = build(spec, device="meta")
        given(model, first_values(model, str(place / "source"), {}), later=True)
        adapter.apply(model)
        share.divide(model)
    (place / f"taken-{rank}.json").write_text(json.dumps([taken.most - taken.start, held(model)]))
    destroy_process_group()


def test_no_rank_ever_holds_the_whole_model(tmp_path: Path) -> None:
    model = build(composed(tmp_path, *WIDE).config["model"])
    size = sum(p.nbytes for p in model.parameters())
    save(model.bfloat16(), tmp_path / "source")
    assert in_processes((_divide, tmp_path, 0), (_divide, tmp_path, 1)) == [0, 0]
    for rank in (0, 1):
        taken, share = json.loads((tmp_path / f"taken-{rank}.json").read_text())
        assert share < 0.51
        assert 0.45 * size < taken < 0.7 * size  # made whole first, it was more than all of it
