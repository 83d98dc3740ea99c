"""Parts of a model of parts are swapped by name, and what comes out trains from the pixels to the words."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mlplatform as mp
from mlplatform.cli.main import main
from mlplatform.errors import DataError, SpecError
from mlplatform.models import build
from mlplatform.registry import Spec
from mlplatform.training.engine import fit
from mlplatform.training.progress import Quiet

Batch = dict[str, Tensor]
COLOURS = {"red": (0, 11), "green": (1, 12), "blue": (2, 13)}
IMAGE = 4
SMALL = ["model.language.trunk.depth=1", "model.vision.trunk.depth=3", "model.vision.trunk.input.patch=8"]
SWAPS = {
    "as it is": [],
    "language": ["model@model.language=gpt2_tiny"],
    "vision": ["model@model.vision=vit_tiny", "model.vision.head=none"],
    "both": ["model@model.vision=vit_tiny", "model.vision.head=none", "model@model.language=gpt2_tiny"],
    "projector": ["block/mlp@model.projector=mlp", "model.projector.width=64"],
}


def inside(overrides: list[str]) -> list[str]:
    """Return overrides of a run as those of the model alone."""
    return [o.replace("@model.", "@").removeprefix("model.") for o in overrides]


def captions(seed: int, count: int = 12, patches: int = 16) -> Batch:
    """Return images whose middle has a colour, and texts: the image's tokens, `it is`, the colour's word, an end."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.3 * torch.randn(count, 3, 32, 32, generator=generator)
    numbers = torch.arange(count) % len(COLOURS)
    words = []
    for image, number in zip(pixels, numbers.tolist(), strict=True):
        channel, word = list(COLOURS.values())[number]
        image[channel, 8:24, 8:24] += 2.0
        words.append([*[IMAGE] * patches, 5, 6, word, 2])
    tokens = torch.tensor(words)
    return {"input_ids": tokens, "pixel_values": pixels, "labels": tokens.masked_fill(tokens == IMAGE, -100)}


class Captions:
    """Data that is a new step of pictures with captions, for ever."""

    steps_per_epoch = 1.0

    class material:
        name = "made"

    class shape:
        sequences, length, timeout, workers = 12, 20, 60, 0

    def train_dataloader(self) -> Any:
        return self

    def val_dataloader(self) -> Any:
        return []

    def __iter__(self) -> Any:
        return ([captions(seed)] for seed in itertools.count())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("overrides", SWAPS.values(), ids=list(SWAPS))
def test_a_swapped_model_learns_to_name_what_it_sees(overrides: list[str]) -> None:
    spec = mp.compose("llava_tiny", [*inside(overrides), *inside(SMALL)])
    task = Spec.of({"kind": "causal_lm"}, "task", "task").build(model=build(spec, seed=3))
    model, first = task.model, {name: p.detach().clone() for name, p in task.model.named_parameters()}
    fit(
        task,
        Captions(),
        trainer=Spec.of({"kind": "trainer", "max": "60 steps", "clip_norm": 1.0, "accelerator": "cpu"}, "trainer"),
        optimizer=Spec.of({"kind": "adamw", "lr": 1e-3}, "optimizer"),
        schedule=Spec.of({"kind": "constant"}, "schedule"),
        strategy=Spec.of({"kind": "single"}, "strategy"),
        show=Quiet(),
    )
    held_out = captions(10_000)
    with torch.no_grad():
        out = model.eval()(**held_out)
        blind = model(**{**held_out, "pixel_values": torch.zeros_like(held_out["pixel_values"])})
    named = out.logits[:, -3].argmax(-1)
    assert torch.equal(named, held_out["labels"][:, -2]), "the words are not those of the pictures"
    assert not torch.equal(blind.logits[:, -3].argmax(-1), named), "it answers without looking"
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, first[name])}
    assert moved == {"vision", "projector", "language"}


SHALLOW = ["vision.trunk.input.patch=8", "vision.trunk.depth=2", "text.trunk.depth=1"]
DUAL = {
    "vision": ["model@vision=vit_tiny", "vision.head={kind: projection, width: 128, output: image_embeds}"],
    "text": [
        "model@text=bert_tiny",
        "text.head={kind: projection, width: 128, output: text_embeds, pool: first}",
    ],
}


@pytest.mark.parametrize("overrides", [DUAL["vision"], DUAL["text"], DUAL["vision"] + DUAL["text"]])
def test_a_swapped_dual_tower_learns_which_text_is_of_which_picture(overrides: list[str]) -> None:
    model: Any = mp.build("clip_tiny", [*overrides, *SHALLOW], seed=3).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for seed in range(110):
        batch = captions(seed, count=3, patches=0)
        pairs = {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"]}
        loss = model(**pairs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        assert model(**pairs).logits_per_text.argmax(-1).tolist() == [0, 1, 2]


def test_a_swapped_reader_of_images_trains() -> None:
    """BLIP with a ViT of another width: its text's `cross` takes the width of what it reads."""
    text = [
        "text.trunk.depth=1",
        "text.trunk.dim=64",
        "text.trunk.layer.attention.heads=2",
        "text.trunk.input.vocab=50",
    ]
    text += ["text.trunk.layer.cross.heads=2", "text.trunk.layer.mlp.width=96"]
    model: Any = mp.build(
        "blip", ["model@vision=vit_tiny", "vision.head=none", "vision.trunk.input.patch=8", *text], seed=3
    )
    assert model.text.trunk.layers[0].cross.k.weight.shape == (64, 192)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for seed in range(60):
        batch = captions(seed, patches=0)
        loss = model(**{**batch, "labels": batch["input_ids"]}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        held_out = captions(10_000, patches=0)
        named = model.eval()(held_out["input_ids"], held_out["pixel_values"]).logits[:, 1].argmax(-1)
    assert torch.equal(named, held_out["input_ids"][:, 2]), "the words are not those of the pictures"


@pytest.mark.parametrize(("part", "name"), [("language", "gpt2_tiny"), ("vision", "vit_tiny"), ("vision", "clip_tiny")])
def test_a_part_is_what_its_own_file_says(part: str, name: str) -> None:
    """Nothing of the part before is left: a GPT-2 laid over a Llama would keep its rope."""
    assert mp.compose("llava_tiny", [f"model@{part}={name}"])[part] == mp.compose(name).data


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plays.txt").write_text(
        "\n\n".join(f"Scene {i}. What {w} said was {w}." for i, w in enumerate("ab" * 90))
    )
    model = ["model=llava_tiny", *SWAPS["both"], *SMALL]
    assert main(["describe", *model]) == 0
    assert "learned" in capsys.readouterr().out
    data = ["data=text", "data.path=plays.txt", "data.document_separator='\\n\\n'", "tokenizer.vocab=300"]
    run = [
        "batch.sequences=4",
        "batch.micro=2",
        "batch.length=32",
        "trainer.max=2 steps",
        "trainer.accelerator=cpu",
        "trainer.checkpoint_every=2 steps",
    ]
    assert main(["train", *model, *data, *run]) == 0
    (folder,) = (tmp_path / "outputs" / "default").iterdir()
    trained = mp.load(folder)
    assert trained.spec["language"]["trunk"]["input"]["positions"] == {"kind": "learned"}  # type: ignore[index]
    with pytest.raises(SpecError, match=r"llava's config\.json has no word for it"):
        mp.save(trained, tmp_path / "theirs")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["image_token=2048"], "image_token=2048 is no token of the language model's vocabulary of 2048"),
        (["model@language=vit_tiny"], "language: this model has no token table"),
    ],
)
def test_parts_that_do_not_fit(overrides: list[str], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        mp.build("llava_tiny", overrides, device="meta")


def test_more_places_than_patches() -> None:
    model = mp.build("llava_tiny", inside(SMALL))
    batch = captions(0, 2, patches=15)
    with pytest.raises(DataError, match="the text has 30 image tokens, the images have 32 patches"):
        model(**batch)


def test_places_without_images() -> None:
    model = mp.build("llava_tiny", inside(SMALL))
    with pytest.raises(DataError, match="the text has image tokens and the batch no 'pixel_values'"):
        model(input_ids=captions(0, 2, patches=1)["input_ids"])
