"""Texts with images beside transformers' CLIPProcessor, BlipProcessor and LlavaProcessor, through files both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers as tf
from PIL import Image
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

import mlplatform as mp
from mlplatform.errors import CheckpointError, DataError
from mlplatform.processors.composite import TextImageProcessor
from mlplatform.processors.image import ImageProcessor
from mlplatform.processors.loading import load_processor
from mlplatform.processors.tokenizer import Tokenizer

SPECIAL = ["<s>", "</s>", "<pad>", "<image>"]
CHAT = """{% for m in messages %}{{ m.role | upper }}: {% for part in m.content %}
{{- '<image>\\n' if part.type == 'image' else part.text }}{% endfor %} {% endfor %}
{%- if add_generation_prompt %}ASSISTANT:{% endif %}"""
LLAVA: dict[str, Any] = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
TEXTS = ["a red bicycle", "two cats, asleep on a couch"]


def reference_tokenizer(**options: Any) -> Any:
    """Return a tokenizer of bytes that writes <s> text </s>, with a token for images."""
    letters = {c: i for i, c in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = tokenizers.Tokenizer(models.BPE(letters, []))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    named = {**named, "extra_special_tokens": {"image_token": "<image>"}, **options}
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def picture(seed: int, height: int = 50, width: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip_images(kind: str = "CLIPImageProcessorPil") -> Any:
    return getattr(tf, kind)(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def theirs(kind: str, **options: Any) -> Any:
    own = reference_tokenizer(**options.pop("tokenizer", {}))
    if kind == "llava":
        return tf.LlavaProcessor(clip_images(), own, chat_template=CHAT, **{**LLAVA, **options})
    if kind == "blip":
        return tf.BlipProcessor(tf.BlipImageProcessorPil(size={"height": 24, "width": 24}), own)
    return tf.CLIPProcessor(clip_images(), own)


def read(kind: str, folder: Path, **options: Any) -> tuple[TextImageProcessor, Any]:
    """Return ours of the files theirs writes, and theirs."""
    reference = theirs(kind, **options)
    reference.save_pretrained(folder)
    ours = load_processor(folder)
    assert isinstance(ours, TextImageProcessor)
    return ours, reference


def assert_same(ours: Any, expected: Any) -> None:
    assert ours.keys() == dict(expected).keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_texts_and_images(kind: str, side: str, tmp_path: Path) -> None:
    ours, reference = read(kind, tmp_path, tokenizer={"padding_side": side, "model_max_length": 40})
    shown = [picture(1), picture(2, 90, 40)]
    assert_same(ours(TEXTS, shown), reference(text=TEXTS, images=shown, padding=True, return_tensors="pt"))
    assert_same(ours(TEXTS[0]), reference(text=TEXTS[0], return_tensors="pt"))
    assert_same(ours(images=shown[0]), reference(images=shown[0], return_tensors="pt"))
    full: dict[str, Any] = {"padding": "max_length", "truncation": True}
    assert_same(ours(TEXTS, **full), reference(text=TEXTS, return_tensors="pt", **full))
    for most in (3, 10, 16):
        cut: dict[str, Any] = {**full, "max_length": most}
        assert_same(ours(TEXTS, **cut), reference(text=TEXTS, return_tensors="pt", **cut))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vision_feature_select_strategy": "full"},
        {"vision_feature_select_strategy": None, "num_additional_image_tokens": 0, "patch_size": 16},
        {"num_additional_image_tokens": 0},
        {"tokenizer": {"padding_side": "left"}},
    ],
)
def test_places_become_as_many_tokens_as_the_model_needs(options: dict[str, Any], tmp_path: Path) -> None:
    ours, reference = read("llava", tmp_path, **dict(options))
    texts = ["USER: <image>\nWhat is <image>this? ASSISTANT:", "none here", "<image>"]
    shown = [picture(1), picture(2, 90, 40), picture(3)]
    done = ours(texts, shown)
    assert_same(done, reference(text=texts, images=shown, padding=True, return_tensors="pt"))
    assert (done["input_ids"] == 3).sum() == 3 * ours.image_tokens(32, 32)
    assert_same(ours("no picture"), reference(text="no picture", return_tensors="pt"))


def test_conversations(tmp_path: Path) -> None:
    ours, reference = read("llava", tmp_path)
    shown = picture(1)
    talk = [{"role": "user", "content": [{"type": "image", "image": shown}, {"type": "text", "text": "What is this?"}]}]
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = reference.apply_chat_template(talk, add_generation_prompt=True, **options)
    assert_same(ours.apply_chat_template(talk, add_generation_prompt=True), expected)
    bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    assert_same(ours.apply_chat_template(bare, shown, add_generation_prompt=True), expected)


@pytest.mark.parametrize("kind", ["clip", "blip", "llava"])
def test_written_files_are_read_by_transformers(kind: str, tmp_path: Path) -> None:
    ours, reference = read(kind, tmp_path / "theirs", tokenizer={"padding_side": "left"})
    ours.save(tmp_path / "ours")
    again = tf.AutoProcessor.from_pretrained(tmp_path / "ours", backend="pil")
    assert type(again) is type(reference)
    texts = [f"{'<image>' * (kind == 'llava')} {text}" for text in TEXTS]
    shown = [picture(1), picture(2)]
    assert_same(ours(texts, shown), again(text=texts, images=shown, padding=True, return_tensors="pt"))
    assert_same(load_processor(tmp_path / "ours")(texts, shown), ours(texts, shown))
    assert (ours.chat and ours.chat.templates) == ({"default": CHAT} if kind == "llava" else None)


def test_what_a_folder_holds(tmp_path: Path) -> None:
    reference_tokenizer().save_pretrained(tmp_path / "text")
    assert isinstance(load_processor(tmp_path / "text"), Tokenizer)
    tf.ViTImageProcessor().save_pretrained(tmp_path / "image")
    assert isinstance(mp.load_processor(tmp_path / "image"), ImageProcessor)
    for part in (reference_tokenizer(), clip_images()):  # of before processors had files of their own
        part.save_pretrained(tmp_path / "both")
    (tmp_path / "both" / "config.json").write_text('{"model_type": "clip"}')
    both = mp.load_processor(tmp_path / "both")
    assert isinstance(both, TextImageProcessor)
    assert both.kind == "CLIPProcessor"


@pytest.mark.parametrize("missing", ["tokenizer.json", "processor_config.json"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    read("llava", tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises((CheckpointError, DataError), match=missing.replace(".", r"\.")) as error:
        load_processor(tmp_path)
    assert "\n" not in str(error.value)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, preprocessor_config\.json"):
        load_processor(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_processor(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"patch_size": None}, "patch_size=None; LlavaProcessor needs the side of a patch"),
        ({"vision_feature_select_strategy": "most"}, "it is default or full"),
        ({"image_token": "<picture>"}, "image_token='<picture>' is no token of"),
        ({"pooling": 3}, "pooling=3 is no key known here"),
    ],
)
def test_bad_settings(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    read("llava", tmp_path)
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises((CheckpointError, DataError), match=told) as error:
        load_processor(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("texts", "count", "options", "told"),
    [
        ("<image> and <image>", 1, {}, "2 places for images .* and 1 image was given; leave a place out"),
        (["<image>", "x"], 2, {}, "1 place for images .* and 2 images were given; each needs a place"),
        ("<image>", 0, {}, "1 place for images .* and 0 images were given"),
        ("<image> a text", 1, {"truncation": True, "max_length": 9}, "truncation cuts an image: 7 of 16 image tokens"),
        ("abc", 0, {"truncation": True}, "truncation needs max_length"),
        ("abc", 0, {"truncation": True, "max_length": 2}, "leaves no room"),
        ("abc", 0, {"padding": "max_length"}, "padding=max_length needs max_length"),
        ([], 0, {}, "no texts were given"),
        (None, 0, {}, "neither text nor images"),
        ([["a", "b"]], 0, {}, "a text is a string, not a list"),
        (["a", ""], 0, {"specials": False}, "text 1 has no tokens: ''"),
    ],
)
def test_bad_inputs(texts: Any, count: int, options: dict[str, Any], told: str, tmp_path: Path) -> None:
    ours, _ = read("llava", tmp_path)
    with pytest.raises(DataError, match=told) as error:
        ours(texts, [picture(i) for i in range(count)] or None, **options)
    assert "\n" not in str(error.value)


def test_no_padding_token_and_no_template(tmp_path: Path) -> None:
    ours, _ = read("clip", tmp_path, tokenizer={"pad_token": None})
    with pytest.raises(DataError, match="names no pad token"):
        ours(TEXTS)
    with pytest.raises(DataError, match=r"add chat_template\.jinja"):
        ours.apply_chat_template([{"role": "user", "content": "hi"}])
