"""Continuing texts: the cache, padding on the left, seeds, ends and limits."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from mlplatform.errors import DataError, SpecError
from mlplatform.generation.generate import generate, generate_tokens
from mlplatform.processors.tokenizer import Tokenizer, train

WINDOW = ("trunk.layer.attention.window=5",)
MODELS = [("llama", ()), ("gpt2", ()), ("llama", WINDOW), ("llama", ("trunk.layer.attention.qk_norm=true",))]
PROMPTS = [[3, 14, 15, 9, 2, 6], [27, 18], [1, 41, 42]]


@pytest.mark.parametrize(("family", "overrides"), MODELS)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "padded"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_k": 20, "seed": 4}], ids=["greedy", "sampled"])
def test_the_cache_changes_no_token(
    family: str, overrides: tuple[str, ...], prompts: list[list[int]], options: dict[str, float]
) -> None:
    model = tiny.model(family, *overrides)
    cached = generate_tokens(model, prompts, max_new_tokens=20, **options)  # type: ignore[arg-type]
    anew = generate_tokens(model, prompts, max_new_tokens=20, use_cache=False, **options)  # type: ignore[arg-type]
    assert cached == anew
    assert [len(row) for row in cached] == [20] * len(prompts)


@pytest.mark.parametrize(("family", "overrides"), MODELS)
def test_prompts_padded_on_the_left_are_continued_as_if_alone(family: str, overrides: tuple[str, ...]) -> None:
    model = tiny.model(family, *overrides)
    together = generate_tokens(model, PROMPTS, max_new_tokens=12)
    alone = [generate_tokens(model, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    assert together == alone


def test_greedy_tokens_are_those_of_one_forward_pass_each() -> None:
    model = tiny.model("llama")
    tokens = list(PROMPTS[0])
    with torch.no_grad():
        for _ in range(10):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    assert generate_tokens(model, [PROMPTS[0]], max_new_tokens=10) == [tokens[len(PROMPTS[0]) :]]


def test_the_seed_decides_what_is_drawn() -> None:
    model = tiny.model("llama")
    texts = [generate_tokens(model, PROMPTS, max_new_tokens=20, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_nothing_else_is_drawn_from_and_the_mode_stays() -> None:
    model = tiny.model("llama").train()
    before = torch.get_rng_state()
    generate_tokens(model, PROMPTS, max_new_tokens=4, temperature=1.0)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_an_end_token_ends_its_text_alone() -> None:
    model = tiny.model("llama")
    free = generate_tokens(model, PROMPTS, max_new_tokens=20)
    end = free[0][3]
    expected = [row[: row.index(end)] if end in row else row for row in free]
    assert generate_tokens(model, PROMPTS, max_new_tokens=20, ends={end}) == expected
    assert len(expected[0]) <= 3


def test_a_text_stops_where_the_context_is_full() -> None:
    model = tiny.model("llama", "trunk.context_length=10")
    assert len(generate_tokens(model, [PROMPTS[0]], max_new_tokens=100)[0]) == 10 - len(PROMPTS[0])


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(DataError, match="the prompt has 64 tokens and the model reads 64 at most"):
        generate_tokens(tiny.model("llama"), [[1] * 64], max_new_tokens=1)


@pytest.mark.parametrize("overrides", [(), ("head=none",)])
def test_a_model_that_is_not_causal_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="by a causal model"):
        generate_tokens(tiny.model("bert", *overrides), PROMPTS, max_new_tokens=1)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train(["To be, or not to be, that is the question."] * 4, 300, "causal")


@pytest.fixture(scope="module")
def speaker(words: Tokenizer) -> nn.Module:
    return tiny.model("llama", f"trunk.input.vocab={words.vocab_size}")


def test_a_text_begins_with_its_prompt_and_goes_on(words: Tokenizer, speaker: nn.Module) -> None:
    text = generate(speaker, words, "To be", max_new_tokens=12, temperature=0)
    start, _ = words.frame
    tokens = generate_tokens(speaker, [[start, *words.encode("To be", specials=False)]], max_new_tokens=12)[0]
    assert text == "To be" + words.decode(tokens)


def test_an_empty_prompt_is_continued(words: Tokenizer, speaker: nn.Module) -> None:
    assert generate(speaker, words, "", max_new_tokens=8, seed=1)
