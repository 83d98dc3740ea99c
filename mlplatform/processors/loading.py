"""What a folder of Hugging Face's format holds to prepare inputs: a tokenizer, images, sound, or several at once."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlplatform.errors import CheckpointError, listing
from mlplatform.processors.composite import KINDS, TextImageProcessor, json_of, said_kind

if TYPE_CHECKING:
    from mlplatform.processors.image import ImageProcessor
    from mlplatform.processors.tokenizer import Tokenizer

USUAL = {"clip": "CLIPProcessor", "blip": "BlipProcessor", "llava": "LlavaProcessor", "fast_vlm": "LlavaProcessor"}
"""The processor of a model type, for folders whose files name none."""
FILES = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")


def load_processor(folder: str | Path) -> Tokenizer | ImageProcessor | TextImageProcessor | Any:
    """Return what prepares the inputs of a folder's model, by what its files say.

    Returns:
        A TextImageProcessor where a file names one of transformers' composite processors (or the model's type has
        one); an image or audio processor where preprocessor_config.json is one's; else the tokenizer.

    Raises:
        CheckpointError, DataError: none of the files is there, one that another needs is missing, or it can't be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    text, alone, whole = ((folder / name).is_file() for name in FILES)
    kind = said_kind(folder) or USUAL.get(str(json_of(folder / "config.json").get("model_type")))
    if kind in KINDS:
        return TextImageProcessor.from_folder(folder, kind)
    if _sounds(folder):
        return _sound(folder)
    if alone or whole:
        from mlplatform.processors.image import ImageProcessor

        return ImageProcessor.from_folder(folder)
    if text:
        from mlplatform.processors.tokenizer import load

        return load(folder)
    raise CheckpointError(f"{folder}: no {listing(FILES)}; copy them from the model")


def _sound(folder: Path) -> Any:
    try:
        audio = import_module("mlplatform.processors.audio")
    except ModuleNotFoundError:
        raise CheckpointError(f"{folder}: its preprocessor is for sound, which this version has none for") from None
    return audio.AudioProcessor.from_folder(folder)


def _sounds(folder: Path) -> bool:
    """Whether the folder's preprocessor is one for sound: it has a sampling rate."""
    told = json_of(folder / "preprocessor_config.json") or json_of(folder / "processor_config.json")
    told = told.get("feature_extractor") or told
    return "sampling_rate" in told or str(told.get("feature_extractor_type", "")).startswith(("Whisper", "Wav2Vec2"))
