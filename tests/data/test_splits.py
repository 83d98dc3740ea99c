from __future__ import annotations

import zlib

from mlplatform.data.splits import is_validation


def test_share_is_met_and_grows_from_the_same_documents() -> None:
    texts = [f"document {number}" for number in range(20_000)]
    tenth = {text for text in texts if is_validation(text, 0.1)}
    fifth = {text for text in texts if is_validation(text, 0.2)}
    assert 1800 < len(tenth) < 2200
    assert tenth < fifth
    assert not any(is_validation(text, 0.0) for text in texts)


def test_the_rule_is_the_crc_of_the_utf8_text() -> None:
    text = "Öl"
    assert is_validation(text, (zlib.crc32(b"\xc3\x96l") + 1) / 2**32)
    assert not is_validation(text, zlib.crc32(b"\xc3\x96l") / 2**32)
