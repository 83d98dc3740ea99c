"""Texts and images as one batch: the processors of CLIP, BLIP and LLaVA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from torch import Tensor

from mlplatform.cached import write_whole
from mlplatform.errors import CheckpointError, DataError, listing
from mlplatform.processors import tokenizer as tokens
from mlplatform.processors.chat import ChatTemplate, Message
from mlplatform.processors.image import FILE, WHOLE, ImageProcessor, Picture
from mlplatform.processors.tokenizer import Tokenizer

PLACED = ("LlavaProcessor",)
"""Those whose texts hold a place for each image, which becomes as many tokens as the image has vectors."""
KINDS = ("CLIPProcessor", "BlipProcessor", *PLACED)
KEYS = {"patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "image_token"}
INERT = {"processor_class", "image_processor", "auto_map", "chat_template", "image_seq_length"}
UNBOUNDED = 10**9
"""A tokenizer's `model_max_length` from here on means there is none."""


class TextImageProcessor:
    """A tokenizer and an image processor, as transformers' CLIPProcessor, BlipProcessor or LlavaProcessor.

    Args:
        kind: which of them.
        images: what prepares the images.
        config: of processor_config.json. LlavaProcessor's says how many tokens an image of (height, width) pixels
            becomes: height // patch_size * width // patch_size + num_additional_image_tokens, less one when
            vision_feature_select_strategy is `default`; each is the `image_token`.
        chat: the template of conversations.
        source: names the files in messages.

    Raises:
        CheckpointError: a kind or key not known here, or one that is missing. DataError: no such image token.
    """

    def __init__(
        self,
        kind: str,
        tokenizer: Tokenizer,
        images: ImageProcessor,
        config: Mapping[str, Any] | None = None,
        *,
        chat: ChatTemplate | None = None,
        source: str = WHOLE,
    ) -> None:
        if kind not in KINDS:
            raise CheckpointError(f"{source}: processor_class={kind!r}; known are {listing(KINDS)}")
        self.kind, self.tokenizer, self.images, self.chat, self.source = kind, tokenizer, images, chat, source
        self.config = {key: value for key, value in (config or {}).items() if key not in INERT}
        if strange := sorted(self.config.keys() - KEYS):
            raise CheckpointError(f"{source}: {strange[0]}={self.config[strange[0]]!r} is no key known here")
        self.place: str | None = None
        if kind in PLACED:
            self._check_places()

    @classmethod
    def from_folder(cls, folder: str | Path, kind: str | None = None) -> TextImageProcessor:
        """Read a folder as transformers' `save_pretrained` writes it.

        Args:
            kind: the processor's class, where the files don't say it.

        Raises:
            CheckpointError, DataError: a file is missing, unreadable, or says what can't be done.
        """
        folder = Path(folder)
        whole = folder / WHOLE
        config = json_of(whole)
        kind = kind or said_kind(folder) or ""
        named = config.get("image_token") or tokens_of(folder).get("image_token")
        named = named.get("content") if isinstance(named, Mapping) else named
        config = {**config, "image_token": named} if kind in PLACED and named else config
        given = tokens.load(folder)
        return cls(
            kind,
            given,
            ImageProcessor.from_folder(folder),
            config,
            chat=ChatTemplate.from_folder(folder),
            source=str(whole if whole.is_file() else folder),
        )

    def save(self, folder: str | Path) -> None:
        """Write the files from which transformers' AutoProcessor makes the same."""
        folder = Path(folder)
        self.tokenizer.save(folder)
        self.images.save(folder)
        config = {**self.config, "processor_class": self.kind}
        for name, written in ((WHOLE, config), (FILE, {**self.images.config, "processor_class": self.kind})):
            write_whole(folder / name, (json.dumps(written, indent=2, sort_keys=True) + "\n").encode())
        for name, text in (self.chat.files() if self.chat else {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, text.encode())

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Picture | Sequence[Picture] | None = None,
        *,
        padding: Literal["longest", "max_length"] = "longest",
        truncation: bool = False,
        max_length: int | None = None,
        specials: bool = True,
    ) -> dict[str, Tensor]:
        """Prepare texts, images, or both.

        Args:
            text: one or several; LLaVA's have an image token for each image, in the order of `images`.
            padding: to the longest text, or to `max_length`.
            truncation: cut texts to `max_length`, without the image tokens.
            max_length: in tokens; the tokenizer's `model_max_length` when None.
            specials: add the tokens of the tokenizer's template.

        Returns:
            input_ids and attention_mask (texts, length), pixel_values (images, channels, height, width).

        Raises:
            DataError: nothing to prepare, not one place for each image, an image that can't be read, texts of
                different lengths without a padding token, no length to cut or pad to.
        """
        if text is None and images is None:
            raise DataError("neither text nor images were given")
        pictures = {} if images is None else self.images(images)
        texts = [] if text is None else [text] if isinstance(text, str) else list(text)
        if strange := [one for one in texts if not isinstance(one, str)]:
            raise DataError(f"a text is a string, not a {type(strange[0]).__name__}")
        if text is None:
            return pictures
        if not texts:
            raise DataError("no texts were given")
        if self.place is not None:
            texts = self._expanded(texts, pictures.get("pixel_values"))
        encoded = self._encoded(texts, truncation, max_length, specials)
        if self.place is not None and truncation:
            self._check_cut(texts, encoded)
        if empty := [number for number, row in enumerate(encoded) if not row]:
            raise DataError(f"text {empty[0]} has no tokens: {texts[empty[0]]!r}")
        return {**self._padded(encoded, padding, max_length), **pictures}

    def apply_chat_template(
        self, messages: Sequence[Message], images: Picture | Sequence[Picture] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """Prepare a conversation: its text by the chat template, and the images its parts stand for, in order.

        Args:
            images: those of {"type": "image"} parts; parts may hold their own: {"type": "image", "image": PICTURE}.
            options: of `ChatTemplate.render`.
        """
        if self.chat is None:
            raise DataError(f"{self.source}: no chat template; add chat_template.jinja")
        prompt = self.chat.render(messages, **options)
        begins = self.tokenizer.special.get("bos")
        if images is None:
            images = [part["image"] for m in messages for part in _parts(m) if part.get("image") is not None] or None
        return self(prompt, images, specials=not (begins and prompt.startswith(begins)))

    def image_tokens(self, height: int, width: int) -> int:
        """Return how many tokens an image of so many pixels, as the model gets it, becomes in a text."""
        patch, more = self.config["patch_size"], self.config.get("num_additional_image_tokens") or 0
        dropped = self.config.get("vision_feature_select_strategy") == "default"
        return (height // patch) * (width // patch) + more - dropped

    def _check_places(self) -> None:
        patch = self.config.get("patch_size")
        if not isinstance(patch, int) or patch < 1:
            raise CheckpointError(
                f"{self.source}: patch_size={patch!r}; {self.kind} needs the side of a patch in pixels, as the model's "
                "vision_config has it"
            )
        strategy = self.config.get("vision_feature_select_strategy")
        if strategy not in (None, "default", "full"):
            raise CheckpointError(f"{self.source}: vision_feature_select_strategy={strategy!r}; it is default or full")
        place: str = self.config.get("image_token") or "<image>"
        if self.tokenizer.backend.token_to_id(place) is None:
            raise DataError(f"{self.source}: image_token={place!r} is no token of {self.tokenizer.source}")
        self.place = place

    def _expanded(self, texts: list[str], pixels: Tensor | None) -> list[str]:
        assert self.place is not None
        places, given = sum(text.count(self.place) for text in texts), 0 if pixels is None else len(pixels)
        if places != given:
            more = "leave a place out, or give an image for each" if places > given else "each needs a place in a text"
            raise DataError(
                f"the texts have {places} place{'s' * (places != 1)} for images ({self.place}) and {given} "
                f"image{'s' * (given != 1)} {'were' if given != 1 else 'was'} given; {more}"
            )
        if pixels is None:
            return texts
        whole = self.place * self.image_tokens(pixels.shape[-2], pixels.shape[-1])
        return [text.replace(self.place, whole) for text in texts]

    def _encoded(self, texts: list[str], cut: bool, most: int | None, specials: bool) -> list[list[int]]:
        backend = self.tokenizer.backend
        encoded = backend.encode_batch(texts, add_special_tokens=specials and not cut)
        if not cut:
            return [one.ids for one in encoded]
        most = self._length("truncation", most)
        room = most - (backend.num_special_tokens_to_add(False) if specials else 0)
        if room < 1:
            raise DataError(f"max_length={most} leaves no room for a token of the text")
        side = str(self.tokenizer.config.get("truncation_side", "right"))
        for one in encoded:
            one.truncate(room, direction=side)
        return [self._framed(backend, one, specials) for one in encoded]

    @staticmethod
    def _framed(backend: tokenizers.Tokenizer, one: tokenizers.Encoding, specials: bool) -> list[int]:
        return backend.post_process(one, None, specials).ids

    def _check_cut(self, texts: list[str], encoded: list[list[int]]) -> None:
        assert self.place is not None
        number = self.tokenizer.backend.token_to_id(self.place) or 0
        wanted = sum(text.count(self.place) for text in texts)
        if (left := sum(row.count(number) for row in encoded)) != wanted:
            raise DataError(f"truncation cuts an image: {left} of {wanted} image tokens are left; raise max_length")

    def _padded(self, encoded: list[list[int]], padding: str, most: int | None) -> dict[str, Tensor]:
        length = self._length("padding=max_length", most) if padding == "max_length" else 0
        length = max(length, *map(len, encoded), 1)
        filler = self.tokenizer.pad
        if filler is None and any(len(row) != length for row in encoded):
            raise DataError(f"{self.tokenizer.source} names no pad token, and the texts differ in length; set one")
        ids = torch.full((len(encoded), length), filler or 0)
        mask = torch.zeros_like(ids)
        left = self.tokenizer.config.get("padding_side") == "left"
        for row, numbers in enumerate(encoded):
            at = slice(length - len(numbers), length) if left else slice(0, len(numbers))
            ids[row, at] = torch.tensor(numbers, dtype=torch.long)
            mask[row, at] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _length(self, what: str, given: int | None) -> int:
        length = self._own_length if given is None else given
        if length is None or length < 1:
            raise DataError(f"{what} needs max_length, in tokens; {self.tokenizer.source} says none")
        return length

    @cached_property
    def _own_length(self) -> int | None:
        length = self.tokenizer.config.get("model_max_length")
        return int(length) if isinstance(length, (int, float)) and length < UNBOUNDED else None


def said_kind(folder: Path) -> str | None:
    """Return the processor's class as a folder's files name it, None where none does."""
    for file in (WHOLE, FILE, "tokenizer_config.json"):
        said = json_of(folder / file).get("processor_class")
        if isinstance(said, str):
            return said
    return None


def tokens_of(folder: Path) -> dict[str, Any]:
    """Return what tokenizer_config.json says, with the named tokens it keeps apart."""
    config = json_of(folder / "tokenizer_config.json")
    apart = config.get("extra_special_tokens")
    return {**config, **(apart if isinstance(apart, Mapping) else {})}


def json_of(path: Path) -> dict[str, Any]:
    """Return a JSON object, {} for a file that isn't there. Raises CheckpointError for a broken one."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data


def _parts(message: Message) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, (list, tuple)) else []
