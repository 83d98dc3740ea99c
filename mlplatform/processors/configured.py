"""The `processor` section of a run's config: what makes a model's inputs of images or sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlplatform.errors import CheckpointError, DataError
from mlplatform.registry import Text, block

if TYPE_CHECKING:
    from mlplatform.processors.audio import AudioProcessor
    from mlplatform.processors.image import ImageProcessor


@block("processor/image")
def image(*, config: dict) -> ImageProcessor:
    """Images to pixel values.

    Args:
        config: the contents of a preprocessor_config.json; `image_processor_type` says whose defaults it stands on.
    """
    from mlplatform.processors.image import ImageProcessor

    return ImageProcessor(config, "processor.config")


@block("processor/audio")
def audio(*, config: dict) -> AudioProcessor:
    """Sound to input values or features.

    Args:
        config: the contents of a preprocessor_config.json; `feature_extractor_type` says whose defaults it stands on.
    """
    from mlplatform.processors.audio import AudioProcessor

    return AudioProcessor(config, "processor.config")


@block("processor/folder")
def folder(*, path: Text) -> Any:
    """What a folder of Hugging Face's format prepares images or sound with.

    Args:
        path: the folder, with a preprocessor_config.json or processor_config.json.
    """
    from mlplatform.processors.loading import load_processor
    from mlplatform.processors.tokenizer import Tokenizer

    try:
        found = load_processor(path)
    except CheckpointError as error:
        raise DataError(f"processor.path: {error}") from None
    if isinstance(found, Tokenizer):
        raise DataError(f"processor.path: {path} has a tokenizer and nothing for images or sound; set processor=null")
    return getattr(found, "images", found)
