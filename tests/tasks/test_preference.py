"""Preferences: the papers' losses, the reference that stays, rows and their cuts, metrics, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM
from written_rows import LLAMA, curves, train, write_rows

import mlplatform as mp
from mlplatform.cli.compose import compose
from mlplatform.cli.main import main
from mlplatform.data.collate import Row
from mlplatform.data.records import Record
from mlplatform.errors import RunError, SpecError
from mlplatform.models.trained import adapter_off
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.processors.tokenizer import train as train_tokenizer
from mlplatform.registry import Spec
from mlplatform.tasks.preference import ChatPairs, Pairs, answer_logps, differ, pair_losses

GOOD, BAD = ("the cat sleeps", "a dog barks", "birds sing"), ("cat the sleeps", "dog a barks", "sing birds")
ROWS = [
    {"prompt": f"number {n}:", "chosen": good, "rejected": bad}
    for n in range(14)
    for good, bad in zip(GOOD, BAD, strict=True)
]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer([text for row in ROWS for text in row.values()], 300, "chat")


def record(prompt: str | None, chosen: str, rejected: str) -> Record:
    values = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return Record({name: text for name, text in values.items() if text is not None}, {}, "here")


def shown(words: Tokenizer, ids: Any) -> str:
    return words.decode(ids.tolist(), specials=True)


def batch_of(pairs: Pairs, *records: Record) -> dict[str, Tensor]:
    return pairs([Row(pairs.row(one, None), 0, 0, number) for number, one in enumerate(records)])


def task(model: Any, reference: Any, **options: Any) -> Any:
    return Spec.of({"kind": "preference", **options}, "task", "task").build(model=model, reference=reference)


# ---- the loss ----


def test_the_loss_is_the_papers_over_models_of_transformers(words: Tokenizer, tmp_path: Path) -> None:
    """Equation 7 of arXiv:2305.18290 and equation 17 of arXiv:2310.12036 (per token), by transformers' models."""
    own, start = (tiny.model("llama", "trunk.input.vocab=300", seed=seed) for seed in (0, 1))
    tiny.stirred(start, seed=5)
    batch = batch_of(Pairs(words, 40), *(record(**row) for row in ROWS[:3]))  # type: ignore[arg-type]
    ratios, sizes = torch.zeros(3, 2), torch.zeros(3, 2)
    for model, sign in ((own, 1), (start, -1)):
        mp.save(model, tmp_path / str(sign))
        theirs = LlamaForCausalLM.from_pretrained(tmp_path / str(sign)).eval()
        for number, row in enumerate(ROWS[:3]):
            prompt = [words.bos, *words.encode(row["prompt"], specials=False)]
            for place, name in enumerate(("chosen", "rejected")):
                answer = [*words.encode(row[name], specials=False), words.eos]
                with torch.no_grad():
                    logits = theirs(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
                ratios[number, place] += sign * sum(
                    float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)
                )
                sizes[number, place] = len(answer)
    d = 0.3 * (ratios[:, 0] - ratios[:, 1])
    m = ratios[:, 0] / sizes[:, 0] - ratios[:, 1] / sizes[:, 1]
    wanted = {
        "sigmoid": -F.logsigmoid(d),
        "smoothed": -0.9 * F.logsigmoid(d) - 0.1 * F.logsigmoid(-d),
        "ipo": (m - 1 / 0.6) ** 2,
    }
    for name, losses in wanted.items():
        options = {"label_smoothing": 0.1} if name == "smoothed" else {"loss": name}
        out = task(own, start, beta=0.3, **options).scored(batch)
        torch.testing.assert_close(out.loss_sum, losses.sum(), atol=2e-5, rtol=1e-5)
        assert out.loss_count == 3
        torch.testing.assert_close(out.rewards, 0.3 * ratios, atol=2e-5, rtol=1e-4)


def test_log_probabilities_are_sums_over_labels() -> None:
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, -100, 3, 8], [-100, 4, -100, -100]])
    logs = logits.log_softmax(-1)
    wanted = torch.stack([logs[0, 1, 3] + logs[0, 2, 8], logs[1, 0, 4]])
    torch.testing.assert_close(answer_logps(logits, labels), wanted)


def test_at_the_start_nothing_is_preferred(words: Tokenizer) -> None:
    model = tiny.model("llama", "trunk.input.vocab=300")
    batch = batch_of(Pairs(words, 40), record(None, "good", "bad"))
    torch.testing.assert_close(task(model, model).scored(batch).loss_sum, torch.tensor(2.0).log())
    zero = pair_losses(torch.zeros(1, 2), torch.ones(1, 2), 0.1, "ipo", 0.0)
    torch.testing.assert_close(zero, torch.tensor([25.0]))


# ---- rows ----


def test_rows_are_prompt_and_answer_and_their_labels_the_answer(words: Tokenizer) -> None:
    batch = batch_of(Pairs(words, 64), record("say:", "yes yes", "no"), record(None, "a", "b"))
    texts = ["<|bos|>say:yes yes<|im_end|>", "<|bos|>say:no<|im_end|>", "<|bos|>a<|im_end|>", "<|bos|>b<|im_end|>"]
    answers = ["yes yes<|im_end|>", "no<|im_end|>", "a<|im_end|>", "b<|im_end|>"]
    for row in range(4):
        real, learned = batch["attention_mask"][row] > 0, batch["labels"][row] != -100
        assert shown(words, batch["input_ids"][row, real]) == texts[row]
        assert shown(words, batch["labels"][row, learned]) == answers[row]


def test_a_chat_template_writes_the_turns(words: Tokenizer) -> None:
    batch = batch_of(ChatPairs(words, 64), record("say:", "yes", "no"))
    text = shown(words, batch["input_ids"][0, batch["attention_mask"][0] > 0])
    assert text == "<|bos|><|im_start|>user\nsay:<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    learned = batch["labels"][1][batch["labels"][1] != -100]
    assert shown(words, learned) == "no<|im_end|>"


def test_what_is_too_long_is_cut_at_the_prompts_beginning_first(words: Tokenizer) -> None:
    prompt, answer = "0123456789" * 3, "abcdefghij"  # a token each
    row = Pairs(words, 20).row(record(prompt, answer[:4], answer[:3]), None)
    assert shown(words, row["chosen_ids"]) == "<|bos|>" + prompt[-14:] + "abcd<|im_end|>"
    assert shown(words, row["rejected_ids"]) == "<|bos|>" + prompt[-14:] + "abc<|im_end|>"
    row = Pairs(words, 20).row(record(prompt, answer * 3, answer[:2]), None)
    assert shown(words, row["chosen_ids"]) == "<|bos|>" + prompt[-9:] + answer
    short = Pairs(words, 20).row(record("ab", answer * 3, "c"), None)
    assert shown(words, short["chosen_ids"]) == "<|bos|>ab" + (answer * 3)[:17]


def test_a_pair_of_the_same_texts_is_a_bad_row() -> None:
    with pytest.raises(ValueError, match="'chosen' and 'rejected' are the same text"):
        differ({"chosen": "a", "rejected": "a"})


# ---- runs ----

OPTIONS = ["tokenizer=file", "task=preference", "trainer.log_every='1 steps'", "schedule=constant", "optimizer=adamw"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model of the texts, and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    texts = write_rows(folder / "texts.jsonl", [{"text": row["prompt"] + row["rejected"]} for row in ROWS])
    options = ["data=jsonl", f"data.path={texts}", "tokenizer=chat_bpe", "trainer.max=4 steps", *LLAMA]
    return train(folder, texts, *options)


def on(base: Path, *overrides: str) -> list[str]:
    return [*LLAMA, *OPTIONS, f"init_from={base}", f"tokenizer.path={base / 'tokenizer'}", *overrides]


@pytest.mark.parametrize("adapted", [False, True], ids=["copy", "adapter off"])
def test_a_run_learns_the_order_and_resumes_beside_the_same_reference(
    tmp_path: Path, base: Path, adapted: bool
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    overrides = on(base, "optimizer.lr=1e-2", "trainer.keep=9", *(["adapter=lora"] if adapted else []))
    whole = train(tmp_path, data, *overrides, "trainer.max=12 steps")
    rows = curves(whole)
    assert rows[0]["train/loss"] == pytest.approx(0.6931, abs=1e-4)
    assert rows[-1]["validation/loss"] < 0.6
    assert rows[-1]["validation/accuracy"] == 1.0
    assert rows[-1]["validation/margin"] == pytest.approx(
        rows[-1]["validation/chosen_reward"] - rows[-1]["validation/rejected_reward"], abs=1e-5
    )
    part = train(tmp_path, data, *overrides, "trainer.max=4 steps")
    assert main(["resume", str(part), "trainer.max=12 steps"]) == 0
    assert curves(part)[-1] == rows[-1]
    assert main(["evaluate", str(whole)]) == 0
    told = json.loads((whole / "evaluations/validation/metrics.json").read_text())["metrics"]
    for name, value in told.items():  # the reference of an evaluation is the run's
        assert value == pytest.approx(rows[-1][name], abs=1e-4)


def test_another_reference_is_refused(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    kept = tmp_path / "base"
    shutil.copytree(base, kept)
    run = train(tmp_path, data, *on(kept, "trainer.max=2 steps"))
    shutil.rmtree(kept)
    shutil.copytree(run, kept)
    assert main(["resume", str(run), "trainer.max=4 steps"]) != 0
    assert "the weights init_from names are not those this run's reference began with" in capsys.readouterr().err


def test_without_its_adapter_a_model_is_what_it_was() -> None:
    from mlplatform.training.adapters import LoRA

    model = tiny.model("llama")
    ids = torch.tensor([[3, 14, 15, 9]])
    before = model(input_ids=ids).logits
    LoRA(rank=2).apply(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    changed = model.train()(input_ids=ids).logits
    with adapter_off(model):
        assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, changed)
    assert model.training
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".lora_" in name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, r"label_smoothing=0\.1 goes with loss=sigmoid"),
        ({"label_smoothing": 0.6}, r"label_smoothing=0\.6 turns the preference round"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], says: str) -> None:
    model = tiny.model("llama")
    with pytest.raises(SpecError, match=says):
        task(model, model, **options)
    with pytest.raises(SpecError, match="without a reference the model needs an adapter"):
        task(model, None)


@pytest.mark.parametrize("adapted", [False, True], ids=["copy", "adapter off"])
def test_the_reference_counts_where_memory_is_short(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, adapted: bool
) -> None:
    """AdamW in fp32 takes 16 bytes a weight, and the copy 4 more."""
    data = write_rows(tmp_path / "pairs.jsonl", ROWS)
    overrides = [*on(base), "data=json_rows", f"data.path={data}", *(["adapter=lora"] if adapted else [])]
    made: Any = Spec.of(compose("train", overrides).check().config, "run").build()
    weights = sum(p.numel() for p in made.build_model().parameters())
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=18 * weights))
    if adapted:
        made.check()
    else:
        with pytest.raises(RunError, match="for weights, gradients and optimizer and the reference"):
            made.check()
        two: Any = Spec.of(compose("train", [*overrides, "strategy=fsdp", "trainer.devices=2"]).check().config, "run")
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=22 * weights))
        two.build().check()  # on one machine both halves of it all
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=19 * weights))
        with pytest.raises(RunError, match="and the reference on each of 2 devices"):
            two.build().check()
