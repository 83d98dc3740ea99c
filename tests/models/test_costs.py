"""FLOPs against torch's own counter, parameters in use, numbers in the KV cache."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlplatform.cli.compose import compose_model
from mlplatform.cli.library import Library
from mlplatform.context import Cache
from mlplatform.models import build, costs

LENGTH = 40


def counted(run: Any) -> int:
    """Return the FLOPs torch's counter sees. It has no formula for the CPU's flash attention, which is switched off."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", []),
        ("llama", ["head=lm", "heads.lm.tied=true", "trunk.layer.attention.kv_heads=1"]),
        ("llama", ["block/layer@trunk.layer=parallel", "++trunk.layer.attention.gate=true"]),
        ("gpt2", ["head=none"]),
        ("gpt2", ["head=sequence_classification"]),
        ("bert", []),
        ("bert", ["head=pretraining"]),
        ("bert", ["head=pooled"]),
    ],
)
def test_flops_equal_torchs_counter_on_meta(family: str, overrides: list[str]) -> None:
    model = build(tiny.spec(family, *overrides), device="meta")
    tokens = torch.zeros(1, LENGTH, dtype=torch.long, device="meta")

    def train() -> None:
        torch.stack([value.sum() for value in model(input_ids=tokens).values()]).sum().backward()

    forward = counted(lambda: model(input_ids=tokens))
    assert sum(costs.forward_flops(model, LENGTH)) == forward
    assert costs.training_flops_per_token(model, LENGTH) * LENGTH == pytest.approx(3 * forward)
    if model.head is not None and family != "bert":  # where every matrix has a gradient to give and to pass on
        assert counted(train) == 3 * forward


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit_tiny", []),
        ("vit_tiny", ["head=pooled"]),
        ("vit_masked", ["trunk.depth=2"]),
        ("clip_vision", ["trunk.depth=2"]),
    ],
)
def test_flops_of_images_equal_torchs_counter(name: str, overrides: list[str]) -> None:
    model: Any = build(compose_model(name, overrides).check().config, device="meta")
    side = model.trunk.input.image_size
    images = torch.zeros(1, 3, side, side, device="meta")
    assert sum(costs.forward_flops(model, 1)) == counted(lambda: model(pixel_values=images))


def test_a_window_leaves_only_its_keys() -> None:
    def attention(window: str) -> float:
        model = build(tiny.spec("llama", f"+trunk.layer.attention.window={window}"), device="meta")
        return costs.forward_flops(model, LENGTH)[1]

    assert attention("10") == attention("null") * 10 / LENGTH
    assert attention("100") == attention("null")


@pytest.mark.parametrize("name", Library().options("model"))
def test_flops_of_every_shipped_model_equal_torchs_counter(name: str) -> None:
    spec = compose_model(name).check().config
    towers = [spec[part] for part in ("trunk", "encoder", "decoder") if part in spec]
    if (
        not all("tokens" in tower.get("input", {}).get("kind", "") for tower in towers)
        or not towers
        or "moe" in str(spec)
    ):
        pytest.skip(
            "reads more than tokens, or has experts, which can't be counted on meta: see the tests of assemblies"
        )
    for tower in towers:
        tower |= {"depth": 2, "exceptions": []}
    model = build(spec, device="meta")
    tokens = torch.zeros(1, LENGTH, dtype=torch.long, device="meta")
    batch = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if "decoder" in spec else {})
    if "trunk" in spec and "cross" in spec["trunk"]["layer"]:
        batch["encoder_hidden_states"] = torch.zeros(1, LENGTH, spec["trunk"]["dim"], device="meta")
    assert counted(lambda: model(**batch)) == sum(costs.forward_flops(model, LENGTH))


@pytest.mark.parametrize(("name", "towers"), [("blip", 1), ("blip_retrieval", 1), ("blip_vqa", 2)])
def test_flops_of_texts_beside_images_equal_torchs_counter(name: str, towers: int) -> None:
    spec = compose_model(name, ["vision.trunk.input.image_size=64", "vision.trunk.depth=2"]).check().config
    for tower in [spec["text"][part] for part in ("trunk", "encoder", "decoder") if part in spec["text"]]:
        tower["depth"] = 2
    model = build(spec, device="meta")
    tokens = torch.zeros(1, LENGTH, dtype=torch.long, device="meta")
    batch = {"input_ids": tokens, "pixel_values": torch.zeros(1, 3, 64, 64, device="meta")}
    if towers == 2:
        batch["decoder_input_ids"] = tokens
    assert counted(lambda: model(**batch)) == sum(costs.forward_flops(model, LENGTH))


def merged() -> dict[str, Any]:
    """T5Gemma 2's shape: a decoder that reads itself and the encoder in one softmax."""
    spec = tiny.encoder_decoder()
    layer = {"kind": "pre_norm", "attention": {"kind": "merged_attention", "heads": 4}, "mlp": {"kind": "mlp"}}
    spec["decoder"] = tiny.tower(input={"kind": "shared_tokens"}, layer=layer)
    return spec


@pytest.mark.parametrize("name", ["encoder_decoder", "merged", "dual_tower", "vision_language"])
def test_flops_of_assemblies_equal_torchs_counter(name: str) -> None:
    model = build(merged() if name == "merged" else getattr(tiny, name)())
    tokens = torch.full((1, LENGTH), 3)
    batch: dict[str, Any] = {"input_ids": tokens}
    extra = 0
    if name in ("encoder_decoder", "merged"):
        batch["decoder_input_ids"] = tokens
    else:
        batch["pixel_values"] = torch.zeros(1, 3, 16, 16)
    if name == "vision_language":
        tokens[0, 4:20] = 49
    if name == "dual_tower":
        extra = 2 * 16  # the score of the one pair
    assert counted(lambda: model(**batch)) == sum(costs.forward_flops(model, LENGTH)) + extra


def mixture(experts: int = 6, top_k: int = 2, width: int = 10) -> nn.Module:
    layer = tiny.tower()["layer"]
    moe = {"kind": "moe", "experts": experts, "top_k": top_k, "width": width, "router": {"kind": "softmax_router"}}
    moe["shared"] = {"kind": "gated_mlp", "width": 8}
    trunk = tiny.tower(layer={**layer, "mlp": moe})
    return build({"kind": "single_tower", "trunk": trunk, "head": {"kind": "lm_head"}})


def test_flops_of_a_mixture_equal_torchs_counter() -> None:
    model = mixture()  # 10 * 4 bytes is no multiple of 16: the experts run one after the other, which torch counts
    tokens = torch.zeros(1, LENGTH, dtype=torch.long)
    assert counted(lambda: model(input_ids=tokens)) == sum(costs.forward_flops(model, LENGTH))


def test_active_parameters_of_a_mixture() -> None:
    model = mixture()
    total = sum(p.numel() for p in model.parameters())
    one_expert = 3 * 32 * 10
    assert costs.active_parameters(model) == total - 2 * 4 * one_expert  # 2 layers, 4 of 6 experts idle
    dense = build(tiny.spec("llama"), device="meta")
    assert costs.active_parameters(dense) == sum(p.numel() for p in dense.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_cached_numbers_are_what_the_cache_holds(family: str) -> None:
    model, cache = tiny.model(family), Cache()
    model(input_ids=torch.zeros(1, 7, dtype=torch.long), cache=cache)
    held = sum(keys.numel() + values.numel() for keys, values in cache.entries.values())
    assert costs.cached_numbers(model) * 7 == held


def test_a_bidirectional_model_has_no_cache() -> None:
    assert costs.cached_numbers(build(tiny.spec("bert"), device="meta")) == 0


def test_the_decoder_alone_is_cached() -> None:
    model, cache = build(tiny.encoder_decoder()), Cache()
    tokens = torch.zeros(1, 5, dtype=torch.long)
    model(input_ids=tokens, decoder_input_ids=tokens, cache=cache)
    assert costs.cached_numbers(model) * 5 == sum(k.numel() + v.numel() for k, v in cache.entries.values())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16-true", torch.bfloat16)])
def test_bytes_are_what_training_keeps(precision: str, dtype: torch.dtype) -> None:
    model = build(tiny.spec("llama"), dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 5, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    count = sum(p.numel() for p in model.parameters())
    weights, gradients, moments, _ = costs.PRECISIONS[precision]
    assert sum(p.nbytes for p in model.parameters()) == weights * count
    assert sum(p.grad.nbytes for p in model.parameters() if p.grad is not None) == gradients * count
    kept = (value for state in optimizer.state.values() for name, value in state.items() if name != "step")
    assert sum(value.nbytes for value in kept) == moments * count


def test_bytes_under_autocast() -> None:
    model, cache = build(tiny.spec("llama")), Cache()
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.zeros(1, 5, dtype=torch.long), cache=cache).logits.float().sum().backward()
    weights, gradients, _, cached = costs.PRECISIONS["bf16-mixed"]
    parameters = list(model.parameters())
    assert {p.element_size() for p in parameters} == {weights}
    assert {p.grad.element_size() for p in parameters if p.grad is not None} == {gradients}
    assert {t.element_size() for pair in cache.entries.values() for t in pair} == {cached}


def test_a_block_may_say_its_own() -> None:
    model = build(tiny.spec("llama"), device="meta")
    matrices, attention = costs.forward_flops(model, LENGTH)
    for layer in model.trunk.layers:  # type: ignore[union-attr]
        mlp = sum(2 * LENGTH * p.numel() for p in layer.mlp.parameters())  # type: ignore[union-attr]
        layer.mlp.flops = lambda rows, memory: (3.0 * rows, 5.0)  # type: ignore[union-attr]
        matrices += 3 * LENGTH - mlp
    assert costs.forward_flops(model, LENGTH) == (matrices, attention + 2 * 5)
