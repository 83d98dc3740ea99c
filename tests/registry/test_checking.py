"""Every kind of mistake a config can hold, and that all of them are said at once, each with its path."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import tiny

from mlplatform.errors import SpecError
from mlplatform.registry import merge, validate
from mlplatform.registry.layering import select

MOE = {"kind": "moe", "experts": 4, "top_k": 2, "width": 8, "router": {"kind": "softmax_router"}}


def sound() -> dict[str, Any]:
    heads = {"lm": {"kind": "lm_head"}, "bare": None}
    return {"kind": "single_tower", "trunk": tiny.tower(), "head": "lm", "heads": heads}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a sound spec with one value set, `...` deleting it."""
    data = node = sound()
    *way, last = path.split(".")
    for name in way:
        node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return data


def problems(data: Any, group: str = "model") -> list[tuple[str, str]]:
    try:
        validate(data, group, group)
    except SpecError as error:
        return error.problems
    return []


@pytest.mark.parametrize("spec", [sound(), tiny.encoder_decoder(), tiny.dual_tower(), tiny.vision_language()])
def test_sound_specs_pass_and_are_left_alone(spec: dict) -> None:
    before = copy.deepcopy(spec)
    validate(spec, "model")
    assert spec == before


ROWS: list[tuple[str, Any, str, str]] = [
    # where, value, path of the problem ("" when it is there), what it says
    ("trunk.dimm", 3, "", "transformer has no field 'dimm' (did you mean 'dim'?); it has dim, depth, context"),
    ("trunk.layer.mlp.widht", 3, "", "gated_mlp has no field 'widht' (did you mean 'width'?)"),
    ("trunk.zzz", 3, "", "transformer has no field 'zzz'; it has"),
    ("trunk.7", 3, "", "transformer has no field '7'"),
    ("trunk.dim", ..., "", "transformer needs 'dim' (Positive)"),
    ("trunk.dim", "???", "", "transformer needs 'dim' (Positive)"),
    ("trunk.final_norm", "???", "", "transformer needs 'final_norm' (bool | Literal['every'])"),
    ("trunk", ..., "", "single_tower needs 'trunk' (a block of group trunk)"),
    ("trunk.layer.mlp.dim", 64, "", "'dim' of gated_mlp is set by what holds it; delete it here"),
    ("trunk.norm.dim", 64, "", "'dim' of rms_norm is set by what holds it; delete it here"),
    ("trunk.dim", 0, "", "0 is not allowed: it should be greater than or equal to 1"),
    ("trunk.dim", -4, "", "-4 is not allowed: it should be greater than or equal to 1"),
    ("trunk.dim", "64", "", "'64' is not allowed: it should be a valid integer"),
    ("trunk.dim", 64.0, "", "64.0 is not allowed: it should be a valid integer"),
    ("trunk.dim", True, "", "True is not allowed: it should be a valid integer"),
    ("trunk.dim", None, "", "None is not allowed: it should be a valid integer"),
    ("trunk.dim", [64], "", "[64] is not allowed: it should be a valid integer"),
    ("trunk.dim", {"a": 1}, "", "{'a': 1} is not allowed: it should be a valid integer"),
    ("trunk.final_norm", 1, "", "1 is not allowed: it should be a valid boolean"),
    ("trunk.final_norm", "yes", "", "'yes' is not allowed: it should be a valid boolean"),
    ("trunk.norm.eps", 0, "", "0 is not allowed: it should be greater than 0"),
    ("trunk.norm.eps", "1e-5x", "", "'1e-5x' is not allowed: it should be a valid number"),
    ("trunk.norm.eps", float("nan"), "", "nan is not allowed"),
    ("trunk.layer.dropout", 1.0, "", "1.0 is not allowed: it should be less than 1"),
    ("trunk.layer.dropout", -0.1, "", "-0.1 is not allowed: it should be greater than or equal to 0"),
    ("trunk.input.segments", -1, "", "-1 is not allowed: it should be greater than or equal to 0"),
    ("trunk.input.scale", "sqrt_dims", "", "'sqrt_dims' is not allowed"),
    ("trunk.layer.mlp.activation", "gleu", "", "(did you mean 'gelu'?)"),
    ("trunk.layer.attention.mask", "casual", "", "should be 'causal' or 'full' (did you mean 'ca"),
    ("trunk.layer.attention.kv_heads", 0, "", "0 is not allowed: it should be greater than"),
    ("trunk.layer.mlp.kind", "gated_mpl", "", "no mlp 'gated_mpl' (did you mean 'gated_mlp'?); there"),
    ("trunk.layer.mlp.kind", "rms_norm", "", "'rms_norm' is a norm, not a mlp; there are gated_mlp"),
    ("trunk.layer.mlp.kind", None, "", "no mlp 'None'; there are"),
    ("trunk.layer.mlp.kind", ["mlp"], "", "no mlp '['mlp']'"),
    ("trunk.layer.mlp.kind", ..., "trunk.layer.mlp", "'kind' is missing; it names which mlp this is"),
    ("trunk.layer.mlp", "gated_mlp", "", "a mlp is a mapping with a 'kind', not 'gated_mlp'"),
    ("trunk.layer.mlp", None, "", "a mlp is a mapping with a 'kind', not None"),
    ("trunk.layer.mlp", [], "", "a mlp is a mapping with a 'kind', not []"),
    ("trunk.layer.attention.rope", "rope", "", "a rope is a mapping with a 'kind', not 'rope'"),
    ("trunk.layer.attention.rope.theta", -1.0, "", "should be greater than 0"),
    ("head", "lmm", "", "no 'lmm' among heads (did you mean 'lm'?); there are lm, bare"),
    ("head", {"kind": "lm_heads"}, "head.kind", "no head 'lm_heads' (did you mean 'lm_head'?)"),
    ("head", 3, "", "a head is a mapping with a 'kind', not 3"),
    ("heads", ["lm"], "", "a mapping of names to alternatives, not ['lm']"),
    ("heads.other", {"kind": "lm_head", "tide": True}, "heads.other.tide", "(did you mean 'tied'?)"),
    ("heads.other", {"kind": "joint", "parts": {"a": {"kind": "spam"}}}, "heads.other.parts.a.kind", "'span'?"),
    ("heads.other", {"kind": "joint", "parts": [1]}, "heads.other.parts", "[1] is not allowed: it should be a valid"),
    ("hf", "bert", "", "'bert' is not allowed: it should be a valid dictionary"),
    ("trunk.exceptions", {"layers": 1}, "", "a list of exceptions, each with 'layers', not {'layers': 1}"),
    ("trunk.exceptions", [{"mlp": {"width": 3}}], "trunk.exceptions.0", "'layers' is missing: a slice such as '3::4'"),
    ("trunk.exceptions", ["0"], "trunk.exceptions.0", "'layers' is missing"),
    ("trunk.exceptions", [{"layers": [2]}], "trunk.exceptions.0.layers", "layers=[2]: there is no layer 2 among 2"),
    ("trunk.exceptions", [{"layers": "a:b"}], "trunk.exceptions.0.layers", "layers='a:b' is no slice; write it as"),
    ("trunk.exceptions", [{"layers": 1.5}], "trunk.exceptions.0.layers", "layers=1.5"),
    ("trunk.exceptions", [{"layers": None}], "trunk.exceptions.0.layers", "layers=None"),
    ("trunk.exceptions", [{"layers": True}], "trunk.exceptions.0.layers", "layers=True"),
    ("trunk.exceptions", [{"layers": ["0"]}], "trunk.exceptions.0.layers", "layers=['0']"),
    ("trunk.exceptions", [{"layers": {"a": 1}}], "trunk.exceptions.0.layers", "layers={'a': 1}"),
    (
        "trunk.exceptions",
        [{"layers": "1:", "mlp": {"widht": 3}}],
        "trunk.exceptions.0.mlp.widht",
        "gated_mlp has no field 'widht' (did you mean 'width'?)",
    ),
    (
        "trunk.exceptions",
        [{"layers": ":1"}, {"layers": "1:", "mlp": {"kind": "moe", "experts": 4}}],
        "trunk.exceptions.1.mlp.top_k",
        "moe needs 'top_k' (Positive)",
    ),
    (
        "trunk.exceptions",
        [{"layers": ":1", "mlp": {**MOE, "activation": "gleu"}}],
        "trunk.exceptions.0.mlp.activation",
        "(did you mean 'gelu'?)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "path", "said"), ROWS, ids=[f"{r[0]}={r[1]!r}"[:60] for r in ROWS])
def test_one_mistake_is_one_problem(place: str, value: Any, path: str, said: str) -> None:
    found = [(where, text) for where, text in problems(changed(place, value)) if where == f"model.{path or place}"]
    assert len(found) == 1, problems(changed(place, value))
    assert said in found[0][1]
    assert "\n" not in found[0][1]


@pytest.mark.parametrize("value", [None, [], "llama", 3])
def test_what_is_no_mapping(value: Any) -> None:
    [(path, text)] = problems(value)
    assert path == "model"
    assert text.startswith("a model is a mapping with a 'kind', not ")


def test_all_mistakes_at_once() -> None:
    data = changed("trunk.dim", -1)
    data["trunk"]["norm"] = {"kind": "rms_nrm"}
    data["trunk"]["layer"]["mlp"]["widht"] = 3
    data["trunk"]["layer"]["attention"]["heads"] = "four"
    data["head"] = "none"
    with pytest.raises(SpecError) as caught:
        validate(data, "model")
    assert [path for path, _ in caught.value.problems] == [
        "trunk.dim", "trunk.norm.kind", "trunk.layer.attention.heads", "trunk.layer.mlp.widht", "head"
    ]  # fmt: skip
    assert len(str(caught.value).splitlines()) == 5


def test_a_mistake_in_the_layer_is_not_said_again_for_its_exceptions() -> None:
    data = changed("trunk.layer.mlp.widht", 3)
    data["trunk"]["exceptions"] = [{"layers": ":1", "attention": {"window": 4}}]
    assert [path for path, _ in problems(data)] == ["model.trunk.layer.mlp.widht"]


def test_an_exception_may_swap_a_block() -> None:
    validate(
        changed("trunk.exceptions", [{"layers": "1::2", "mlp": MOE}, {"layers": -1, "attention": {"rope": None}}]),
        "model",
    )


def test_null_takes_an_optional_block_out() -> None:
    for path in ("trunk.layer.attention.rope", "head", "heads", "hf", "trunk.position_bias"):
        validate(changed(path, None) | ({"head": None} if path == "heads" else {}), "model")


def test_a_number_may_be_whole_where_a_fraction_may_stand() -> None:
    validate(changed("trunk.layer.attention.rope.theta", 10000), "model")


def test_lists_stand_for_tuples() -> None:
    validate({"kind": "adamw", "betas": [0.9, 0.95]}, "optimizer")
    for wrong in ([0.9], [0.9, 1.0], [0.9, 0.9, 0.9], 0.9):
        [(path, _)] = problems({"kind": "adamw", "betas": wrong}, "optimizer")
        assert path == "optimizer.betas"


def test_lists_of_blocks_say_which() -> None:
    data = {"kind": "several", "loggers": [{"kind": "tensorboard"}, {"kind": "wandb", "projct": "x"}]}
    [(path, text)] = problems(data, "logger")
    assert path == "logger.loggers.1.projct"
    assert "did you mean 'project'" in text


@pytest.mark.parametrize("value", ["600 steps", "2B tokens", "1.5M tokens", "30 min", "2h", "1 epochs", "2%", "1 step"])
def test_intervals(value: str) -> None:
    validate({"kind": "constant", "warmup": value}, "schedule")


@pytest.mark.parametrize("value", ["600", "600 stesp", "-1 steps", "steps", "1e3 steps", "1 step 2", "", 600])
def test_intervals_that_are_none(value: Any) -> None:
    [(path, _)] = problems({"kind": "constant", "warmup": value}, "schedule")
    assert path == "schedule.warmup"


def test_an_interpolation_waits_until_it_is_resolved() -> None:
    validate(changed("trunk.input.vocab", "${model.trunk.dim}"), "model")


def test_checking_is_quick() -> None:
    data = tiny.encoder_decoder()
    validate(data, "model")
    start = time.process_time()
    for _ in range(100):
        validate(data, "model")
    assert time.process_time() - start < 2  # 0.06 s alone


# ---- merging, selecting, expanding ----
def test_merge_by_kind() -> None:
    base = {"kind": "gated_mlp", "width": 8, "inner": {"a": 1, "b": 2}}
    assert merge(base, {"width": 9}) == {**base, "width": 9}
    assert merge(base, {"kind": "gated_mlp", "bias": True}) == {**base, "bias": True}
    assert merge(base, {"kind": "mlp", "bias": True}) == {"kind": "mlp", "bias": True}
    assert merge(base, {"inner": {"a": 3}})["inner"] == {"a": 3, "b": 2}
    assert merge(base, {"inner": None})["inner"] is None
    assert merge(base, {"_target_": "torch.optim.SGD", "lr": 3}) == {"_target_": "torch.optim.SGD", "lr": 3}
    assert merge({"_target_": "torch.optim.SGD"}, {"kind": "adamw"}) == {"kind": "adamw"}
    assert merge({"_target_": "torch.optim.SGD", "lr": 3}, {"lr": 4}) == {"_target_": "torch.optim.SGD", "lr": 4}
    assert merge(base, None) is None
    assert merge(None, base) == base
    assert merge([1, 2], [3]) == [3]
    assert merge({"a": [1]}, {"a": {"b": 1}}) == {"a": {"b": 1}}
    assert base == {"kind": "gated_mlp", "width": 8, "inner": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        ("3::4", [3, 7]), (":2", [0, 1]), ("-1:", [7]), ("::-4", [7, 3]), (" 1 : 3 ", [1, 2]), ("9:", []),
        (0, [0]), (-1, [7]), ([0, -1], [0, 7]), ([], []), ((1, 2), [1, 2]),
    ],
)  # fmt: skip
def test_select(layers: Any, numbers: list[int]) -> None:
    assert select(layers, 8) == numbers


@pytest.mark.parametrize("layers", ["3", "", "::0", "a", "1:2:3:4", 8, -9, [0, 8], [0.5], None, 1.5, True, [True], {}])
def test_select_refuses(layers: Any) -> None:
    with pytest.raises(SpecError, match="layers="):
        select(layers, 8)


def test_expand_in_order_and_apart() -> None:
    from mlplatform.registry import expand

    layer = {"kind": "pre_norm", "mlp": {"kind": "mlp", "width": 8}, "dropout": 0.0}
    specs = expand(layer, [{"layers": "1:", "dropout": 0.1}, {"layers": [2], "dropout": 0.2, "mlp": MOE}], 3)
    assert [s["dropout"] for s in specs] == [0.0, 0.1, 0.2]
    assert [s["mlp"]["kind"] for s in specs] == ["mlp", "mlp", "moe"]
    assert "layers" not in specs[2]
    assert "width" in specs[1]["mlp"]
    assert specs[2]["mlp"] == MOE
    assert layer["dropout"] == 0.0
