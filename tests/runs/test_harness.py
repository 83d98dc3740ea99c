"""lm-evaluation-harness over our models: the same figures as over transformers' model of the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_runs import finished, scenes

from mlplatform.cli.compose import compose_model
from mlplatform.cli.main import main
from mlplatform.errors import DataError, SpecError
from mlplatform.interop import save
from mlplatform.models import build
from mlplatform.processors.tokenizer import Tokenizer, train
from mlplatform.runs.harness import harness
from mlplatform.runs.harness_model import Judged

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
MORE = {
    "multiple_choice": 'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
    "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "generate_until": 'doc_to_target: "{{choices[0]}}"\n'
    'generation_kwargs: {until: ["e"], max_gen_toks: 40, do_sample: false}\n'
    "metric_list: [{metric: exact_match}]\n",
    "loglikelihood_rolling": "metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]\n",
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of one task of each kind, over nine questions of which one is longer than the model's context."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    long = " ".join(str(n) for n in range(80))
    texts = ["To be or not to", "ROMEO:", "What light ", "A", "über 你好", f"{long} and", "Enter the", "So", "\n"]
    rows = [
        {"question": text, "choices": [" be", " that is the question", "me"][: 2 + n % 2], "answer": n % 2}
        for n, text in enumerate(texts)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, more in MORE.items():
        text = CHOICE.format(name=f"own_{kind}", kind=kind, data=data) + more
        if kind == "loglikelihood_rolling":
            text = text.replace('doc_to_text: "{{question}}"', 'doc_to_text: ""\ndoc_to_target: "{{question}}"')
        (folder / f"{kind}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = scenes(tmp_path_factory.mktemp("scenes"))
    return train([json.loads(line)["text"] for line in file.read_text().splitlines()], 300, "causal")


@pytest.fixture
def model() -> Any:
    sizes = ["dim=32", "depth=2", "context_length=64", "input.vocab=300", "layer.mlp.width=48"]
    heads = ["layer.attention.heads=2", "layer.attention.kv_heads=1"]
    built = build(compose_model("llama_tiny", [f"trunk.{one}" for one in sizes + heads]).check().config, seed=1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3)  # so that it prefers some tokens
    return built


def test_figures_and_answers_are_those_of_transformers(
    tasks: Path, words: Tokenizer, model: Any, tmp_path: Path
) -> None:
    ours = harness(model, words, str(tasks), batch=4)
    assert ours["shortened"] == 4  # two choices, the whole text once, and what is written
    save(model, tmp_path / "exported", tokenizer=words)
    theirs = HFLM(pretrained=str(tmp_path / "exported"), device="cpu", batch_size=4, dtype="float32")
    generation: Any = theirs.model.generation_config  # config.json of a model that was never trained names no end
    generation.eos_token_id, generation.pad_token_id = words.eos, words.pad
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    report: Any = simple_evaluate(theirs, tasks=sorted(manager.all_tasks), task_manager=manager, bootstrap_iters=1000)
    for task, values in report["results"].items():
        for name, value in values.items():
            if isinstance(value, float):
                found = ours["metrics"][f"{task}/{name.removesuffix(',none')}"]
                assert found == pytest.approx(value, abs=1e-5, rel=1e-5), f"{task} {name}"
    assert {name for name in ours["metrics"] if "stderr" not in name} == {
        "own_multiple_choice/acc",
        "own_multiple_choice/acc_norm",
        "own_generate_until/exact_match",
        "own_loglikelihood_rolling/bits_per_byte",
        "own_loglikelihood_rolling/word_perplexity",
    }
    compared = 0
    for task, samples in report["samples"].items():
        for sample, other in zip(samples, ours["report"]["samples"][task], strict=True):
            for theirs_said, ours_said in zip(sample["resps"], other["resps"], strict=True):
                if isinstance(theirs_said[0], str):
                    assert ours_said[0] == theirs_said[0]
                else:
                    assert _flat(ours_said) == pytest.approx(_flat(theirs_said), abs=1e-4)
                compared += 1
    assert compared == 9 + 9 + 9 + 9 + 4
    assert len({str(sample["resps"]) for sample in report["samples"]["own_generate_until"]}) > 3


def _flat(said: Any) -> list[float]:
    return [float(value) for one in said for value in (one if isinstance(one, tuple | list) else [one])]


def test_the_likelihoods_are_those_of_the_logits(words: Tokenizer, model: Any) -> None:
    judged = Judged(model, words, batch=2)
    context, rest = [1, 50, 60], [70, 80, 90, 7]
    asked: Any = [(("", ""), context, rest), (("", ""), [1], [9]), (("", ""), [1] * 60, rest)]
    logits = model(input_ids=torch.tensor([context + rest])).logits.log_softmax(-1)[0]
    expected = sum(float(logits[2 + n, token]) for n, token in enumerate(rest))
    assert judged._loglikelihood_tokens(asked)[0][0] == pytest.approx(expected, abs=1e-5)
    greedy = [(("", ""), context, [int(logits[2].argmax())])]
    assert judged._loglikelihood_tokens(greedy)[0][1] is True  # type: ignore[arg-type]
    assert judged.shortened == 0
    with pytest.raises(DataError, match="a continuation has 65 tokens, and the model's context 64"):
        judged._loglikelihood_tokens([(("", ""), [1], [5] * 65)])


def test_a_run_keeps_its_figures_and_answers(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path, "trainer.max='2 steps'")
    capsys.readouterr()  # what the run said
    assert main(["harness", str(run), "--tasks", f"{tasks},own_multiple_choice", "--limit", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["limit"], said["shots"], said["shortened"]) == (3, None, 0)
    folder = run / "evaluations" / "harness-own_multiple_choice-limit3"
    kept = json.loads((folder / "metrics.json").read_text())
    assert kept["metrics"] == said["metrics"]
    assert {"own_multiple_choice/acc", "own_multiple_choice/acc_norm"} <= said["metrics"].keys()
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["doc"]["question"] for line in lines] == ["To be or not to", "ROMEO:", "What light "]
    right = sum(line["acc"] for line in lines) / 3
    assert said["metrics"]["own_multiple_choice/acc"] == pytest.approx(right)


def test_what_is_wrong_is_told(tasks: Path, tmp_path: Path, words: Tokenizer, model: Any) -> None:
    def told(names: str, kind: type[Exception] = DataError) -> str:
        with pytest.raises(kind) as caught:
            harness(model, words, names)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such task (did you mean 'own_multiple_choice'?)" in told(f"{tasks},own_multiple_choise")
    assert "there is no such folder" in told("missing/folder")
    (tmp_path / "empty").mkdir()
    assert "has no YAML file with a 'task'" in told(str(tmp_path / "empty"))
    (tmp_path / "questions.jsonl").unlink()
    assert "questions.jsonl" in told(str(tasks))
    bert = build(compose_model("bert_tiny", []).check().config, device="meta")
    with pytest.raises(SpecError, match="it takes a causal model"):
        harness(bert, words, str(tasks))


def test_a_task_that_writes_more_than_the_context_holds_is_told(tasks: Path, words: Tokenizer, model: Any) -> None:
    file = tasks / "generate_until.yaml"
    file.write_text(file.read_text().replace("max_gen_toks: 40", "max_gen_toks: 64"))
    with pytest.raises(DataError, match=r"64 tokens are to be written, and the model's context has 64; set the task's"):
        harness(model, words, f"{tasks},own_generate_until")
