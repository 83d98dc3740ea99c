"""Contrast of texts and images: one loss over all micro-batches and ranks, recall, zero-shot classes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from training_runs import in_processes, ranks

from mlplatform.cli.compose import compose_model
from mlplatform.data.examples import Tools
from mlplatform.data.material import RecordMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.record_sources import JSONRows
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.models.start import Drawn, later
from mlplatform.models.dual_tower import pair_loss
from mlplatform.processors.image import ImageProcessor
from mlplatform.processors.tokenizer import train
from mlplatform.registry import Spec
from mlplatform.tasks.retrieval import Recalls
from mlplatform.training.engine import fit
from mlplatform.training.progress import Lines
from mlplatform.training.strategies import Place

COLOURS = {"red": (220, 30, 30), "green": (20, 190, 60), "blue": (40, 60, 230), "white": (250, 250, 250)}
TOWERS = [
    *(f"{t}.trunk.{key}" for t in ("text", "vision") for key in ("dim=24", "depth=1", "layer.attention.heads=2")),
    *(f"{t}.trunk.layer.mlp.width=32" for t in ("text", "vision")),
    *(f"{t}.heads.shared.width=16" for t in ("text", "vision")),
    "vision.trunk.input.image_size=8",
    "vision.trunk.input.patch=4",
    "vision.trunk.context_length=5",
    "text.trunk.input.vocab=300",
    "text.heads.shared.end_token=3",
]


def rows(folder: Path, count: int = 24, labels: bool = False) -> Path:
    """Write pictures of one colour, darker and lighter, with captions that say which."""
    folder.mkdir(parents=True, exist_ok=True)
    made, names = [], list(COLOURS)
    for i in range(count):
        name, shade = names[i % 4], 0.6 + 0.4 * (i // 4) / max(1, count // 4)
        pixels = np.full((8, 8, 3), np.asarray(COLOURS[name]) * shade, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "text": [f"a {name} picture {i}", f"{name} {i}"]}
        made.append({**row, "label": name} if labels else row)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


class Pairs:
    """A small CLIP on such pictures."""

    def __init__(
        self, folder: Path, *, micro: int = 8, labels: bool = False, strategy: dict[str, Any] | None = None, **task: Any
    ) -> None:
        kind = "ddp" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "single"
        self.strategy = Spec.of(strategy or {"kind": kind}, "strategy", "strategy")
        share = self.strategy.build().share(Place.find("cpu", 1))
        path = rows(folder, labels=labels)
        held_out = path.with_name("held_out.jsonl")
        held_out.write_text(path.read_text())
        source = JSONRows(path=str(path), validation=str(held_out))
        spec = compose_model("clip_tiny", TOWERS).check().config
        self.model = later(spec, Drawn(2)) if self.strategy.build().fills else build(spec, seed=2)
        self.task: Any = Spec.of({"kind": "contrastive", **task}, "task", "task").build(model=self.model)
        opened = source.open(self.task.reads())
        words = train([f"a {name} picture {i}" for name in COLOURS for i in range(9)], 300, "masked")
        size = {"height": 8, "width": 8}
        processor = ImageProcessor({"image_processor_type": "ViTImageProcessor", "size": size})
        tools = Tools(tokenizer=words, processor=processor, length=16, classes=opened.classes)
        shape = Spec({"kind": "rows", "sequences": 16, "micro": micro, "length": 16}, "batch", "batch")
        material = RecordMaterial(source, opened, words)
        self.data = DataModule(material, shape, self.task.examples(tools), 0, share.number, share.count)
        self.task.settle(tools, self.data.records("validation"))

    def go(self, folder: Path, steps: int = 1, lr: float = 1.0, kind: str = "torch.optim.SGD", **trainer: Any) -> Any:
        seen: list[dict[str, float]] = []

        class Recorder:
            def log(self, step: int, values: dict[str, float]) -> None:
                seen.append({name: value for name, value in values.items() if not name.startswith("perf/")})

        told = {
            "kind": "trainer",
            "max": f"{steps} steps",
            "accelerator": "cpu",
            "clip_norm": None,
            "log_every": "1 steps",
        }
        fit(
            self.task,
            self.data,
            trainer=Spec.of(
                {**told, "validate_every": "100%", "checkpoint_every": "100%", **trainer}, "trainer", "trainer"
            ),
            optimizer=Spec.of({"_target_": kind, "lr": lr}, "optimizer", "optimizer"),
            schedule=Spec.of({"kind": "constant"}, "schedule", "schedule"),
            strategy=self.strategy,
            seed=5,
            folder=folder,
            recorder=Recorder(),
            show=Lines(io.StringIO()),
        )
        return seen

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def difference(run: Pairs, folder: Path, **options: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Return what one step of SGD changed, and the loss it reported."""
    before = run.weights()
    [logged, *_] = run.go(folder, **options)
    return {name: before[name] - tensor for name, tensor in run.weights().items()}, logged["train/loss"]


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, gradient in expected.items():
        largest = max(gradient.abs().max().item(), 1e-2)  # the smallest are rounding alone
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * largest, msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], float]:
    """A step of 16 pairs in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    return difference(Pairs(folder / "rows", micro=16), folder / "out")


def test_the_step_is_that_of_the_models_own_loss(tmp_path: Path, whole: Any) -> None:
    run = Pairs(tmp_path / "rows", micro=16)
    [batch] = next(iter(run.data.train_dataloader()))
    out = run.model(**batch, return_loss=True)
    names, parameters = zip(*run.model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(out.loss, parameters)
    assert whole[1] == pytest.approx(out.loss.item(), rel=1e-5)
    same(whole[0], dict(zip(names, gradients, strict=True)))
    assert whole[0]["logit_scale"].abs() > 1e-4


@pytest.mark.parametrize(("micro", "chunk"), [(4, 1024), (16, 3)])
def test_pieces_make_the_same_step(tmp_path: Path, whole: Any, micro: int, chunk: int) -> None:
    found, loss = difference(Pairs(tmp_path / "rows", micro=micro, chunk=chunk), tmp_path / "out")
    assert loss == pytest.approx(whole[1], rel=1e-5)
    same(found, whole[0])


def test_what_is_frozen_stays(tmp_path: Path, whole: Any) -> None:
    run = Pairs(tmp_path / "rows", micro=16)
    run.model.vision.requires_grad_(False)
    run.model.logit_scale.requires_grad_(False)
    found, _ = difference(run, tmp_path / "out")
    assert not any(tensor.any() for name, tensor in found.items() if name.startswith(("vision", "logit_scale")))
    same(found, {name: tensor for name, tensor in whole[0].items() if name.startswith("text")})


def _rank(folder: Path) -> None:
    Pairs(folder / f"rows{os.environ['RANK']}", micro=4).go(folder / "checkpoints", devices=2)


@pytest.mark.distributed
def test_ranks_make_the_same_step(tmp_path: Path, whole: Any) -> None:
    rows(tmp_path / "rows")
    assert in_processes(_rank, [(tmp_path,)] * 2, ranks(2)) == [0, 0]
    before = Pairs(tmp_path / "rows").weights()
    after = load_file(tmp_path / "checkpoints/step=00000001/model.safetensors")
    same({name: before[name] - tensor for name, tensor in after.items()}, whole[0])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_rows_add_up_to_the_whole_loss(kind: str) -> None:
    texts, images = F.normalize(torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    scale, bias = torch.tensor(1.3), torch.tensor(-0.4)
    parts = [pair_loss(texts, images, scale, bias, kind, a, b) for a, b in ((0, 3), (3, 6), (6, 7))]
    scores = texts @ images.t() * scale.exp() + bias
    if kind == "softmax":
        own = torch.arange(7)
        expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.t(), own)) / 2 * 7
    else:
        expected = -F.logsigmoid(scores * (2 * torch.eye(7) - 1)).sum()
    torch.testing.assert_close(sum(parts), expected)


def test_recall_counts_ranks() -> None:
    generator = torch.Generator().manual_seed(3)
    texts = F.normalize(torch.randn(40, 6, generator=generator), dim=-1)
    images = F.normalize(texts + 0.6 * torch.randn(40, 6, generator=generator), dim=-1)
    measure = Recalls()
    for part in range(0, 40, 9):
        measure.update(texts[part : part + 9], images[part : part + 9])
    found = measure.compute()
    order = (images @ texts.t()).argsort(-1, descending=True).tolist()
    for k in (1, 5, 10):
        expected = sum(i in order[i][:k] for i in range(40)) / 40
        assert found[f"image_to_text_r{k}"] == pytest.approx(expected)
    assert 0.05 < found["image_to_text_r1"] < found["image_to_text_r10"] < 1
    assert set(found) == set(Recalls.names)


def test_it_learns_colours_and_tells_them_without_having_been_told(tmp_path: Path) -> None:
    run = Pairs(tmp_path / "rows", micro=16, labels=True, templates=["a {} picture"])
    told = run.go(tmp_path / "out", steps=250, lr=3e-3, kind="torch.optim.AdamW")[-1]
    assert told["validation/zero_shot_accuracy"] > 0.7
    assert told["validation/text_to_image_r10"] > 0.5
    right = 0
    run.task.begin_validation()
    with torch.no_grad():
        for batch in run.data.val_dataloader():
            said = run.task.predictions(batch, run.task.scored(batch))
            labels = [run.task.held_out[number]["label"] for number in batch["numbers"].tolist()]
            right += sum(one["label"] == label for one, label in zip(said, labels, strict=True))
    assert right / 24 == pytest.approx(told["validation/zero_shot_accuracy"])
    assert run.task.higher_is_better("validation/zero_shot_accuracy")
    assert run.task.higher_is_better("validation/image_to_text_r5")
    assert not run.task.higher_is_better("validation/loss")


def test_an_epoch_draws_one_of_the_captions(tmp_path: Path) -> None:
    run = Pairs(tmp_path / "rows")
    drawn = {tuple(run.data.train_rows.row(0, 0, epoch)["input_ids"].tolist()) for epoch in range(12)}
    assert len(drawn) == 2
    held = {tuple(run.data.records("validation").row(0, 0, epoch)["input_ids"].tolist()) for epoch in range(12)}
    assert len(held) == 1


def test_the_text_tower_must_read_where_texts_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_contrastive.TOWERS", [*TOWERS[:-1], "text.heads.shared.end_token=2"])
    told = r"heads\.\w+\.end_token=2 takes the highest token, and texts end with \[SEP\]; set it to 3"
    with pytest.raises(SpecError, match=told):
        Pairs(tmp_path / "rows")


def test_what_it_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="contrastive does not fit this single_tower: it needs a dual_tower"):
        Spec.of({"kind": "contrastive"}, "task", "task").build(model=build(compose_model("vit_tiny").check().config))
    with pytest.raises(SpecError, match=r"templates: 'a photo' has no \{\}"):
        Pairs(tmp_path / "rows", templates=["a photo"])
