"""Sound: inputs, positions, masks and heads against formulas by hand, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import mlplatform as mp
from mlplatform.blocks.audio import spans
from mlplatform.cli.compose import compose_model
from mlplatform.context import Context
from mlplatform.errors import DataError, SpecError
from mlplatform.models import build
from mlplatform.models.costs import forward_flops
from mlplatform.registry import Spec

DIM = 8
NORM = Spec.of({"kind": "layer_norm"}, "norm")
FRONT = {"kind": "convolutions", "channels": [4, 6], "kernels": [5, 3], "strides": [3, 2]}
CONV = {"kind": "convolution", "kernel": 4, "groups": 2}
WAVE = {"kind": "waveform", "front": FRONT, "positions": CONV}
MEL = {"kind": "spectrogram", "bins": 5, "strides": [1, 2], "positions": {"kind": "sinusoids"}}


def made(spec: dict[str, Any], group: str, **handed: Any) -> Any:
    return tiny.stirred(Spec.of(spec, group).build(**handed))


def reader(spec: dict[str, Any], length: int = 6) -> Any:
    return made(spec, "input", dim=DIM, tower_norm=NORM, context_length=length)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read(block: Any, **batch: Any) -> tuple[Tensor, Context]:
    length, device = block.size(batch)
    context = Context.of(batch, length, device)
    return block(batch, context), context


# ---- spectrograms


def test_two_frames_make_a_position() -> None:
    block, x = reader(MEL), noise(2, 5, 12)
    y = F.gelu(F.conv1d(x, block.convs[0].weight, block.convs[0].bias, padding=1))
    y = F.gelu(F.conv1d(y, block.convs[1].weight, block.convs[1].bias, padding=1, stride=2))
    got, context = read(block, input_features=x, attention_mask=torch.zeros(2, 12))
    torch.testing.assert_close(got, y.transpose(1, 2) + block.positions.table.weight)
    assert context.padding is None  # silence is heard


def test_sinusoids_by_hand_and_not_trained() -> None:
    block = Spec.of({"kind": "sinusoids", "longest": 100.0}, "positions").build(dim=6, context_length=9)
    block.reset_parameters()
    for place in range(9):
        angles = [place, place / 10, place / 100]
        want = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert block.table.weight[place].tolist() == pytest.approx(want, abs=1e-6)
    assert not any(p.requires_grad for p in block.parameters())
    built: Any = build(compose_model("whisper", ["encoder.depth=1", "decoder.depth=1"]).check().config)
    ours = built.encoder.input.positions.table.weight
    assert ours[0].tolist() == [0.0] * 192 + [1.0] * 192
    assert not ours.requires_grad


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({}, "no 'input_features'"),
        ({"input_features": noise(2, 5, 11)}, "5 x 11 numbers a recording; it is 5 x 12"),
        ({"input_features": noise(2, 4, 12)}, "4 x 12 numbers a recording; it is 5 x 12"),
    ],
)
def test_spectrograms_of_another_shape(batch: dict[str, Tensor], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(reader(MEL), **batch)


# ---- waveforms


@pytest.mark.parametrize("norm", ["first", "each"])
@pytest.mark.parametrize("bias", [True, False])
def test_front_end_by_hand(norm: str, bias: bool) -> None:
    block, samples = made({**FRONT, "norm": norm, "bias": bias}, "front"), noise(2, 40)
    x = samples[:, None]
    for number, conv in enumerate(block.convs):
        windows = x.unfold(-1, conv.kernel_size[0], conv.stride[0])
        x = torch.einsum("bcfk,dck->bdf", windows, conv.weight)
        x = x if conv.bias is None else x + conv.bias[:, None]
        if norm == "each" or number == 0:
            axis = 1 if norm == "each" else 2
            x = (x - x.mean(axis, keepdim=True)) / (x.var(axis, keepdim=True, unbiased=False) + 1e-5).sqrt()
            x = x * block.norms[number].weight[:, None] + block.norms[number].bias[:, None]
        x = F.gelu(x)
    torch.testing.assert_close(block(samples), x.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_frames_and_the_samples_they_need() -> None:
    block = made(FRONT, "front")
    for samples in range(block.samples(1), 60):
        frames = block.frames(samples)
        assert block(noise(1, samples)).shape[1] == frames
        assert block.samples(frames) <= samples < block.samples(frames + 1)
    base: Any = Spec.of(compose_model("wav2vec2").check().config["trunk"]["input"]["front"], "front")
    assert base.build().samples(1) == 400  # 25 ms
    assert base.build().frames(16000) == 49


def test_padding_becomes_zero_frames_that_none_attends() -> None:
    """Nothing of what a padded recording's end holds, or of its length, reaches its real frames."""
    block, samples = reader({**WAVE, "front": {**FRONT, "norm": "each"}}), noise(2, 40)
    mask = (torch.arange(40) < torch.tensor([40, 23])[:, None]).long()
    got, context = read(block, input_values=samples * mask, attention_mask=mask)
    real = block.front.frames(23)
    assert context.padding is not None
    assert context.padding.sum(-1).tolist() == [block.front.frames(40), real]
    alone, _ = read(block, input_values=samples[1:, :23])
    torch.testing.assert_close(got[1, :real], alone[0])


def test_hidden_frames_become_the_vector() -> None:
    block = reader({**WAVE, "masking": {"kind": "spans", "learned": True}, "positions": {**CONV, "kernel": 1}})
    hidden = torch.arange(5)[None].repeat(2, 1) % 3 == 1
    got, context = read(block, input_values=noise(2, 40), mask_time_indices=hidden)
    want = block.positions(block.masking.vector.expand(1, 1, -1), context)[0, 0]
    torch.testing.assert_close(got[hidden], want.expand(4, -1))
    plain, _ = read(block, input_values=noise(2, 40))
    torch.testing.assert_close(got[~hidden], plain[~hidden])
    assert context.hidden is not None
    assert torch.equal(context.hidden, hidden)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({}, "no 'input_values'"),
        ({"input_values": noise(2, 1, 40)}, "3 dimensions"),
        ({"input_values": noise(2, 10)}, "10 samples are too short; a frame takes 11"),
        ({"input_values": noise(2, 40), "attention_mask": torch.ones(2, 6)}, r"attention_mask is \[2, 6\]"),
        ({"input_values": noise(2, 40), "mask_time_indices": torch.ones(2, 6)}, "no masking"),
    ],
)
def test_waveforms_that_are_none(batch: dict[str, Tensor], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(reader(WAVE), **batch)
    assert "\n" not in str(caught.value)


def test_hidden_frames_of_another_number() -> None:
    block = reader({**WAVE, "masking": {"kind": "spans", "learned": True}})
    with pytest.raises(DataError, match=r"mask_time_indices is \[2, 6\]; these recordings have \[2, 5\] frames"):
        read(block, input_values=noise(2, 40), mask_time_indices=torch.ones(2, 6))


@pytest.mark.parametrize(
    ("spec", "group", "said"),
    [
        ({**FRONT, "kernels": [5]}, "front", "2 channels, 1 kernels and 2 strides"),
        ({**CONV, "groups": 3}, "positions", "dim=8 is not a multiple of groups=3"),
        ({"kind": "sinusoids"}, "positions", "dim=7"),
        ({"kind": "ctc", "labels": 3, "blank": 3}, "head", "blank=3 is none of labels=3"),
        ({"kind": "code_contrast", "code_dim": 5}, "head", "code_dim=5 is not a multiple of groups=2"),
    ],
)
def test_numbers_that_do_not_fit(spec: dict[str, Any], group: str, said: str) -> None:
    dim = 7 if spec["kind"] == "sinusoids" else DIM
    with pytest.raises(SpecError, match=said):
        Spec.of(spec, group).build(dim=dim, context_length=6, feature_dim=6, tower_norm=NORM)


def test_codes_need_features() -> None:
    with pytest.raises(SpecError, match="needs an input that makes features"):
        Spec.of({"kind": "code_contrast"}, "head").build(dim=DIM, feature_dim=0)


# ---- positions


@pytest.mark.parametrize("kernel", [1, 4, 5])
def test_weight_norm_is_torchs(kernel: int) -> None:
    block = made({**CONV, "kernel": kernel}, "positions", dim=DIM, context_length=6)
    conv = torch.nn.Conv1d(DIM, DIM, kernel, padding=kernel // 2, groups=2)
    conv = parametrizations.weight_norm(conv, name="weight", dim=2)
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1", "bias")
    conv.load_state_dict(dict(zip(names, (block.length, block.direction, block.bias), strict=True)))
    x = noise(2, 6, DIM)
    want = x + F.gelu(conv(x.transpose(1, 2))[..., :6]).transpose(1, 2)
    torch.testing.assert_close(block(x, Context(torch.arange(6)[None])), want)
    want.sum().backward()
    block(x, Context(torch.arange(6)[None])).sum().backward()
    torch.testing.assert_close(block.length.grad, conv.parametrizations["weight"].original0.grad)  # type: ignore[index]


def test_length_starts_as_the_directions_own() -> None:
    block = Spec.of(CONV, "positions").build(dim=DIM, context_length=6)
    block.reset_parameters()
    torch.testing.assert_close(block.length[0, 0], block.direction.flatten(0, 1).norm(dim=0))
    assert block.direction.std().item() == pytest.approx(2 / math.sqrt(4 * DIM), rel=0.2)


def test_batch_norm_learns_its_statistics() -> None:
    block = Spec.of({**CONV, "norm": "batch"}, "positions").build(dim=DIM, context_length=6)
    block.reset_parameters()
    assert block.length is None
    before = block.batch_norm.running_mean.clone()
    block.train()(noise(2, 6, DIM) + 3, Context(torch.arange(6)[None]))
    assert (block.batch_norm.running_mean - before > 0.1).all()


# ---- masks


def test_spans_hide_their_share() -> None:
    torch.manual_seed(0)
    covered = spans([400] * 50 + [100] * 50, 400, 0.2, 10, 0)
    assert not covered[50:, 100:].any()
    for rows, places in ((covered[:50], 400), (covered[50:, :100], 100)):
        assert 0.13 < rows.float().mean() < 0.2  # less than the share, as spans meet
        for row in rows:
            ends = torch.nn.functional.pad(row.int(), (1, 1)).diff()
            starts, stops = (ends == 1).nonzero()[:, 0], (ends == -1).nonzero()[:, 0]
            assert ((stops - starts) >= 10).all()
            assert int(stops[-1]) <= places


def test_spans_of_short_recordings() -> None:
    assert spans([5], 20, 0.5, 10, 2).sum() == 0  # no span of ten fits
    assert spans([10], 20, 0.01, 10, 2).sum() == 10  # one place to start at
    assert spans([20], 20, 0.0, 3, 1).sum() == 3  # one at least


def test_masking_in_training_only() -> None:
    block = Spec.of(
        {"kind": "spans", "frames": 0.3, "frames_length": 2, "features": 0.3, "features_length": 2}, "masking"
    )
    x = torch.ones(4, 30, 12)
    masking = block.build(dim=12)
    assert masking.vector is None
    assert torch.equal(masking.eval()(x, None), x)
    torch.manual_seed(0)
    y = masking.train()(x, None)
    assert 0.1 < (y == 0).all(-1).float().mean() < 0.6  # frames
    assert ((y == 0).all(1).sum(-1) >= 2).all()  # features of all frames
    off = Spec.of({"kind": "spans", "active": False, "frames": 0.3}, "masking").build(dim=12)
    assert torch.equal(off.train()(x, None), x)
    torch.manual_seed(0)
    again = masking(x, None)
    assert torch.equal(again, y)


# ---- heads


def ctc_by_hand(likely: Tensor, target: list[int], blank: int) -> float:
    """Return -log of the sum over all ways of spreading a target over frames, by going through them all."""
    total, (frames, labels) = 0.0, likely.shape
    for number in range(labels**frames):
        path = [number // labels**place % labels for place in range(frames)]
        merged = [a for place, a in enumerate(path) if place == 0 or path[place - 1] != a]
        if [a for a in merged if a != blank] == target:
            total += math.exp(sum(likely[place, a].item() for place, a in enumerate(path)))
    return -math.log(total) if total else math.inf


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ctc_by_hand(reduction: str) -> None:
    head = made({"kind": "ctc", "labels": 3, "blank": 1, "reduction": reduction}, "head", dim=DIM)
    x, labels = noise(2, 5, DIM), torch.tensor([[0, 0, 2], [2, -100, -100]])
    context = Context(torch.arange(5)[None], padding=torch.arange(5) < torch.tensor([[5], [3]]))
    likely = head(x, context).logits.log_softmax(-1)
    each = [ctc_by_hand(likely[0], [0, 0, 2], 1), ctc_by_hand(likely[1, :3], [2], 1)]
    total, count = head.loss(x, labels, context)
    if reduction == "sum":
        assert (total.item(), count.item()) == (pytest.approx(sum(each)), 1)
    else:
        assert (total.item(), count.item()) == (pytest.approx(each[0] / 3 + each[1]), 2)


@pytest.mark.parametrize(("zero", "want"), [(False, math.inf), (True, 0.0)])
def test_a_transcript_longer_than_its_recording(zero: bool, want: float) -> None:
    head = made({"kind": "ctc", "labels": 4, "zero_infinity": zero}, "head", dim=DIM)
    total, _ = head.loss(noise(1, 3, DIM), torch.tensor([[1, 1, 2]]), Context(torch.arange(3)[None]))
    assert total.item() == want


def test_a_label_that_is_none() -> None:
    head = made({"kind": "ctc", "labels": 4}, "head", dim=DIM)
    with pytest.raises(DataError, match="labels hold 4; this head knows 0 to 3"):
        head.loss(noise(1, 3, DIM), torch.tensor([[1, 4]]), Context(torch.arange(3)[None]))


def test_the_mean_leaves_padding_out() -> None:
    head = made({"kind": "mean_classification", "labels": 3, "width": 5}, "head", dim=DIM)
    x, padding = noise(2, 4, DIM), torch.arange(4) < torch.tensor([[4], [2]])
    got = head(x, Context(torch.arange(4)[None], padding=padding)).logits
    for row, real in enumerate((4, 2)):
        torch.testing.assert_close(got[row], head.out(head.project(x[row, :real].mean(0))))


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny model of transformers with its quantizer, and its files."""
    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "conv_dim": [12, 16]}
    size |= {"intermediate_size": 48, "conv_kernel": [10, 3], "conv_stride": [3, 2], "num_conv_pos_embeddings": 4}
    size |= {"num_conv_pos_embedding_groups": 2, "num_codevectors_per_group": 3, "codevector_dim": 8}
    torch.manual_seed(0)
    model = tf.Wav2Vec2ForPreTraining(tf.Wav2Vec2Config(**size, proj_codevector_dim=10)).eval()
    folder = tmp_path_factory.mktemp("pretraining")
    model.save_pretrained(folder)
    return model, folder


def test_loss_of_pretraining_is_the_references(pretraining: tuple[Any, Path]) -> None:
    reference, folder = pretraining
    model = mp.load(folder)
    samples = noise(2, 107)
    hidden = torch.arange(16)[None] % 3 == torch.tensor([[0], [1]])
    wrong = torch.randint(0, 32, (2, 16, 7), generator=torch.Generator().manual_seed(1))
    want = reference(samples, mask_time_indices=hidden, sampled_negative_indices=wrong)
    got = model(input_values=samples, mask_time_indices=hidden, labels=wrong)
    assert (want.projected_quantized_states.flatten(0, 1)[wrong] == want.projected_quantized_states[:, :, None]).any()
    torch.testing.assert_close(got.loss_sum, want.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.codevector_perplexity, want.codevector_perplexity)
    assert got.loss_count == hidden.sum()
    with pytest.raises(DataError, match="no 'mask_time_indices'"):
        model(input_values=samples, labels=wrong)


def test_pretraining_trains(pretraining: tuple[Any, Path]) -> None:
    """The draw lets gradients through to the scores; a few steps lower the loss."""
    torch.manual_seed(0)
    model: Any = mp.load(pretraining[1]).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    samples, hidden = noise(4, 107), torch.rand(4, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    wrong = torch.randint(0, 64, (4, 16, 5), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(40):
        loss = model(input_values=samples, mask_time_indices=hidden, labels=wrong).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model.head.scores.weight.grad.abs().max() > 0
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_older_names_of_weight_norm(pretraining: tuple[Any, Path], tmp_path: Path) -> None:
    right = mp.load(pretraining[1])
    tensors = load_file(pretraining[1] / "model.safetensors")
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        name = f"wav2vec2.encoder.pos_conv_embed.conv.{new}"
        tensors[name.replace(new, old)] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((pretraining[1] / "config.json").read_text())
    for name, tensor in mp.load(tmp_path).state_dict().items():
        assert torch.equal(tensor, right.state_dict()[name]), name


SMALL = ["trunk.dim=32", "trunk.depth=2", "trunk.layer.attention.heads=4", "trunk.layer.mlp.width=48"]
SMALL += [
    "trunk.input.front.channels=[16, 16]",
    "trunk.input.front.kernels=[10, 3]",
    "trunk.input.front.strides=[5, 2]",
]
SMALL += ["trunk.input.positions.kernel=8", "trunk.input.positions.groups=4", "head=ctc"]


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2_large_lv60", "hubert"])
def test_transcripts_are_learned(name: str) -> None:
    """In training, with masks, dropout and padding, a few steps teach a small model the tones of its recordings."""
    torch.manual_seed(0)
    model: Any = build(compose_model(name, [*SMALL, "trunk.input.masking.frames_length=2"]).check().config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    pitches = torch.tensor([[3, 9, 5], [9, 3, 0]])
    turns = (pitches.repeat_interleave(100, 1) * torch.arange(300) * 0.07).sin() * (pitches > 0).repeat_interleave(
        100, 1
    )
    mask = (pitches > 0).repeat_interleave(100, 1).long()
    labels = pitches.masked_fill(pitches == 0, -100)
    losses = []
    for _ in range(60):
        out = model(input_values=turns, attention_mask=mask, labels=labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None for p in model.parameters())


# ---- costs


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("wav2vec2", []),
        ("wav2vec2", ["head=pretraining"]),
        ("wav2vec2", ["head=sequence_classification"]),
        ("wav2vec2_large_lv60", ["trunk.input.positions.norm=batch"]),
        ("whisper_encoder", []),
    ],
)
def test_flops_of_sound_equal_torchs_counter(name: str, overrides: list[str]) -> None:
    model: Any = build(compose_model(name, [*overrides, "trunk.depth=2"]).check().config, device="meta").eval()
    rows = 1500 if name == "whisper_encoder" else 20
    batch = {"input_features": torch.zeros(1, 80, 3000, device="meta")}
    if rows == 20:
        batch = {"input_values": torch.zeros(1, model.trunk.input.front.samples(rows), device="meta")}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    assert sum(forward_flops(model, rows)) == counter.get_total_flops()


def test_flops_of_whisper_equal_torchs_counter() -> None:
    model = build(compose_model("whisper", ["encoder.depth=2", "decoder.depth=2"]).check().config, device="meta")
    tokens = torch.zeros(1, 20, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_features=torch.zeros(1, 80, 3000, device="meta"), decoder_input_ids=tokens)
    assert sum(forward_flops(model, 20)) == counter.get_total_flops()
