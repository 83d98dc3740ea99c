"""`describe`: its tree, its counts, its speed; for shipped models, the user's own and every assembly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from mlplatform.cli.compose import compose_model
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.models.describe import Node, describe, ranges

LLAMA_70B = ["trunk.dim=8192", "trunk.depth=80", "trunk.layer.attention.heads=64", "trunk.layer.mlp.width=28672"]


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


def test_llama_3_8b_has_its_published_numbers() -> None:
    told = describe(compose_model("llama").check().config)
    assert told.total == told.trainable == told.active == 8_030_261_248
    assert told.embedding == 128256 * 4096
    assert told.layer == {"layers 0-31": 218_112_000}
    # 2 per weight of every matrix but the look-up table, whose norms are no matrices
    norms = 65 * 4096
    assert told.forward_flops[0] == 2 * (told.total - told.embedding - norms)
    assert told.forward_flops[1] == 32 * 4 * 8192 * 4096
    memory = told.memory()
    assert memory["bf16-true"]["weights"] == 2 * told.total
    assert memory["fp32"]["training"] == memory["bf16-mixed"]["training"] == 16 * told.total
    assert memory["bf16-mixed"]["kv_cache_per_token"] == 2 * 32 * 2 * 8 * 128
    assert memory["bf16-true"]["kv_cache"] == 2 * 32 * 2 * 8 * 128 * 8192


def test_llama_3_70b_takes_seconds(tmp_path: Path) -> None:
    """From a fresh process to the text, torch's import included: 2 s, counted as the process's own time."""
    program = (
        "import time\n"
        "from mlplatform.cli.compose import compose_model\n"
        f"spec = compose_model('llama', {LLAMA_70B!r}).check().config\n"
        "from mlplatform.models.describe import describe\n"
        "told = describe(spec); told.text()\n"
        "print(told.total, time.process_time())\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    total, seconds = out.stdout.split()
    assert int(total) == 70_553_706_496
    assert float(seconds) < 10


def test_building_on_meta_imports_no_compiler(tmp_path: Path) -> None:
    """Filling a meta tensor would import sympy and torch._dynamo, more than a second that loading doesn't have."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(tiny.__file__).parent)!r})\n"
        "import tiny\n"
        "from mlplatform.models import build\n"
        "build(tiny.spec('bert'), device='meta'); build(tiny.vision_language(), device='meta')\n"
        "assert not {'sympy', 'torch._dynamo'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_identical_layers_fold_and_exceptions_stand_apart() -> None:
    change = "trunk.exceptions=[{layers: '1::2', attention: {rope: null, window: 8}}, {layers: [0], mlp: {width: 16}}]"
    told = describe(tiny.spec("llama", "trunk.depth=6", change))
    layers = told.tree.children[0].children[1:-1]
    assert [(node.name, node.copies) for node in layers] == [("layers 0", 1), ("layers 1-5:2", 3), ("layers 2,4", 2)]
    first, odd, even = layers
    assert [n.facts["width"] for n in walk(first) if n.kind == "gated_mlp"] == [16]
    assert [n.facts["window"] for n in walk(odd) if n.kind == "attention"] == [8]
    assert "rope" not in {n.kind for n in walk(odd)}
    assert "rope" in {n.kind for n in walk(even)}
    assert sum(node.parameters for node in told.tree.children) == told.total
    assert sum(told.layer[node.name] * node.copies for node in layers) == sum(node.parameters for node in layers)


@pytest.mark.parametrize(
    "spec",
    [
        *(tiny.spec(family) for family in tiny.SMALL),
        tiny.spec("bert", "head=pretraining"),
        tiny.encoder_decoder(),
        tiny.dual_tower(),
        tiny.vision_language(),
    ],
)
def test_every_block_is_in_the_tree_with_its_facts(spec: dict) -> None:
    told, model = describe(spec), build(spec, device="meta")
    blocks = [m for m in model.modules() if hasattr(m, "kind")]
    nodes = list(walk(told.tree))
    copies = dict.fromkeys(range(len(nodes)), 1)
    places = {id(node): i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        for child in node.children:
            copies[places[id(child)]] = copies[i] * child.copies
    shown = {}
    for i, node in enumerate(nodes):
        shown[node.kind] = shown.get(node.kind, 0) + copies[i]
    assert shown == {kind: sum(m.kind == kind for m in blocks) for kind in {m.kind for m in blocks}}
    for node in nodes:
        assert node.facts or node.kind in ("single_tower", "joint"), f"{node.name} has no facts"
    assert told.total == sum(p.numel() for p in model.parameters()) == sum(p.total for p in told.parameters)


def test_fields_left_to_the_block_are_worked_out() -> None:
    told = describe(tiny.spec("llama", "trunk.layer.attention.kv_heads=null", "++trunk.layer.attention.head_dim=null"))
    [attention] = [n for n in walk(told.tree) if n.kind == "attention"]
    assert attention.facts["kv_heads"] == 4
    assert attention.facts["head_dim"] == 8
    assert attention.stated[:3] == ["heads", "kv_heads", "head_dim"]


def test_tied_and_frozen_parameters() -> None:
    untied = describe(tiny.spec("llama"))
    tied = describe(tiny.spec("llama", "heads.lm.tied=true"))
    assert untied.total - tied.total == 50 * 32
    assert tied.forward_flops == untied.forward_flops
    router = {"kind": "sigmoid_router"}
    moe = {"kind": "moe", "experts": 4, "top_k": 1, "width": 8, "router": router}
    layer = {**tiny.tower()["layer"], "mlp": moe}
    told = describe({"kind": "single_tower", "trunk": tiny.tower(layer=layer)})
    assert told.total - told.trainable == 2 * 4  # two layers' corrections of four experts
    assert "frozen" in told.text()
    assert told.memory()["fp32"]["gradients"] == 4 * told.trainable


def test_text_fits_a_screen_and_says_the_numbers() -> None:
    told = describe(compose_model("llama").check().config, length=1000)
    text = told.text()
    tree = text.split("\n\n")[0].splitlines()
    assert len(tree) < 20
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "layers 0-31 (x32)" in text
    assert "heads=32 kv_heads=8 head_dim=128" in text
    assert "at length 1,000" in text
    assert "8,030,261,248" in text


def test_data_is_json_and_agrees_with_the_text() -> None:
    told = describe(tiny.spec("gpt2"), length=16)
    data = json.loads(json.dumps(told.data()))
    flops = data["flops_per_token"]
    assert flops["forward"] == flops["forward_matrices"] + flops["forward_attention"] == flops["training"] / 3
    assert sum(entry["total"] for entry in data["parameters"]["by_path"]) == data["parameters"]["total"]
    assert data["length"] == 16
    assert f"{data['parameters']['total']:,}" in told.text()


def test_a_users_family_and_block_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A YAML outside the package, with a block of a package of the user's own that holds a bare matrix."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").write_text(
        "import torch\nfrom torch import nn\nfrom mlplatform.registry import block\n\n\n"
        "@block('mlp/square')\nclass Square(nn.Module):\n"
        '    """x @ w"""\n\n'
        "    def __init__(self, dim: int, *, gain: float = 2.0) -> None:\n        super().__init__()\n"
        "        self.w = nn.Parameter(torch.empty(dim, dim))\n        self.gain = gain\n\n"
        "    def forward(self, x):\n        return x @ self.w * self.gain\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from mlplatform.registry import signatures, use_plugins
    from mlplatform.registry.signatures import _plugins

    use_plugins(["outside"])
    try:
        plain, theirs = tiny.tower(), tiny.tower()
        theirs["layer"]["mlp"] = {"kind": "square", "gain": 3.0}
        del plain["layer"]["mlp"]["width"]
        told = describe({"kind": "single_tower", "trunk": theirs})
        [square] = [n for n in walk(told.tree) if n.kind == "square"]
        assert square.facts == {"gain": 3.0}
        assert square.parameters == 32 * 32
        per_layer = 2 * (4 * 32 * 32 + 32 * 32)
        assert told.forward_flops[0] == 2 * per_layer
    finally:
        _plugins.clear()
        signatures.forget()


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(SpecError, match=r"model\.trunk\.layer\.attention: heads=4 is not a multiple of kv_heads=3"):
        describe(tiny.spec("llama", "trunk.layer.attention.kv_heads=3"))
    with pytest.raises(SpecError, match="length=0"):
        describe(tiny.spec("llama"), length=0)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0], "0"), ([0, 1], "0-1"), ([3, 7, 11], "3-11:4"), ([0, 1, 2, 4, 5, 9], "0-2,4-5,9"), ([2, 5], "2,5")],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
