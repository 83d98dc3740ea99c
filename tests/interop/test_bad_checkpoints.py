"""Damaged, unsafe and ill-fitting checkpoints: one line each, nothing allocated, nothing run, nothing overwritten."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mlplatform as mp
from mlplatform.errors import CheckpointError, SpecError

SIZE = ["trunk.dim=32", "trunk.depth=1", "trunk.input.vocab=50", "trunk.layer.mlp.width=48"]
SIZE += ["trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=2"]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mp.save(mp.build("llama", SIZE), tmp_path / "good")
    return tmp_path / "good"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is ...:
            config.pop(key)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def header(entries: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_FILES = {
    "empty": b"",
    "three bytes": b"abc",
    "absurd header": struct.pack("<Q", 2**63) + b"{}",
    "no json": struct.pack("<Q", 4) + b"{{{{",
    "out of range": header({"a": {**F32, "data_offsets": [0, 8]}}, b"1234"),
    "overlap": header({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"x" * 12),
    "hole": header({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, b"x" * 20),
    "wrong size": header({"a": {**F32, "shape": [2**40]}}, b"x" * 8),
    "negative": header({"a": {**F32, "shape": [-2]}}, b"x" * 8),
    "unknown dtype": header({"a": {**F32, "dtype": "F13"}}, b"x" * 8),
    "more data": header({"a": F32}, b"x" * 20),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_damaged_files_are_named(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=WEIGHTS) as error:
        mp.load(folder)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_named(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*fetch it again"):
        mp.load(folder)


class Trap:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt", "model.pkl", "weights.pt"])
def test_pickles_are_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match=f"{name}: a pickle can run code.*safetensors"):
        mp.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_of_a_checkpoint_is_ignored_and_said(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_config(folder, auto_map={"AutoModel": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'sprung')!r})")
    mp.load(folder)
    assert "ignored" in caplog.text
    assert not (tmp_path / "sprung").exists()


BAD_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (
        lambda t: t.pop("model.norm.weight"),
        "no tensor 'model.norm.weight', which gives trunk.final_norm.weight",
    ),
    "extra": (
        lambda t: t.update({"model.layers.0.odd": torch.ones(2)}),
        "no rule under hf.weights.*model.layers.0.odd",
    ),
    "shape": (lambda t: t.update({"model.norm.weight": torch.ones(5)}), r"'model.norm.weight' is \[5\].*is \[32\]"),
    "integers": (lambda t: t.update({"model.norm.weight": torch.ones(32).int()}), "is I32; a floating dtype is needed"),
}


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_ill_fitting_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        mp.load(folder)


def test_a_tensor_another_yaml_knows_names_it(folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}))
    with pytest.raises(CheckpointError, match=r"q_norm.weight'; .*qwen3.* ha(s|ve) one for it"):
        mp.load(folder, config_dirs=[Path(__file__).parent.parent / "families"])


def test_not_a_number_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_weights(folder, lambda t: t["model.norm.weight"].__setitem__(3, float("nan")))
    mp.load(folder)
    assert "'model.norm.weight' holds NaN or infinite values" in caplog.text


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../../etc/passwd", "no file of this folder"),
        ("/etc/passwd", "no file of this folder"),
        ("gone.safetensors", "is not there"),
    ],
)
def test_an_index_stays_in_its_folder(folder: Path, shard: str, message: str) -> None:
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        mp.load(folder)


BAD_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "type": ({"model_type": "lama"}, "model_type='lama'; no YAML says so; the nearest are llama"),
    "rope": ({"rope_parameters": {"rope_type": "foo"}}, "rope_type='foo'.*the YAML can say default, linear"),
    "rope field": ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "odd": 1}}, "odd=1 for rope_type=linear"),
    "value": ({"pretraining_tp": 2}, "pretraining_tp=2; the YAML of llama means 1 only"),
    "unknown key": ({"sliding_window": 4096}, "sliding_window=4096, which the YAML of llama does not name"),
    "missing key": ({"hidden_size": ...}, "no 'hidden_size', which gives trunk.dim"),
    "architecture": ({"architectures": ["LlamaForDreams"]}, "architectures='LlamaForDreams'; the YAML can say"),
    "decoder": ({"is_decoder": True}, "is_decoder=True"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_unsupported_configs(folder: Path, change: dict[str, object], message: str) -> None:
    edit_config(folder, **change)
    with pytest.raises(CheckpointError, match=message):
        mp.load(folder)


def test_an_impossible_number_names_its_path(folder: Path) -> None:
    edit_config(folder, num_key_value_heads=3)
    with pytest.raises(SpecError, match=r"model.trunk.layer.attention: heads=4 is not a multiple of kv_heads=3"):
        mp.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff\xfe", "{" * 100_000])
def test_configs_that_are_no_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        mp.load(folder)


def test_a_huge_config_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(CheckpointError, match="no real one is over"):
        mp.load(folder)


def test_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a folder here nor"):
        mp.load(tmp_path / "nothing" / "there" / "at" / "all")
