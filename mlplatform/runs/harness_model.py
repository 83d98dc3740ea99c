"""A causal model as lm-evaluation-harness asks it: how likely texts are, and what follows them.

The tokens asked about are those Hugging Face's model of the same files is asked about there, so that the figures are
the same. What doesn't fit in the model's context loses its beginning, which is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import nn

from mlplatform.errors import DataError
from mlplatform.generation.generate import generate_tokens

ROUND = 32
"""Tokens that are written before it is looked at whether a text has ended by one of its own signs."""

Asked = tuple[tuple[str, str], list[int], list[int]]
"""A context and its continuation, as texts and as tokens."""


class Judged(TemplateLM):
    """Answers requests about a causal model, in batches of like length.

    Args:
        batch: texts of one forward pass.

    Attributes:
        shortened: how many requests lost the beginning of their context.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, batch: int) -> None:
        super().__init__()
        self.model, self.words, self.batch, self.shortened = model.eval(), tokenizer, batch, 0
        self._device = next(model.parameters()).device
        self.context: int = model.trunk.context_length  # type: ignore[assignment]
        self.begin = tokenizer.bos if tokenizer.bos is not None else tokenizer.frame[0]

    @property
    def eot_token_id(self) -> int:
        return self.words.frame[1]

    @property
    def prefix_token_id(self) -> int:
        return self.begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Return a text's tokens, with those of the tokenizer's template unless the text has its first one already."""
        begun = string.startswith(self.words.decode([self.begin], specials=True))
        return self.words.encode(string, specials=not begun if add_special_tokens is None else add_special_tokens)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Asked], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Return of each continuation its log-probability, and whether it is what greedy decoding would write."""
        found: list[Any] = [None] * len(requests)
        for numbers in self._alike([len(context) + len(rest) for _, context, rest in requests]):
            rows = [self._fitted(*requests[number][1:]) for number in numbers]
            tokens = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long, device=self.device)
            for place, (row, _) in enumerate(rows):
                tokens[place, : len(row)] = torch.tensor(row, device=self.device)
            logits = self.model(input_ids=tokens[:, :-1]).logits
            for place, (row, count) in enumerate(rows):  # what follows a row's end is padding nobody looks at
                asked = tokens[place, len(row) - count : len(row)]
                said = logits[place, len(row) - count - 1 : len(row) - 1].float().log_softmax(-1)
                likely = said.gather(-1, asked[:, None]).sum()
                found[numbers[place]] = (float(likely), bool((said.argmax(-1) == asked).all()))
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def _fitted(self, context: list[int], rest: list[int]) -> tuple[list[int], int]:
        """Return the tokens of a context and its continuation, and how many are the latter's."""
        if len(rest) > self.context:
            told = f"a continuation has {len(rest)} tokens, and the model's context {self.context}"
            raise DataError(f"{told}; its likelihood can't be told: leave the task out or take a model of more")
        whole = [*context, *rest]
        self.shortened += len(whole) > self.context + 1  # of the last token only its likelihood is asked
        return whole[-(self.context + 1) :], len(rest)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of whole texts: each token once, in windows of the model's context."""
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            cut = utils.get_rolling_token_windows(self.tok_encode(text), self.begin, self.context, context_len=1)
            own = [(None, *utils.make_disjoint_window(window)) for window in cut]
            windows += own
            counts.append(len(own))
        answers = iter(self._loglikelihood_tokens(windows))  # type: ignore[arg-type]
        return [sum(next(answers)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context, up to one of the texts that end it."""
        found = [""] * len(requests)
        contexts = [self.tok_encode(request.args[0]) for request in requests]
        wishes = [repr(sorted(request.args[1].items())) for request in requests]
        for wish in dict.fromkeys(wishes):
            same = [number for number, other in enumerate(wishes) if other == wish]
            for numbers in self._alike([len(contexts[number]) for number in same]):
                chosen = [same[number] for number in numbers]
                asked = requests[chosen[0]].args[1]
                for number, text in zip(chosen, self._written([contexts[n] for n in chosen], asked), strict=True):
                    found[number] = text
        return found

    def _written(self, contexts: list[list[int]], asked: dict[str, Any]) -> list[str]:
        """Return what follows each of a batch of contexts."""
        said: Any = normalize_gen_kwargs(asked)
        ends = handle_stop_sequences(said["until"], eos=self.words.decode([self.eot_token_id], specials=True))
        most, room = said["max_gen_toks"], self.context - said["max_gen_toks"]
        if room < 1:
            told = f"{most} tokens are to be written, and the model's context has {self.context}"
            raise DataError(f"{told}; set the task's generation_kwargs.max_gen_toks lower")
        self.shortened += sum(len(context) > room for context in contexts)
        contexts = [context[-room:] for context in contexts]
        new: list[list[int]] = [[] for _ in contexts]
        going = list(range(len(contexts)))
        sampling: dict[str, Any] = {"temperature": said["temperature"] if said["do_sample"] else 0.0}
        sampling |= {name: said[name] for name in ("top_k", "top_p") if said["do_sample"] and name in said}
        for start in range(0, most, ROUND):
            prompts = [contexts[i] + new[i] for i in going]
            count = min(ROUND, most - start)
            more = generate_tokens(
                self.model, prompts, max_new_tokens=count, ends={self.eot_token_id}, seed=start, **sampling
            )
            for i, tokens in zip(going, more, strict=True):
                new[i] += tokens
            ended = {i for i, tokens in zip(going, more, strict=True) if len(tokens) < count}
            going = [i for i in going if i not in ended and not any(end in self.words.decode(new[i]) for end in ends)]
            if not going:
                break
        return [postprocess_generated_text(self.words.decode(tokens), ends, None) for tokens in new]

    def _alike(self, lengths: list[int]) -> Iterator[list[int]]:
        """Yield the numbers of texts in batches of like length, the longest first."""
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        yield from (order[start : start + self.batch] for start in range(0, len(order), self.batch))
