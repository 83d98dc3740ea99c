"""What the decoder of an encoder-decoder writes about an input: greedily, or the best of several beams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlplatform.context import Cache, Output
from mlplatform.errors import SpecError
from mlplatform.generation.texts import Texts


@torch.no_grad()
def write(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    ends: set[int],
    max_new_tokens: int = 64,
    beams: int = 1,
    length_penalty: float = 1.0,
    begin: Sequence[int] = (),
) -> list[list[int]]:
    """Return the likeliest tokens a decoder writes about each row, without what ends them; no dropout.

    Args:
        model: an `encoder_decoder`. inputs: what its encoder reads, with the model's batch names; each (rows, ...).
        ends: tokens that end a text.
        beams: unfinished texts kept at a time; 1 takes the likeliest token at each place.
        length_penalty: texts are compared by their log-probability / tokens ** length_penalty.
        begin: tokens the decoder has written already, after its start token where it has one.

    Raises:
        SpecError: the model has no decoder that can begin by itself.
    """
    start: Any = getattr(model, "start_token", None)
    begun = [*([] if start is None else [int(start)]), *begin]
    if getattr(model, "kind", "") != "encoder_decoder" or not begun or getattr(model, "head", None) is None:
        raise SpecError("only an encoder_decoder with a head and a start_token writes about an input")
    if beams < 1 or max_new_tokens < 1:
        raise SpecError(f"beams={beams} and max_new_tokens={max_new_tokens} must be 1 or more")
    was_training = model.training
    model.eval()
    try:
        decoder = _Decoder(model, inputs, beams, begun)
        most: int = min(max_new_tokens, model.decoder.context_length - len(begin))  # type: ignore[operator,assignment]
        return _greedy(decoder, ends, most) if beams == 1 else _beams(decoder, ends, most, beams, length_penalty)
    finally:
        model.train(was_training)


class _Decoder:
    """Reads `beams` copies of each row; `step` gives the log-probabilities (rows * beams, vocab) of the next token."""

    def __init__(self, model: Any, inputs: Mapping[str, Tensor], beams: int, begin: list[int]) -> None:
        told: Output = model.encode(inputs)
        self.told = Output({n: t.repeat_interleave(beams, 0) if isinstance(t, Tensor) else t for n, t in told.items()})
        self.model, self.cache = model, Cache()
        self.rows = len(told.encoder_last_hidden_state)
        device = told.encoder_last_hidden_state.device
        self.tokens = torch.tensor(begin, device=device).expand(self.rows * beams, -1)

    def step(self) -> Tensor:
        fresh = self.tokens[:, self.cache.length :]
        out = self.model(decoder_input_ids=fresh, encoder_outputs=self.told, cache=self.cache)
        return out.logits[:, -1].float().log_softmax(-1)

    def add(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        """Append a token (rows * beams,) to each text, or to the texts `rows`, which take the places of all."""
        if rows is not None:
            self.tokens = self.tokens[rows]
            self.cache.reorder(rows)
        self.tokens = torch.cat([self.tokens, tokens[:, None]], 1)


def _greedy(decoder: _Decoder, ends: set[int], most: int) -> list[list[int]]:
    texts = Texts(decoder.rows, ends)
    for _ in range(most):
        chosen = decoder.step().argmax(-1)
        if texts.add(chosen):
            break
        decoder.add(chosen)
    return texts.tokens


@dataclass
class _Finished:
    """The best texts of one row that have ended, at most `beams` of them, best first."""

    beams: int
    texts: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, score: float, text: list[int]) -> None:
        self.texts = sorted([*self.texts, (score, text)], key=lambda one: -one[0])[: self.beams]

    def beaten_by(self, score: float) -> bool:
        """Whether a text of that score would still get in."""
        return len(self.texts) < self.beams or score > self.texts[-1][0]


def _beams(decoder: _Decoder, ends: set[int], most: int, beams: int, penalty: float) -> list[list[int]]:
    """Beam search as transformers does it: a row ends when its best unfinished text is worse than all it has."""
    rows, begun = decoder.rows, decoder.tokens.shape[1]
    finished = [_Finished(beams) for _ in range(rows)]
    open_rows = [True] * rows
    sums = torch.full((rows, beams), float("-inf"), device=decoder.tokens.device)
    sums[:, 0] = 0.0  # all beams are alike at first: one of them speaks
    for length in range(1, most + 1):
        step = decoder.step().view(rows, beams, -1)
        words = step.shape[-1]
        best, places = (sums[..., None] + step).flatten(1).topk((1 + len(ends)) * beams, -1)
        texts, taken = decoder.tokens[:, begun:].tolist(), []
        for row in range(rows):
            kept: list[tuple[float, int, int]] = []
            for rank, (score, place) in enumerate(zip(best[row].tolist(), places[row].tolist(), strict=True)):
                source, token = row * beams + place // words, place % words
                if token not in ends:
                    kept.append((score, source, token))
                elif rank < beams and open_rows[row]:
                    finished[row].add(score / length**penalty, texts[source])
            taken += kept[:beams]
            open_rows[row] = open_rows[row] and finished[row].beaten_by(kept[0][0] / length**penalty)
        sums = torch.tensor([score for score, _, _ in taken], device=sums.device).view(rows, beams)
        decoder.add(*(torch.tensor(part, device=sums.device) for part in list(zip(*taken, strict=True))[:0:-1]))
        if not any(open_rows):
            break
    for row, text in enumerate(decoder.tokens[:, begun:].tolist()):
        if open_rows[row // beams]:
            finished[row // beams].add(float(sums.flatten()[row]) / most**penalty, text)
    return [one.texts[0][1] for one in finished]
