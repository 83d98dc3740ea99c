"""Image processors beside transformers': equal to those that compute with Pillow, near those of torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
import transformers.models as models
from PIL import Image

from mlplatform.errors import CheckpointError, DataError
from mlplatform.processors.image import ImageProcessor

PIL = {
    "CLIPImageProcessor": models.clip.image_processing_pil_clip.CLIPImageProcessorPil,
    "ViTImageProcessor": models.vit.image_processing_pil_vit.ViTImageProcessorPil,
    "DeiTImageProcessor": models.deit.image_processing_pil_deit.DeiTImageProcessorPil,
    "DetrImageProcessor": models.detr.image_processing_pil_detr.DetrImageProcessorPil,
    "LlavaImageProcessor": models.llava.image_processing_pil_llava.LlavaImageProcessorPil,
    "BlipImageProcessor": models.blip.image_processing_pil_blip.BlipImageProcessorPil,
    "SiglipImageProcessor": models.siglip.image_processing_pil_siglip.SiglipImageProcessorPil,
    "BitImageProcessor": models.bit.image_processing_pil_bit.BitImageProcessorPil,
    "Gemma3ImageProcessor": models.gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil,
}
SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 30}}
FAST_VLM = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "image_mean": [0.0, 0.0, 0.0]}
FAST_VLM |= {"image_std": [1.0, 1.0, 1.0]}
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"size": 30, "resample": 0}),
    ("ViTImageProcessor", {"size": [30, 20], "resample": 1}),
    ("ViTImageProcessor", {"size": {"max_height": 30, "max_width": 50}, "do_pad": True, "resample": 4}),
    ("ViTImageProcessor", {"do_rescale": False, "resample": 5}),
    ("DeiTImageProcessor", {}),
    ("CLIPImageProcessor", {}),
    ("CLIPImageProcessor", {"size": 40, "crop_size": 33}),
    ("CLIPImageProcessor", {**SMALL, "rescale_factor": 1 / 127.5}),
    ("CLIPImageProcessor", {**SMALL, "crop_size": {"height": 45, "width": 30}}),
    ("CLIPImageProcessor", {"do_resize": False, "crop_size": {"height": 51, "width": 50}}),
    ("CLIPImageProcessor", {**SMALL, "do_normalize": False}),
    ("CLIPImageProcessor", {"do_center_crop": False, "do_pad": True, "pad_size": {"height": 1300, "width": 1500}}),
    ("CLIPImageProcessor", FAST_VLM),
    ("LlavaImageProcessor", SMALL),
    ("LlavaImageProcessor", {**SMALL, "do_pad": True}),
    ("DetrImageProcessor", {"size": {"shortest_edge": 40, "longest_edge": 66}}),
    ("DetrImageProcessor", {"size": 50, "max_size": 60}),
    ("DetrImageProcessor", {"size": {"height": 33, "width": 44}, "pad_size": {"height": 50, "width": 60}}),
    ("DetrImageProcessor", {"size": 50, "max_size": 60, "pad_and_return_pixel_mask": True}),
    ("BlipImageProcessor", {}),
    ("SiglipImageProcessor", {}),
    ("BitImageProcessor", SMALL),
    ("Gemma3ImageProcessor", {"do_pan_and_scan": False}),
]
SHAPES = [(48, 64), (64, 48), (50, 50), (31, 97), (200, 37), (32, 32)]


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return an image with edges, a slope and noise, so that every filter shows."""
    noise = np.random.default_rng(seed).integers(0, 120, (height, width, 4))
    slope = np.linspace(0, 100, width)[None, :, None] + np.linspace(0, 35, height)[:, None, None]
    pixels = (noise + slope).clip(0, 255).astype(np.uint8)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = 255
    if mode == "L":
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels[..., :3]) if mode == "RGB" else Image.fromarray(pixels, mode="RGBA")


def pictures() -> list[Image.Image]:
    return [picture(*shape, seed=number) for number, shape in enumerate(SHAPES)]


def named(kind: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"image_processor_type": kind, **more}


@pytest.mark.parametrize(("kind", "more"), CONFIGS)
def test_equal_to_the_processor_of_pillow(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    theirs = PIL[kind](**more)
    theirs.save_pretrained(tmp_path)
    read = ImageProcessor.from_folder(tmp_path)
    for ours in (read, ImageProcessor(named(kind, more))):
        for images in (*([p] for p in pictures()), pictures()):
            want = theirs(images, return_tensors=None)
            if len({np.shape(x) for x in want["pixel_values"]}) > 1:
                with pytest.raises(DataError, match="the images end up with different sizes"):
                    ours(images)
                continue
            got = ours(images)
            assert set(got) == set(want) - {"num_crops"}
            for name, tensor in got.items():
                expected = np.stack(want[name])
                assert tensor.dtype == torch.from_numpy(expected).dtype
                assert np.array_equal(tensor.numpy(), expected), name


@pytest.mark.parametrize("kind", list(PIL))
def test_within_two_levels_of_the_processor_of_torchvision(kind: str) -> None:
    """Torchvision rounds a resized image otherwise than Pillow: that much of 255, measured here."""
    theirs, ours = getattr(tf, kind)(), ImageProcessor({"image_processor_type": kind})
    std = torch.tensor(ours.settings.std)[:, None, None]
    for image in pictures()[:4]:
        want, got = theirs([image], return_tensors="pt").pixel_values, ours([image])["pixel_values"]
        assert got.shape == want.shape
        assert ((got - want) * std * 255).abs().max() <= 2.01


@pytest.mark.parametrize("kind", sorted(PIL.keys() - {"ViTImageProcessor", "DeiTImageProcessor"}))
def test_grey_images(kind: str) -> None:
    ours, grey = ImageProcessor({"image_processor_type": kind}), picture(64, 48, "L")
    if kind == "DetrImageProcessor":
        with pytest.raises(DataError, match="image 0 has 1 channel, DetrImageProcessor takes 3; convert it to RGB"):
            ours(grey)
    else:
        want = PIL[kind]()(grey, return_tensors="pt").pixel_values
        assert torch.equal(ours(grey)["pixel_values"], want)


def test_one_channel_models() -> None:
    more = {"image_mean": [0.5], "image_std": [0.25], "size": {"height": 20, "width": 24}}
    grey = picture(64, 48, "L")
    want = PIL["ViTImageProcessor"](**more)(grey, return_tensors="pt").pixel_values
    assert torch.equal(ImageProcessor(named("ViTImageProcessor", more))(grey)["pixel_values"], want)
    assert want.shape == (1, 1, 20, 24)


def test_the_same_image_in_every_form(tmp_path: Path) -> None:
    ours, image = ImageProcessor(named("CLIPImageProcessor", SMALL)), picture(50, 40)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    want = ours(image)["pixel_values"]
    for form in (array, tensor, array.transpose(2, 0, 1), tmp_path / "a.png", str(tmp_path / "a.png"), [image]):
        assert torch.equal(ours(form)["pixel_values"], want)
    assert torch.equal(ours(tensor[None].repeat(2, 1, 1, 1))["pixel_values"], want.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("kind", list(PIL))
def test_saved_and_read_again_by_both(kind: str, tmp_path: Path) -> None:
    theirs = PIL[kind](size={"height": 20, "width": 24}, resample=1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ImageProcessor.from_folder(tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    first, second = (json.loads((tmp_path / n / "preprocessor_config.json").read_text()) for n in ("theirs", "ours"))
    assert first == second
    again = tf.AutoImageProcessor.from_pretrained(tmp_path / "ours", use_fast=False)
    assert again.to_dict() == theirs.to_dict()
    assert ImageProcessor.from_folder(tmp_path / "ours").settings == ours.settings


def test_old_files_and_whole_processors(tmp_path: Path) -> None:
    """CLIP's file of 2022, and what a processor of tokens and images writes today."""
    old = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "size": 224,
    }
    old |= {"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073]}
    old |= {"image_std": [0.26862954, 0.26130258, 0.27577711]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    ours = ImageProcessor.from_folder(tmp_path)
    assert ours.settings == ImageProcessor({"image_processor_type": "CLIPImageProcessor"}).settings
    ours.save(tmp_path)
    assert "feature_extractor_type" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    whole = tmp_path / "whole"
    whole.mkdir()
    inner = {**tf.CLIPImageProcessor(**SMALL).to_dict()}
    (whole / "processor_config.json").write_text(json.dumps({"image_processor": inner, "processor_class": "X"}))
    assert ImageProcessor.from_folder(whole).settings.resize == {"shortest_edge": 32}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (picture(8, 8, "RGBA"), r"image 0 has transparency \(mode RGBA\)"),
        (picture(8, 8).convert("LA"), r"transparency \(mode LA\)"),
        (Image.new("I;16", (8, 8)), "mode I;16, more than 8 bits"),
        (Image.new("F", (8, 8)), "mode F, more than 8 bits"),
        (Image.new("RGB", (0, 8)), r"image 0 is empty: 8x0 pixels"),
        (np.zeros((0, 8, 3), np.uint8), "image 0 is empty: 0x8 pixels"),
        (np.zeros((8, 8, 4), np.uint8), r"image 0 has shape \(8, 8, 4\); 1 or 3 channels come first or last"),
        (np.zeros((8, 8, 3), np.float32), "image 0 holds float32; images are bytes"),
        (torch.zeros(3, 8, 8), "image 0 holds float32; images are bytes"),
        (np.zeros(8, np.uint8), "image 0 has 1 dimensions"),
        ([], "no images were given"),
        (Path("nowhere.png"), "nowhere.png: no such file"),
        (Path(__file__), "test_image.py: not a readable image"),
    ],
    ids=[
        "rgba",
        "la",
        "i16",
        "f",
        "no-width",
        "no-height",
        "four-channels",
        "floats",
        "float-tensor",
        "one-axis",
        "no-images",
        "no-file",
        "not-an-image",
    ],
)
def test_images_that_are_none(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ImageProcessor({"image_processor_type": "CLIPImageProcessor"})(image)
    assert "\n" not in str(caught.value)


def test_an_image_too_thin_for_its_longest_edge() -> None:
    ours = ImageProcessor(named("DetrImageProcessor", {"size": {"shortest_edge": 8, "longest_edge": 16}}))
    with pytest.raises(DataError, match="an image of 1x999 \\(height x width\\) would become 0x"):
        ours(picture(1, 999))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has no image_processor_type"),
        ({"image_processor_type": "CLIPImageProcesor"}, r"did you mean 'CLIPImageProcessor'\?"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "known are ViTImageProcessor, "),
        (
            named("CLIPImageProcessor", {"do_flip_channel_order": True}),
            "do_flip_channel_order=True is no key known here",
        ),
        (
            named("CLIPImageProcessor", {"crop_sise": 3}),
            r"crop_sise=3 is no key known here \(did you mean 'crop_size'\?\)",
        ),
        (named("Gemma3ImageProcessor", {"do_pan_and_scan": True}), "do_pan_and_scan=True; only False is known here"),
        (
            named("ViTImageProcessor", {"size": {"longest_edge": 3}}),
            r"size=\{'longest_edge': 3\}; whole numbers above 0",
        ),
        (named("ViTImageProcessor", {"size": 0}), "size=0; whole numbers above 0"),
        (named("ViTImageProcessor", {"size": "224"}), "size='224'"),
        (named("ViTImageProcessor", {"resample": 9}), "resample=9; it is one of Pillow's filters, 0 to 5"),
        (named("ViTImageProcessor", {"do_resize": "no"}), "do_resize='no'; it is true or false"),
        (named("ViTImageProcessor", {"do_center_crop": True}), "do_center_crop needs crop_size"),
        (named("ViTImageProcessor", {"image_mean": [0.5, "x", 0]}), "image_mean=.* it takes a number for each channel"),
        (named("ViTImageProcessor", {"image_std": [1.0, 0.0, 1.0]}), "std not 0"),
        (named("ViTImageProcessor", {"pad_size": {"shortest_edge": 3}}), "pad_size needs height and width"),
    ],
    ids=str,
)
def test_files_that_say_what_cannot_be_done(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        ImageProcessor.from_folder(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_folders_without_a_readable_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json, nor a processor_config"):
        ImageProcessor.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable JSON file"):
        ImageProcessor.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="a JSON object is needed, not a list"):
        ImageProcessor.from_folder(tmp_path)
