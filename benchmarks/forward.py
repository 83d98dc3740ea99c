"""Forward passes beside transformers: the same weights and inputs in fp32, one thread and two.

    python benchmarks/forward.py [CASE ...]     # default: all
    python benchmarks/forward.py --products     # a mixture beside its matrix products alone, the least it takes

Ours are loaded from what transformers saved, and their outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as tf
from measure import paired
from torch import Tensor, nn

import mlplatform as mp

FAMILIES = Path(__file__).parent.parent / "tests" / "families"
Call = Callable[[], Tensor]
Pair = tuple[Call, Call]
tf.logging.disable_progress_bar()
tf.logging.set_verbosity_error()


def both(model: type, config: tf.PretrainedConfig) -> tuple[nn.Module, nn.Module]:
    """Return our model and transformers' (with SDPA) of one random checkpoint."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model(config).save_pretrained(folder)
        theirs = model.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
        return mp.load(folder, config_dirs=[FAMILIES]).requires_grad_(True), theirs


def bert_base() -> Pair:
    """8 x 128 tokens through BERT base's body."""
    ours, theirs = both(tf.BertModel, tf.BertConfig())
    ids = torch.randint(0, 30000, (8, 128))
    mask = torch.ones_like(ids)
    return (
        lambda: ours(input_ids=ids, attention_mask=mask).last_hidden_state,
        lambda: theirs(input_ids=ids, attention_mask=mask).last_hidden_state,
    )


def vit_base() -> Pair:
    """8 images of 224 pixels through ViT base with its classifier."""
    ours, theirs = both(tf.ViTForImageClassification, tf.ViTConfig())
    images = torch.randn(8, 3, 224, 224)
    return lambda: ours(pixel_values=images).logits, lambda: theirs(pixel_values=images).logits


def whisper_tiny_encoder() -> Pair:
    """2 recordings of 30 seconds through Whisper tiny's encoder."""
    config = tf.WhisperConfig(decoder_layers=4, encoder_layers=4, d_model=384, encoder_attention_heads=6)
    config.decoder_attention_heads, config.encoder_ffn_dim, config.decoder_ffn_dim = 6, 1536, 1536
    ours, theirs = both(tf.WhisperModel, config)
    features = torch.randn(2, 80, 3000)
    return (
        lambda: ours.encode({"input_features": features}).encoder_last_hidden_state,
        lambda: theirs.encoder(features).last_hidden_state,
    )


def moe_layers() -> tuple[nn.Module, nn.Module, Tensor]:
    """Return both mixtures of 8 experts, 2 a token, width 512, and 4,096 tokens."""
    size = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 8}
    config = tf.MixtralConfig(**size, num_key_value_heads=8, vocab_size=99, num_local_experts=8, num_experts_per_tok=2)
    ours, theirs = both(tf.MixtralForCausalLM, config)
    return ours.trunk.layers[0].mlp, theirs.model.layers[0].mlp, torch.randn(1, 4096, 512)


def moe() -> Pair:
    """4,096 tokens through a mixture of experts."""
    ours, theirs, x = moe_layers()
    return lambda: ours(x), lambda: first(theirs(x))


def moe_backward() -> Pair:
    """The same with the gradients of the weights and of what went in."""
    ours, theirs, x = moe_layers()

    def run(layer: nn.Module) -> Tensor:
        given = x.clone().requires_grad_()
        with torch.enable_grad():
            first(layer(given)).square().sum().backward()
        layer.zero_grad()
        assert given.grad is not None
        return given.grad

    return lambda: run(ours), lambda: run(theirs)


def products_table(rounds: int) -> None:
    """Print both mixtures' times as multiples of their experts' matrix products, tokens spread evenly."""
    ours, theirs, x = moe_layers()
    matrices = [m.detach() for m in (ours.experts.gate, ours.experts.up, ours.experts.down)]
    rows = torch.randn(8, 1024, 512)

    def products() -> None:
        for part, gate, up, down in zip(rows, *matrices, strict=True):
            part @ up.t()
            (part @ gate.t()) @ down.t()

    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, layer in (("ours", ours), ("theirs", theirs)):
            ratio, alone, whole = paired(products, lambda layer=layer: layer(x), rounds)
            print(
                f"{name:8} {threads} threads: {whole:.3f} s, {ratio:.2f}x of its products alone ({alone:.3f} s)",
                flush=True,
            )


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


CASES: dict[str, Callable[[], Pair]] = {
    "bert_base": bert_base,
    "vit_base": vit_base,
    "whisper_tiny_encoder": whisper_tiny_encoder,
    "moe": moe,
    "moe_backward": moe_backward,
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--products", action="store_true")
    arguments = parser.parse_args()
    if arguments.products:
        return products_table(arguments.rounds)
    print(f"{'case':22} {'threads':>7} {'ours s':>8} {'theirs s':>8} {'speed-up':>9} {'largest difference':>19}")
    for name in arguments.cases or CASES:
        ours, theirs = CASES[name]()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            expected = theirs()
            gap = (ours() - expected).abs().max().item()
            if gap > 1e-4 * expected.abs().max().item():
                raise SystemExit(f"{name}: the two compute different things: {gap}")
            ratio, own, other = paired(ours, theirs, arguments.rounds)
            print(f"{name:22} {threads:7} {own:8.3f} {other:8.3f} {ratio:8.2f}x {gap:19.1e}", flush=True)


if __name__ == "__main__":
    main()
