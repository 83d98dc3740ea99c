"""From a folder of transformers' to words about a picture: processor, model, decoding, beside theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers as tf
from multimodal_cases import blip, fastvlm, llava
from oracle import VOCAB, randomised
from PIL import Image
from tokenizers import models, pre_tokenizers

import mlplatform as mp
from mlplatform.generation.generate import generate_tokens

WORDS = ["<s>", "</s>", "<pad>", *(f"w{i}" for i in range(VOCAB - 3))]
WORDS[92] = "<image>"


def tokenizer() -> Any:
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "padding_side": "left"}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, extra_special_tokens={"image_token": "<image>"}, **named
    )


def processor(family: str) -> Any:
    side = {"llava": 16, "fastvlm": 128, "blip": 16}[family]
    size = {"height": side, "width": side}
    if family == "blip":
        return tf.BlipProcessor(tf.BlipImageProcessorPil(size=size), tokenizer())
    images = tf.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size)
    if family == "fastvlm":
        return tf.LlavaProcessor(images, tokenizer(), patch_size=64)
    more: dict[str, Any] = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return tf.LlavaProcessor(images, tokenizer(), patch_size=8, **more)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(2)] if 2 in row else row


CASES = [llava("default"), fastvlm("fused", break_at=("", None)), blip("captions", tf.BlipForConditionalGeneration)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.no_grad()
def test_words_about_pictures(case: Any, tmp_path: Path) -> None:
    reference, shown = randomised(case), [picture(1), picture(2)]
    reference.save_pretrained(tmp_path)
    theirs: Any = processor(case.family)
    theirs.save_pretrained(tmp_path)
    places = "" if case.family == "blip" else "<image> "
    texts = [f"w3 {places}w7 w8 w20", f"{places}w9 w10 w11" if places else "w9 w10 w11 w12"]
    given = theirs(text=texts, images=shown, padding=True, return_tensors="pt")
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 2}
    if case.family == "blip":  # theirs ends at the sep token, puts its own first token and leaves the last out
        given["input_ids"][:, 0] = 1
        whole = torch.cat([given["input_ids"], given["input_ids"][:, -1:]], 1)
        options.pop("eos_token_id")
        told = reference.generate(pixel_values=given["pixel_values"], input_ids=whole, **options)
    else:
        told = reference.generate(**given, **options)
    expected = [until_end(row[given["input_ids"].shape[1] :].tolist()) for row in told]

    ours = mp.load_processor(tmp_path)(texts, shown)
    if case.family == "blip":
        ours["input_ids"][:, 0] = 1
    prompts = [row[mask.bool()].tolist() for row, mask in zip(ours["input_ids"], ours["attention_mask"], strict=True)]
    model = mp.load(tmp_path)
    for cached in (True, False):
        got = generate_tokens(
            model, prompts, max_new_tokens=6, ends={2}, beside={"pixel_values": ours["pixel_values"]}, use_cache=cached
        )
        assert got == expected
    other = model(**{**ours, "pixel_values": ours["pixel_values"].flip(0)}).logits - model(**ours).logits
    assert other[:, -1].abs().max() > 1e-4, "it says the same of other pictures"
