from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlplatform.cli.compose import compose
from mlplatform.cli.main import main
from mlplatform.data.collate import NextToken, Row, count_bytes, stack
from mlplatform.data.fields import Class, Sound, Words
from mlplatform.data.material import DocumentMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.pictures import picture
from mlplatform.data.preview import Sample, as_text, preview, said, samples, stretches
from mlplatform.data.sound import save
from mlplatform.data.sources import Source
from mlplatform.errors import DataError
from mlplatform.processors.image import ImageProcessor
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Spec
from mlplatform.runs.experiment import Experiment


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_rows_shown_are_those_trained_on(make_module: Callable[..., DataModule], layout: str) -> None:
    module = make_module(layout=layout, length=256)
    shown = list(preview(module, 8))
    step = next(iter(module.train_dataloader()))
    ids = [row for batch in step for row in batch["input_ids"]]
    for row, stretch in zip(ids, shown, strict=True):
        text = module.tokenizer.decode(row[row != module.tokenizer.pad], specials=True)
        assert "".join(part.text for part in stretch) == text
        assert sum(part.tokens for part in stretch) == int((row != module.tokenizer.pad).sum())
    begins = [part for row in shown for part in row if part.text.startswith("<|bos|>")]
    assert begins
    assert not any(part.trained for part in begins)


def test_a_terminal_sees_what_is_trained_and_no_control_characters(bpe: Tokenizer) -> None:
    ids = np.asarray([bpe.bos, *bpe.encode("ab\x1b[2J", specials=False), bpe.eos, bpe.bos, bpe.pad, bpe.pad])
    documents = np.asarray([*[1] * (len(ids) - 3), 2, 0, 0])
    trained = (documents == 1) & (np.arange(len(ids)) > 0)
    row = stretches(bpe, ids, trained, documents)
    assert as_text(row, color=False) == "⟦<|bos|>⟧ab�[2J<|eos|>\n⟦<|bos|>⟧"
    assert as_text(row, color=True).startswith("\x1b[2;7m<|bos|>\x1b[0mab")


class OnlyLast(NextToken):
    """A task that trains on no token of the first rows it is shown, and on all others."""

    def __call__(self, rows: list[Row]) -> dict[str, object]:  # type: ignore[override]
        batch = stack(rows, self.filler)
        batch["labels"][: min(3, len(rows))] = -100
        return count_bytes(batch)  # type: ignore[return-value]


def test_rows_without_a_target_are_an_error(source: Source, bpe: Tokenizer) -> None:
    shape = Spec.of({"kind": "rows", "length": 32}, "batch", "batch")
    module = DataModule(DocumentMaterial(source, bpe), shape, OnlyLast(bpe.filler), 0, 0, 1)
    module.setup()
    with pytest.raises(DataError, match=r"^0% of the tokens would be trained"):
        list(preview(module, 3))


def run_config(folder: Path, rows: list[dict[str, object]], *overrides: str) -> Experiment:
    """Return an experiment on rows of a file, checked and its data read."""
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"data.path={table}", "data.validation=0.2", f"outputs={folder}", *overrides]
    experiment = Spec.of(compose("train", given).check().config, "run").build()
    experiment.prepare(experiment.check())
    return experiment


def told(experiment: Experiment, count: int = 3) -> list[Sample]:
    return list(samples(experiment.prepare(experiment.check()), experiment.tools, count))


def test_boxes_lie_on_their_objects(tmp_path: Path) -> None:
    rows = []
    for number in range(20):
        pixels = np.zeros((20, 40, 3), np.uint8)
        pixels[19, number] = 1  # the split goes by content
        pixels[5:15, 20:32] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        objects = {"bbox": [[20, 5, 12, 10]], "category": ["cat"]}
        rows.append({"image": f"{number}.png", "objects": objects, "number": number})
    size = "processor.config.size={height: 20, width: 40}"
    chosen = ["data=json_rows", "model=detr_tiny", "task=detection", "tokenizer=null", "processor=image", size]
    labels = "model.heads.detection.labels=1"
    [one, *_] = told(run_config(tmp_path, rows, *chosen, labels, "task.flip=0", "data.on_bad_row=skip"))
    assert one.told[0].startswith("image: 40 x 20 pixels, ")
    assert one.told[1] == "objects: cat"
    assert one.picture is not None
    drawn = np.asarray(one.picture)
    assert drawn.shape == (260, 520, 3)  # thirteen times as large: the shorter side is 256 at least
    assert (drawn[10 * 13, 26 * 13] == 255).all()
    edge = (drawn.max(-1) > 0) & (np.ptp(drawn, axis=-1) > 0)  # in colour
    ys, xs = np.nonzero(edge)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (260, 65, 32 * 13 - 1, 15 * 13 - 1)


def test_pixel_values_come_back_as_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 256, 3)).astype(np.uint8)
    processor = ImageProcessor(
        {"image_processor_type": "CLIPImageProcessor", "do_resize": False, "do_center_crop": False}
    )
    pixels = processor(image)["pixel_values"][0].numpy()
    np.testing.assert_array_equal(np.asarray(picture(pixels, processor.settings)), image)


def test_a_chat_shows_what_the_loss_is_over(tmp_path: Path) -> None:
    said_first = [{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "I am well"}]
    rows = [{"messages": [*said_first, {"role": "user", "content": f"number {n}"}]} for n in range(20)]
    sizes = [
        "model.trunk.layer.attention.heads=2",
        "model.trunk.layer.attention.kv_heads=1",
        "model.trunk.dim=16",
        "model.trunk.depth=1",
        "model.trunk.input.vocab=300",
        "batch=padded",
    ]
    chosen = ["data=json_rows", "task=chat", "tokenizer=chat_bpe", *sizes]
    [one, *_] = told(run_config(tmp_path, rows, *chosen))
    assert one.masked
    assert "I am well" in "".join(part.text for part in one.row if part.trained)
    assert "how are you" in "".join(part.text for part in one.row if not part.trained)


def test_values_are_said_in_a_line(tmp_path: Path) -> None:
    save(tmp_path / "tone.wav", np.zeros(4000, np.float32), 8000)
    assert said(tmp_path / "tone.wav", Sound()) == f"0.50 s at 8,000 samples a second, {tmp_path / 'tone.wav'}"
    assert said("b", Class()) == "b"
    assert said("x\x1b[2J", Words()) == "x�[2J"
    assert said("y" * 500, Words()) == "y" * 397 + "..."


def test_the_verb_writes_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=digit_scenes", "data.count=60", "data.held_out=5", "model=detr_tiny", "task=detection"]
    words += ["tokenizer=null", "processor=image", "processor.config.size={height: 64, width: 64}"]
    assert main(["data", "preview", *words, "--samples", "2", "--into", str(tmp_path / "seen")]) == 0
    out = capsys.readouterr().out
    assert "--- sample 2: digit_scenes, train: scene " in out
    assert "image: 64 x 64 pixels" in out
    for number in (1, 2):
        with Image.open(tmp_path / "seen" / f"000{number}.png") as image:
            assert image.size == (256, 256)
    (tmp_path / "file").write_text("")
    assert main(["data", "show", *words, "--into", str(tmp_path / "file")]) != 0
    assert "name a folder that can be written" in capsys.readouterr().err
