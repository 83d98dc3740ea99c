"""The hardened reader: what it reads, and that each hostile file ends in one line, fast and small."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mlplatform import places
from mlplatform.cli.safe_yaml import parse, read
from mlplatform.errors import SpecError

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
REFUSED = {
    "tab at the start of a line": ("a:\n\tb: 1\n", "x.yaml:2: a tab"),
    "tab before an item": ("a:\n\t- 1\n", "x.yaml:2: a tab"),
    "duplicate key": ("a: 1\nb: 2\na: 3\n", "x.yaml:3: 'a' is stated twice, first on line 1"),
    "nested duplicate key": ("m:\n  a: 1\n  a: 2\n", "x.yaml:3: 'a' is stated twice, first on line 2"),
    "python tag": ("a: !!python/object/apply:os.system [ls]\n", "x.yaml:1: the tag"),
    "any tag": ("a: !!binary aGk=\n", "x.yaml:1: the tag"),
    "nested lists": ("a: " + "[" * 10_000, "nested more than 64 levels"),
    "nested mappings": ("a: " + "{b: " * 10_000, "nested more than 64 levels"),
    "alias bomb": (BOMB, "more than 100000 values"),
    "alias of itself": ("a: &a [*a]\n", "*a is used before it is defined, or within itself"),
    "merge key": ("a: &a {b: 1}\nc: {<<: *a}\n", "merge keys"),
    "two documents": ("a: 1\n---\nb: 2\n", "x.yaml:2: a second document"),
    "a list at the top": ("- 1\n", "the top of a config is a mapping"),
    "a mapping as a key": ("? {a: 1}\n: 2\n", "a key must be a plain word"),
    "no key": ("~: 2\n", "can't be a key"),
    "unclosed": ("a: [1, 2\n", "x.yaml:2"),
    "two colons": ("a: b: c\n", "x.yaml:1: mapping values are not allowed"),
    "control character": ("a\x00b: 1\n", "x.yaml"),
    "endless number": (f"a: {'9' * 5000}\n", "a number of 5000 digits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_text_is_one_line(name: str) -> None:
    text, wanted = REFUSED[name]
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse(text, "x.yaml")
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 2


def test_hostile_files_stay_small_and_fast(tmp_path: Path) -> None:
    """200 MB, aliases that expand to gigabytes, and 10,000 levels: each in a process of its own, below 200 MB."""
    files = {"big.yaml": None, "bomb.yaml": BOMB, "deep.yaml": "a: " + "[" * 10_000}
    for name, text in files.items():
        path = tmp_path / name
        if text is None:
            with path.open("wb") as file:
                file.truncate(200_000_000)
        else:
            path.write_text(text)
        code = (
            "import sys, pathlib; from mlplatform.cli.safe_yaml import read\n"
            "from mlplatform.errors import SpecError\n"
            "try: read(pathlib.Path(sys.argv[1]))\n"
            "except SpecError as error: print(error)\n"
            "status = pathlib.Path('/proc/self/status').read_text()\n"
            "print(status.split('VmHWM:')[1].split()[0])"
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        said, peak = done.stdout.splitlines()
        assert name in said
        assert int(peak) < 200_000  # kB
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: caf\xe9\n".encode("latin-1"))
    with pytest.raises(SpecError, match=r"latin\.yaml: byte 6 is not UTF-8"):
        read(tmp_path / "latin.yaml")
    with pytest.raises(SpecError, match="can't be read"):
        read(tmp_path)


def test_scalars_follow_the_core_schema() -> None:
    text = "a: [1, 1_000, 0x10, 0o17, -3, 1e-3, .5, 2., on, no, 1:30, 2024-01-01, ~, null, true, FALSE, '1', .inf]"
    values = parse(text, "x.yaml").data["a"]
    assert values[:8] == [1, 1000, 16, 15, -3, 1e-3, 0.5, 2.0]
    assert values[8:12] == ["on", "no", "1:30", "2024-01-01"]
    assert values[12:17] == [None, None, True, False, "1"]
    assert math.isinf(values[17])


def test_lines_and_aliases() -> None:
    document = parse("# @package _global_\na: &a\n  b: 1\n  c:\n    - x\n    - y\nd: *a\n", "x.yaml")
    assert document.package == "_global_"
    assert document.data["d"] == {"b": 1, "c": ["x", "y"]}
    assert document.place("a.c.1") == "x.yaml:6"
    assert document.place("a.c.1.deeper") == "x.yaml:6"
    assert document.place("d.b") == "x.yaml:7"
    assert document.place("nowhere") == "x.yaml"


def test_shipped_files_read_as_pyyaml_reads_them() -> None:
    """Where YAML 1.1 and 1.2 agree, so must we: no shipped file says something else to another reader."""
    files = [*places.conf().rglob("*.yaml"), *places.recipes().rglob("*.yaml")]
    assert files
    for file in files:
        assert read(file).data == (yaml.safe_load(file.read_text(encoding="utf-8")) or {}), file
