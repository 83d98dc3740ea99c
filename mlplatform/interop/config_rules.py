"""The rules of `hf.config` for single values, each in both directions (the language is described in config_map.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlplatform.errors import CheckpointError, SpecError, listing
from mlplatform.interop.config_keys import assign, look, remove
from mlplatform.interop.rope_map import KEYS as ROPE_KEYS
from mlplatform.interop.rope_map import read_rope, write_rope

Find = Callable[[str], tuple[bool, Any]]
"""Says whether a config.json, or Hugging Face's defaults, has a key, and its value."""
ABSENT = "absent"
"""Where `kept` lists the mapped keys a file left to Hugging Face's defaults: they are left out again."""
NOTHING: Any = object()
OPERATORS = ("key", "count", "rope", "layers", "first")


class Value:
    """One number of ours and one key of theirs, or several spellings of it.

    Args:
        right: a key, a list of keys, or {key: ..., with one of
            values: {ours: theirs}; power: ours = theirs ** power; plus, times: ours = theirs + or * a number or a key}.
    """

    def __init__(self, path: str, right: Any) -> None:
        self.path = path
        self.word: Mapping[str, Any] = right if isinstance(right, Mapping) else {"key": right}
        names = self.word["key"]
        self.names = [names] if isinstance(names, str) else list(names)
        plus = self.word.get("plus", ())
        self.plus = [plus] if isinstance(plus, (int, float, str)) else list(plus)
        self.times = self.word.get("times", 1)

    @property
    def keys(self) -> list[str]:
        return self.names

    @property
    def needs(self) -> bool:
        """Whether other keys have to be there before this one is written."""
        return any(isinstance(item, str) for item in (*self.plus, self.times))

    def drop(self, config: dict[str, Any]) -> None:
        """Delete what is written again from the spec; of several spellings the file's stay, to be written again."""
        if len(self.names) == 1:
            remove(config, self.names[0])

    def read(self, find: Find, old: Any) -> Any:
        """Return our value."""
        found = [(key, value) for key in self.names for there, value in [find(key)] if there]
        if not found:
            raise CheckpointError(f"config.json has no '{self.names[0]}', which gives {self.path}")
        # the first that says something, as HF's own `a if a is not None else b`
        key, value = next(((k, v) for k, v in found if v is not None), found[0])
        return self._ours(key, value, find)

    def write(self, value: Any, config: dict[str, Any], defaults: Mapping[str, Any], absent: set[str]) -> None:
        """Set their key."""
        theirs, key = self._theirs(value, lambda name: _here(config, defaults, name)), self.names[0]
        if len(self.names) > 1 and look(config, self.names[-1]) == (True, theirs) and look(config, key)[1] is None:
            if key not in absent:  # it repeats the key it falls back on: null, as HF has it
                assign(config, key, None)
        elif key not in absent or theirs != defaults.get(key, NOTHING):
            assign(config, key, theirs)

    def _ours(self, key: str, value: Any, find: Find) -> Any:
        if "values" in self.word:
            for own, theirs in self.word["values"].items():
                if theirs == value and isinstance(theirs, bool) == isinstance(value, bool):
                    return own
            can = listing(repr(v) for v in self.word["values"].values())
            raise CheckpointError(f"config.json says {key}={value!r}; the YAML can say {can}")
        if value is None:
            return None
        if "power" in self.word:
            return float(value) ** self.word["power"]
        for item in self.plus:
            value = value + self._number(item, find)
        return value * self._number(self.times, find) if self.times != 1 else value

    def _theirs(self, value: Any, find: Find) -> Any:
        if "values" in self.word:
            if value not in self.word["values"]:
                raise SpecError(f"{self.path}={value!r} has no counterpart in Hugging Face's '{self.names[0]}'")
            return self.word["values"][value]
        if value is None:
            return None
        if "power" in self.word:
            result = float(value) ** (1 / self.word["power"])
            return round(result) if abs(result - round(result)) < 1e-9 * result else result
        if self.times != 1:
            factor = self._number(self.times, find)
            if not factor or value % factor:
                raise SpecError(f"{self.path}={value} is not a multiple of Hugging Face's {self.times}={factor}")
            value = value // factor
        for item in self.plus:
            value = value - self._number(item, find)
        return value

    def _number(self, item: Any, find: Find) -> Any:
        if not isinstance(item, str):
            return item
        sign, name = (-1, item[1:]) if item.startswith("-") else (1, item)
        there, value = find(name)
        if not there or value is None:
            raise CheckpointError(f"config.json has no '{name}', which {self.path} needs")
        return sign * value


class Count:
    """As many as theirs has entries: labels."""

    needs = False

    def __init__(self, path: str, right: Mapping[str, Any]) -> None:
        self.path, self.key = path, right["count"]
        self.keys = [self.key]

    def drop(self, config: dict[str, Any]) -> None:
        """Names of labels are kept."""

    def read(self, find: Find, old: Any) -> int:
        there, value = find(self.key)
        return len(value) if there and value is not None else 2

    def write(self, value: Any, config: dict[str, Any], defaults: Mapping[str, Any], absent: set[str]) -> None:
        names = config.get(self.key)
        if self.key in absent and value == len(defaults.get(self.key, (0, 1))):
            return
        if not isinstance(names, Mapping) or len(names) != value:
            config[self.key] = {str(i): f"LABEL_{i}" for i in range(value)}
            config["label2id"] = {f"LABEL_{i}": i for i in range(value)}


class RopeValue:
    """A rope and HF's convention for it.

    Args:
        right: {rope: true}, with `key` where theirs are nested; `theta`, `fraction`, `scaling` name the keys of files
            that have no such parameters, where they aren't the usual ones.
        ignored: keys within their parameters that others read, or nobody.
    """

    needs = False

    def __init__(self, path: str, right: Mapping[str, Any], ignored: set[str]) -> None:
        self.path = path
        words = {"rope_parameters": "key", "rope_theta": "theta", "rope_scaling": "scaling"}
        words["partial_rotary_factor"] = "fraction"
        usual = {} if "key" in right else {name: name for name in ROPE_KEYS}
        self.names = usual | {name: right[word] for name, word in words.items() if word in right}
        self.keys = list(self.names.values())
        self.prefix = f"{self.names['rope_parameters']}."
        self.ignored = {key.removeprefix(self.prefix) for key in ignored if key.startswith(self.prefix)}

    def drop(self, config: dict[str, Any]) -> None:
        """Delete all but what others read, or nobody."""
        there, value = look(config, self.prefix[:-1])
        for key in list(value) if there and isinstance(value, Mapping) else ():
            means_nothing = key == "partial_rotary_factor" and value[key] == 1.0
            if key not in self.ignored and not means_nothing:
                remove(config, self.prefix + key)
        for key in self.keys:
            if key != self.prefix[:-1] or value is None:
                remove(config, key)

    def read(self, find: Find, old: Any) -> Any:
        given = {name: find(key)[1] for name, key in self.names.items() if find(key)[1] is not None}
        return old if old is None else read_rope(given, dict(old), self.ignored)

    def write(self, value: Any, config: dict[str, Any], defaults: Mapping[str, Any], absent: set[str]) -> None:
        if value is not None:
            for key, number in write_rope(value).items():
                assign(config, self.prefix + key, number)


def value_rule(path: str, right: Any, ignored: set[str]) -> Value | Count | RopeValue:
    """Return the rule a right side means. Raises SpecError for an operator that isn't one."""
    if isinstance(right, Mapping):
        if "rope" in right:
            return RopeValue(path, right, ignored)
        if "count" in right:
            return Count(path, right)
        if "key" not in right:
            raise SpecError(f"hf.config: an operator is one of {', '.join(OPERATORS)}, not {sorted(right)}")
    return Value(path, right)


def _here(config: Mapping[str, Any], defaults: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    there, value = look(config, key)
    return (there, value) if there else (key in defaults, defaults.get(key))
