"""Chats: transformers' text, tokens and mask of the assistant's turns; where long ones are cut; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from written_rows import LLAMA, train, write_rows

from mlplatform.cli.main import main
from mlplatform.data.collate import Row
from mlplatform.data.fields import Turns
from mlplatform.data.records import Record
from mlplatform.errors import DataError, SpecError
from mlplatform.processors.conversations import conversation, opening
from mlplatform.processors.tokenizer import Tokenizer, file
from mlplatform.processors.tokenizer import train as train_tokenizer
from mlplatform.registry import Spec
from mlplatform.tasks.chat import Answers, turn_ends


def said(*contents: str) -> list[dict[str, Any]]:
    """Turns of a user and the assistant, one after the other."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


CHATS = [
    said("What is your name?", "Käthe."),
    [{"role": "system", "content": "Be kind."}, *said("Who's there?", "I am. 日本", "Who?", "It's me,\nyour friend.")],
    said("a", " b ", "c"),
    [{"role": "assistant", "content": "Good morrow!"}],
]
PLAIN = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BROKEN = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}now you: {% endif %}"


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer([turn["content"] for chat in CHATS for turn in chat], 300, "chat")


def templated(words: Tokenizer, folder: Path, template: str) -> Tokenizer:
    """The same tokenizer with another template."""
    words.save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return file(path=str(folder))


@pytest.mark.parametrize("chat", CHATS, ids=["short", "system", "ends with the user", "assistant first"])
def test_tokens_and_mask_are_those_of_transformers(words: Tokenizer, tmp_path: Path, chat: list[Any]) -> None:
    words.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    told = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    row = Answers(words, 200).row(Record({"messages": chat}, {}, "here"), None)
    assert row["input_ids"].tolist() == told["input_ids"]
    assert (row["labels"] != -100).astype(int).tolist() == told["assistant_masks"]
    assert (row["labels"] == row["input_ids"])[row["labels"] != -100].all()
    wanted = [turn["content"] + "<|im_end|>" for turn in chat if turn["role"] == "assistant"]
    assert words.decode(row["labels"][row["labels"] != -100], specials=True) == "".join(wanted)
    begun = theirs.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"] if chat[:-1] else []
    assert not begun or opening(words, chat[:-1]) == begun


@pytest.mark.parametrize("chat", CHATS[:3], ids=["short", "system", "ends with the user"])
def test_turns_are_found_where_a_template_marks_none(words: Tokenizer, tmp_path: Path, chat: list[Any]) -> None:
    plain = templated(words, tmp_path, PLAIN)
    ids, spans = conversation(plain, chat)
    found = [plain.decode(ids[start:end]) for start, end in spans]
    assert found == [turn["content"] + "\n" for turn in chat if turn["role"] == "assistant"]


def test_a_long_chat_ends_with_the_last_answer_that_fits(words: Tokenizer) -> None:
    chat = said("one", "two", "three", "four", "five", "six" * 30)
    record = Record({"messages": chat}, {}, "chats.jsonl: line 7")
    ids, spans = conversation(words, chat)
    for length in (spans[1][1], spans[1][1] + 3, spans[2][0] + 4):
        row = Answers(words, length).row(record, None)
        assert row["input_ids"].tolist() == ids[: spans[1][1]]
        assert words.decode(row["labels"][row["labels"] != -100]) == "twofour"


@pytest.mark.parametrize(("answer", "before", "learned"), [(10, 29, 11), (3, 36, 4), (70, 20, 20), (19, 20, 20)])
def test_a_question_too_long_is_cut_at_its_beginning(words: Tokenizer, answer: int, before: int, learned: int) -> None:
    chat = said("0123456789" * 6, "x" * answer)  # a token each
    ids, [(start, _)] = conversation(words, chat)
    row = Answers(words, 40).row(Record({"messages": chat}, {}, "here"), None)
    assert row["input_ids"].tolist() == ids[start - before : start + learned]
    assert (row["labels"] != -100).tolist() == [False] * before + [True] * learned


def test_rows_are_padded(words: Tokenizer) -> None:
    examples = Answers(words, 100)
    rows = [Row(examples.row(Record({"messages": chat}, {}, ""), None), 0, 0, n) for n, chat in enumerate(CHATS[:2])]
    batch = examples(rows)
    sizes = [len(row.arrays["input_ids"]) for row in rows]
    assert batch["attention_mask"].sum(1).tolist() == sizes
    assert (batch["labels"][0, sizes[0] :] == -100).all()
    assert (batch["input_ids"][0, sizes[0] :] == words.pad).all()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("hello", "is a text, and a list of turns is needed"),
        ([], "is an empty list, and a list of turns"),
        ([{"content": "x"}], "has a turn 1 that is no object with a 'role'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant"}], "has a turn 2 whose 'content' is null"),
        ([{"role": "assistant", "content": " "}], "has a turn 1 whose 'content' has no text in it"),
        ([{"role": "user", "content": "x"}], "has no turn of the assistant to learn from; its roles are user"),
    ],
)
def test_rows_that_are_no_chats(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Turns().clean(value, Path())


def test_a_step_makes_chats_of_columns() -> None:
    step = Spec({"kind": "chat", "user": "{a}? {{}}", "assistant": "{b}", "system": "Be kind."}, "s", "step").build()
    row = step({"a": "who", "b": 4})
    assert [(turn["role"], turn["content"]) for turn in Turns().clean(row["messages"], Path())] == [
        ("system", "Be kind."),
        ("user", "who? {}"),
        ("assistant", "4"),
    ]
    with pytest.raises(ValueError, match="no column 'b'"):
        step({"a": "who"})
    with pytest.raises(SpecError, match=r"user='\{a\.b\}': braces hold the name of a column and nothing else"):
        Spec({"kind": "chat", "user": "{a.b}", "assistant": "{b}"}, "s", "step").build()


def test_tokenizers_without_a_template(words: Tokenizer, tmp_path: Path) -> None:
    plain = train_tokenizer(["abc"], 270, "causal")
    with pytest.raises(DataError, match=r"has no chat template; train one that has with tokenizer=chat_bpe"):
        Answers(plain, 64)
    plain.save(tmp_path)
    given = file(path=str(tmp_path), chat="chatml")
    ids, [(start, end)] = conversation(given, CHATS[0])
    assert given.decode(ids[start:end]) == "Käthe.<|im_end|>"
    assert given.decode(ids, specials=True).startswith("<|bos|><|im_start|>user\n")
    with pytest.raises(DataError, match="does not show where the assistant's turns are; put"):
        conversation(templated(words, tmp_path / "broken", BROKEN), CHATS[1])


def test_answers_end_where_the_template_ends_a_turn(words: Tokenizer, tmp_path: Path) -> None:
    assert turn_ends(words, CHATS[1]) == {words.eos}
    other = templated(words, tmp_path, PLAIN.replace("m.content +", "m.content + '<|im_start|>' +"))
    assert turn_ends(other, CHATS[1]) == {words.eos, words.backend.token_to_id("<|im_start|>")}


def test_a_run_learns_the_answers_alone_and_evaluate_answers(tmp_path: Path) -> None:
    rows = [{"messages": said(f"Is {n} {what}?", "Yes.")} for n in range(20) for what in ("odd", "even", "one")]
    data = write_rows(tmp_path / "chats.jsonl", [*rows, {"messages": said("no answer")}])
    options = [
        *LLAMA,
        "tokenizer=chat_bpe",
        "task=chat",
        "task.answer_length=9",
        "optimizer.lr=0.03",
        "data.on_bad_row=skip",
    ]
    run = train(tmp_path, data, *options, "trainer.max=40 steps", "trainer.validate_every='40 steps'")
    told = json.loads((run / "run.json").read_text())["data"]
    assert list(told["skipped_rows"].values()) == [1]
    assert main(["evaluate", str(run)]) == 0
    (folder,) = (run / "evaluations").iterdir()
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == told["validation"]["records"]
    right = [line["prediction"]["answer"] == line["messages"][-1]["content"] for line in lines]
    assert np.mean(right) > 0.9
    theirs = AutoTokenizer.from_pretrained(run / "tokenizer")
    assert theirs.chat_template == json.loads((run / "tokenizer/tokenizer_config.json").read_text())["chat_template"]
