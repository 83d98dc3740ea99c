"""Images to pixel values, by Hugging Face's preprocessor_config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mlplatform.cached import write_whole
from mlplatform.errors import CheckpointError, DataError, did_you_mean, listing
from mlplatform.processors import image_steps as steps
from mlplatform.processors.image_steps import Pixels

FILE, WHOLE = "preprocessor_config.json", "processor_config.json"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
CLIP = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3, "do_convert_rgb": True}
CUT = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
EXACT = {"size": {"height": 224, "width": 224}}
ALL: dict[str, Any] = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
ALL |= {"do_center_crop": False, "do_convert_rgb": False, "do_pad": False, "resample": 2}
KINDS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {**HALF, **EXACT},
    "DeiTImageProcessor": {**HALF, **CUT, "size": {"height": 256, "width": 256}, "resample": 3},
    "CLIPImageProcessor": {**CLIP, **CUT, "default_to_square": False},
    "BitImageProcessor": {**CLIP, **CUT, "default_to_square": False},
    "LlavaImageProcessor": {**CLIP, **CUT, "default_to_square": False},
    "BlipImageProcessor": {**CLIP, "size": {"height": 384, "width": 384}},
    "SiglipImageProcessor": {**HALF, **EXACT, "resample": 3, "do_convert_rgb": True, "default_to_square": False},
    "Gemma3ImageProcessor": {**HALF, **EXACT, "do_convert_rgb": True},
    "DetrImageProcessor": {
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
        "size": {"shortest_edge": 800, "longest_edge": 1333},
        "do_pad": True,
        "default_to_square": False,
    },
}
"""What each class of transformers does where its file says nothing."""
SQUARED = ("LlavaImageProcessor",)
"""Those whose `do_pad` makes a square of the image before all else; with the others it fills up the batch."""
MASKED = ("DetrImageProcessor",)
"""Those that say which pixels are no padding."""
READ = {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize"}
READ |= {"image_mean", "image_std", "do_convert_rgb", "do_pad", "pad_size", "default_to_square"}
READ |= {"max_size", "pad_and_return_pixel_mask"}  # older DETR files
INERT = {"image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys"}
INERT |= {"return_tensors", "device", "disable_grouping", "input_data_format", "image_seq_length", "num_channels"}
INERT |= {"format", "do_convert_annotations", "pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops"}
INERT |= {"pan_and_scan_min_ratio_to_activate"}
"""Keys that change no pixel: who wrote the file, targets of detection, the crops of `do_pan_and_scan`."""
ONE_VALUE = {"data_format": "channels_first", "do_pan_and_scan": False, "use_square_size": False}
UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for bytes that are no image; SyntaxError for chunks of a PNG."""
SIZES = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})

Picture = Image.Image | np.ndarray | Tensor | str | Path


@dataclass(frozen=True)
class Settings:
    """What a file means, with all that it leaves out."""

    resize: dict[str, int] | None
    resample: int
    crop: dict[str, int] | None
    factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...]
    to_rgb: bool
    square: bool
    pad: bool
    pad_size: dict[str, int] | None
    mask: bool


class ImageProcessor:
    """Images to `pixel_values`, as transformers' processor that computes with Pillow, bit for bit.

    Those that compute with torchvision round resized pixels otherwise: by a level of 255 at some, by more where the
    image is thin. They also put the odd row of padding around a small image on the other side.

    Args:
        config: the contents of a preprocessor_config.json; `image_processor_type` says whose defaults it stands on.
        source: names it in messages.

    Raises:
        CheckpointError: a kind or key this class doesn't know, or a value out of range.
    """

    def __init__(self, config: Mapping[str, Any], source: str = FILE) -> None:
        self.kind = kind_of(config, source)
        kept = {key: value for key, value in config.items() if key != "feature_extractor_type"}
        self.config: dict[str, Any] = {**kept, "image_processor_type": self.kind}
        self.settings = _settings(self.kind, config, source)

    @classmethod
    def from_folder(cls, folder: str | Path) -> ImageProcessor:
        """Read a folder's preprocessor_config.json, or the image processor within its processor_config.json.

        Raises:
            CheckpointError: neither file is there or readable, or it says what can't be done.
        """
        path, whole = Path(folder) / FILE, Path(folder) / WHOLE
        if path.is_file():
            return cls(_read(path), str(path))
        config = _read(whole).get("image_processor") if whole.is_file() else None
        if not isinstance(config, Mapping):
            raise CheckpointError(f"{folder}: no {FILE}, nor a {WHOLE} with an image_processor; copy it from the model")
        return cls(config, str(whole))

    def save(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, which transformers' AutoImageProcessor reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(Path(folder) / FILE, (json.dumps(self.config, indent=2, sort_keys=True) + "\n").encode())

    def __call__(self, images: Picture | Sequence[Picture]) -> dict[str, Tensor]:
        """Prepare one image or several.

        Args:
            images: of Pillow, or arrays or tensors of bytes (height, width, channels) or (channels, height, width), or
                paths of files; several of them in a list, arrays also with an axis for the images before all others.

        Returns:
            pixel_values (images, channels, height, width), and for detection pixel_mask (images, height, width), 1
            where a pixel is no padding.

        Raises:
            DataError: no image, an empty one, one with transparency or of numbers that are no bytes, a file that isn't
                one, or images that end up with different sizes.
        """
        batch = isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4
        listed = isinstance(images, Sequence) and not isinstance(images, str)
        several = list(cast(Iterable[Picture], images)) if batch or listed else [cast(Picture, images)]
        if not several:
            raise DataError("no images were given")
        made = [self._one(image, number) for number, image in enumerate(several)]
        done: dict[str, Tensor] = {}
        told = self.settings
        if told.pad:
            height, width = (max(image.shape[axis] for image in made) for axis in (1, 2))
            if told.pad_size is not None:
                height, width = told.pad_size["height"], told.pad_size["width"]
            if told.mask:
                done["pixel_mask"] = torch.stack([_mask(image, height, width) for image in made])
            made = [steps.pad(image, height, width) for image in made]
        shapes = {image.shape for image in made}
        if len(shapes) > 1:
            sizes = listing(sorted(f"{shape[1]}x{shape[2]}" for shape in shapes))
            raise DataError(f"the images end up with different sizes, {sizes}; give one at a time, or set do_pad")
        done["pixel_values"] = torch.from_numpy(np.stack(made))
        return done

    def _one(self, image: Picture, number: int) -> Pixels:
        told = self.settings
        pixels = pixels_of(image, f"image {number}", told.to_rgb)
        if told.mean is not None and len(told.mean) not in (1, len(pixels)):
            raise DataError(
                f"image {number} has {len(pixels)} channel{'s' * (len(pixels) > 1)}, {self.kind} takes "
                f"{len(told.mean)}; convert it to RGB, or set do_convert_rgb"
            )
        if told.square:
            pixels = steps.pad_to_square(pixels, [int(value * 255) for value in told.mean or (0,)])
        if told.resize is not None:
            height, width = steps.resized_to(pixels.shape[1], pixels.shape[2], told.resize)
            pixels = steps.resize(pixels, height, width, told.resample)
        if told.crop is not None:
            pixels = steps.center_crop(pixels, told.crop["height"], told.crop["width"])
        if told.factor is not None:
            pixels = steps.rescale(pixels, told.factor)
        return pixels if told.mean is None else steps.normalise(pixels, told.mean, told.std)


def pixels_of(image: Picture, name: str, to_rgb: bool) -> Pixels:
    """Return an image as bytes (channels, height, width), grey as one channel unless `to_rgb`.

    Raises:
        DataError: see `ImageProcessor`.
    """
    if isinstance(image, (str, Path)):
        image, name = _open(Path(image)), str(image)
    if isinstance(image, Image.Image):
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            raise DataError(f"{name} has transparency (mode {image.mode}); put it on a background: convert('RGB')")
        if image.mode in ("I", "F") or ";" in image.mode:
            raise DataError(f"{name} has mode {image.mode}, more than 8 bits a channel; convert it to RGB")
        array = np.asarray(image.convert("RGB") if to_rgb or image.mode not in ("L", "RGB") else image)
        array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    else:
        array = _channels_first(image.numpy(force=True) if isinstance(image, Tensor) else np.asarray(image), name)
        if to_rgb and len(array) == 1:
            array = np.repeat(array, 3, 0)
    if 0 in array.shape:
        raise DataError(f"{name} is empty: {array.shape[1]}x{array.shape[2]} pixels (height x width)")
    return array


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable image: {error}") from None


def _channels_first(array: np.ndarray, name: str) -> Pixels:
    if array.dtype != np.uint8:
        raise DataError(f"{name} holds {array.dtype}; images are bytes (uint8) from 0 to 255")
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise DataError(f"{name} has {array.ndim} dimensions; an image has (height, width, channels)")
    if array.shape[0] in (1, 3):
        return array
    if array.shape[-1] in (1, 3):
        return np.moveaxis(array, -1, 0)
    raise DataError(f"{name} has shape {array.shape}; 1 or 3 channels come first or last, and no transparency")


def _mask(image: Pixels, height: int, width: int) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.int64)
    mask[: image.shape[1], : image.shape[2]] = 1
    return mask


def kind_of(config: Mapping[str, Any], source: str) -> str:
    """Return the class of transformers a file was written by, in today's name, whatever it computes with."""
    written = config.get("image_processor_type") or config.get("feature_extractor_type")
    if not isinstance(written, str):
        raise CheckpointError(f"{source}: it has no image_processor_type; it is one of {listing(KINDS)}")
    kind = written.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in KINDS:
        near = did_you_mean(kind, KINDS)
        raise CheckpointError(f"{source}: image_processor_type={written!r}{near}; known are {listing(KINDS)}")
    return kind


def _settings(kind: str, config: Mapping[str, Any], source: str) -> Settings:
    """Return what a file means. Raises CheckpointError for what it can't mean here."""
    for key, value in config.items():
        if value is None or key in READ | INERT or ONE_VALUE.get(key, ...) == value:
            continue
        if key in ONE_VALUE:
            raise CheckpointError(f"{source}: {key}={value!r}; only {ONE_VALUE[key]!r} is known here")
        raise CheckpointError(f"{source}: {key}={value!r} is no key known here{did_you_mean(key, READ)}")
    given = {key: value for key, value in config.items() if value is not None}
    if "pad_and_return_pixel_mask" in given:
        given.setdefault("do_pad", given["pad_and_return_pixel_mask"])
    said = {**ALL, "default_to_square": True, **KINDS[kind], **given}
    for key in ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_pad"):
        if not isinstance(said[key], bool):
            raise CheckpointError(f"{source}: {key}={said[key]!r}; it is true or false")
    if said["resample"] not in range(6):
        raise CheckpointError(f"{source}: resample={said['resample']!r}; it is one of Pillow's filters, 0 to 5")
    longest = said.get("max_size", 1333) if kind in MASKED and "size" in given else None
    size = _size("size", said["size"], source, said["default_to_square"], longest)
    crop = _size("crop_size", said["crop_size"], source) if "crop_size" in said else None
    if said["do_center_crop"] and (crop is None or "height" not in crop):
        raise CheckpointError(f"{source}: do_center_crop needs crop_size with height and width, not {crop}")
    pad_size = _size("pad_size", said["pad_size"], source) if "pad_size" in said else None
    if pad_size is not None and "height" not in pad_size:
        raise CheckpointError(f"{source}: pad_size needs height and width, not {pad_size}")
    mean, std = (_numbers(key, said[key], source) for key in ("image_mean", "image_std"))
    if len(mean) != len(std) or 0.0 in std:
        raise CheckpointError(f"{source}: image_mean={mean} and image_std={std}; one number a channel, std not 0")
    square = said["do_pad"] and kind in SQUARED
    return Settings(
        resize=size if said["do_resize"] else None,
        resample=said["resample"],
        crop=crop if said["do_center_crop"] else None,
        factor=_numbers("rescale_factor", said["rescale_factor"], source)[0] if said["do_rescale"] else None,
        mean=mean if said["do_normalize"] else None,
        std=std,
        to_rgb=said["do_convert_rgb"],
        square=square,
        pad=said["do_pad"] and not square,
        pad_size=pad_size,
        mask=kind in MASKED,
    )


def _size(key: str, value: Any, source: str, to_square: bool = True, longest: int | None = None) -> dict[str, int]:
    """Return a size in words; older files have a number or two."""
    size = value
    if isinstance(value, int) and not isinstance(value, bool):
        size = {"height": value, "width": value} if to_square else {"shortest_edge": value}
        if not to_square and longest is not None:
            size["longest_edge"] = longest
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        size = {"height": value[0], "width": value[1]}
    fits = isinstance(size, Mapping) and {k for k, v in size.items() if v is not None} in SIZES
    if not fits or not all(isinstance(v, int) and v > 0 for v in size.values() if v is not None):
        keys = " | ".join(", ".join(sorted(words)) for words in SIZES)
        raise CheckpointError(f"{source}: {key}={value!r}; whole numbers above 0 for {keys}")
    return {k: v for k, v in size.items() if v is not None}


def _numbers(key: str, value: Any, source: str) -> tuple[float, ...]:
    values: Iterable[Any] = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    found: tuple[Any, ...] = tuple(values)
    if not found or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in found):
        raise CheckpointError(f"{source}: {key}={value!r}; it takes a number for each channel")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data
