"""Keeps secrets out of what is written and shown: config.yaml, run.json, logs, trackers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"
KEYS = re.compile(
    r"(^|_)(secrets?|passwords?|passwd|passphrase|credentials?|auth|(api|access|private|secret)_?key)($|_)"
    r"|^((hf|hub|api|access|auth|bearer|refresh|session|wandb|github)_?)?tokens?$",
    re.IGNORECASE,
)
"""Names of keys whose text is a secret. `eos_token` is none of them."""
SHAPES = re.compile(
    r"(?<![A-Za-z0-9])("
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|A[KS]IA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|wandb_v\d_\w{20,}|[0-9a-f]{40}|[0-9a-f]{64}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r")(?![A-Za-z0-9])|://[^/\s:@]+:[^/\s@]+@"
)
"""Tokens of well-known services, W&B's 40 hex digits, JSON web tokens, private keys, URLs with a password."""
LEAST = 6
"""Shorter values are masked where they stand and not searched for in other texts: `2` would be everywhere."""


def masked(config: Mapping[str, Any], from_environment: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the config with secrets as `***`, what was masked by its dotted path).

    A value is a secret when its key is called so, when it looks like one, or when it came from the environment.
    """
    hidden: dict[str, Any] = {}
    outside = set(from_environment)

    def walk(value: Any, path: str, key: str) -> Any:
        if path in outside and value not in (None, "", {}, []):
            hidden[path] = value
            return MASK
        if isinstance(value, Mapping):
            return {k: walk(v, f"{path}.{k}" if path else str(k), str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, f"{path}.{number}", key) for number, v in enumerate(value)]
        if isinstance(value, str) and value and (KEYS.search(key) or SHAPES.search(value)):
            hidden[path] = value
            return MASK
        return value

    return walk(config, "", ""), hidden


class Scrubber:
    """Takes known secrets, and whatever looks like one, out of any text.

    Args:
        secrets: the values, nested ones too; shorter ones than `LEAST` are left.
    """

    def __init__(self, secrets: Iterable[Any] = ()) -> None:
        found = {text for value in secrets for text in _texts(value) if len(text) >= LEAST}
        self.secrets = sorted(found, key=len, reverse=True)  # a secret that holds another goes first

    def __call__(self, text: str) -> str:
        """Return the text with each secret as `***`."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return SHAPES.sub(MASK, text)

    def words(self, words: Iterable[str]) -> list[str]:
        """Return command-line words; of `key=value` the value goes when the key is called like a secret."""
        found = []
        for word in words:
            key, equals, value = word.partition("=")
            named = equals and value and KEYS.search(key.rpartition(".")[2].lstrip("+-"))
            found.append(f"{key}={MASK}" if named else self(word))
        return found


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [str(value)]
