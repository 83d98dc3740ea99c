from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlplatform.data.files import find, fingerprint, lines, text_blocks
from mlplatform.errors import DataError

TEXT = "Zeile eins — é\n🙂 Zeile zwei\n"


@pytest.fixture
def shut() -> Iterator[Path]:
    """A folder with a file, neither of which may be read; root's rights, which ignore that, are laid down."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shut"
        folder.mkdir()
        (folder / "a.txt").write_text("text")
        Path(name).chmod(0o755)
        (folder / "a.txt").chmod(0o000)
        if os.getuid() == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(os.getuid())
        folder.chmod(0o755)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_text_is_the_same_whatever_the_blocks(tmp_path: Path, block: int, bom: bytes) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    plain.write_bytes(bom + TEXT.encode())
    packed.write_bytes(gzip.compress(bom + TEXT.encode()))
    assert "".join(text_blocks(plain, block)) == "".join(text_blocks(packed, block)) == TEXT


@pytest.mark.parametrize("block", [1, 5, 1000])
@pytest.mark.parametrize("before", ["abc é ", "\ufeffabc"])
def test_a_wrong_byte_is_named_with_its_offset(tmp_path: Path, block: int, before: str) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(before.encode() + b"\xe9t\xe9")
    offset = len(before.encode())
    with pytest.raises(DataError, match=rf"latin\.txt: offset {offset}: byte 0xe9 is not UTF-8.*iconv"):
        list(text_blocks(path, block))


def test_lines_have_numbers_and_offsets(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n\n  \nfour\nfive")
    assert list(lines(path)) == [(1, 0, b"one\n"), (4, 8, b"four\n"), (5, 13, b"five")]


def test_find_takes_files_folders_globs_and_lists_each_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "other.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [p.name for p in find([str(tmp_path / "b.txt"), str(tmp_path)], (".txt",), "data.path")]
    assert names == ["b.txt", "a.txt", "c.txt"]
    assert [p.name for p in find(str(tmp_path / "**" / "*.txt"), (".txt",), "data.path")] == ["a.txt", "b.txt", "c.txt"]
    assert find("shipped:shakespeare_38plays.txt.gz", (".txt.gz",), "data.path")[0].stat().st_size > 1_900_000


def test_a_file_that_may_not_be_read_is_told(shut: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: .*a\.txt: no permission to read this file"):
        find(str(shut / "a.txt"), (".txt",), "data.path")


def test_a_folder_that_may_not_be_read_is_told(shut: Path) -> None:
    os.seteuid(os.getuid())
    shut.chmod(0o000)
    if os.getuid() == 0:
        os.seteuid(65534)
    with pytest.raises(DataError, match=r"data\.path: .*shut: no permission to read this folder"):
        find(str(shut), (".txt",), "data.path")


def test_the_hash_follows_the_bytes_and_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    first = fingerprint(path)
    path.write_text("two")
    os.utime(path, ns=times)  # same size, same time of change
    assert fingerprint(path) != first
    path.write_text("one")
    assert fingerprint(path) == first


def test_a_settled_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    monkeypatch.setattr("mlplatform.data.files.SETTLED", 0.0)
    first = fingerprint(path)
    monkeypatch.setattr("hashlib.file_digest", None)  # reading again would fail
    assert fingerprint(path) == first
    path.write_text("two")
    with pytest.raises(TypeError):
        fingerprint(path)
