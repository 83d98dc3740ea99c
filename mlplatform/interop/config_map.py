"""`hf.config` as data that works in both directions: config.json <-> our spec, strictly.

Left is our path, right the key of theirs (a dotted one within a nested config; a list for several spellings, the first
present is read and the first is written), or an operator:

    trunk.layer.attention.rope: {rope: true}                                HF's rotary convention (rope_map.py)
    trunk.layer.attention.bias: {key: qkv_bias, values: {qkv: true, false: false}}     ours: theirs
    head.labels: {count: id2label}                                          as many as theirs has entries
    trunk.exceptions: {layers: layer_types, kinds: {full_attention: {attention: {rope: null}}}}
    trunk.exceptions: {first: num_dense_layers, are: {mlp: {...}}}          the first n layers differ
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from mlplatform.errors import CheckpointError, SpecError, did_you_mean, listing
from mlplatform.interop.rope_map import KEYS as ROPE_KEYS
from mlplatform.interop.rope_map import read_rope, write_rope
from mlplatform.interop.templates import spread
from mlplatform.registry import Spec, select

INERT = frozenset(
    """architectures model_type dtype torch_dtype transformers_version _name_or_path auto_map name_or_path
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id use_cache initializer_range initializer_factor return_dict use_return_dict
    output_attentions output_hidden_states output_scores id2label label2id num_labels problem_type task_specific_params
    gradient_checkpointing tokenizer_class finetuning_task torchscript prefix _commit_hash is_encoder_decoder
    classifier_dropout attn_implementation _attn_implementation max_length min_length do_sample early_stopping
    num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens bad_words_ids tf_legacy_loss use_bfloat16
    generation_config chunk_size_feed_forward""".split()  # noqa: SIM905 - a list of fifty lines says no more
)
"""Keys of every config.json that never change what a forward pass computes; they are kept and written back."""
PLAIN: dict[str, Any] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}
"""Keys of every config.json that do change it, and the one value all our models stand for unless they map the key."""

ABSENT = "absent"
"""Where `kept` lists the mapped keys a file left to Hugging Face's defaults: they are left out again."""


class ConfigMap:
    """The two-way map of one model's YAML, with the chosen head's part."""

    def __init__(self, hf: Mapping[str, Any], head: str | None) -> None:
        self.hf, self.head = hf, head
        own = (hf.get("heads") or {}).get(head) or {}
        pairs = {**(hf.get("config") or {}), **(own.get("config") or {})}
        self.pairs = [pair for left, right in pairs.items() for pair in _pairs(left, right)]
        self.expect = {**PLAIN, **(hf.get("expect") or {}), **(own.get("expect") or {})}
        for _, right in self.pairs:  # a key that is mapped is not expected to be plain
            for key in _keys(right):
                if key in PLAIN:
                    self.expect.pop(key, None)
        self.ignore = {*(hf.get("ignore") or ()), *(own.get("ignore") or ())}
        self.defaults: dict[str, Any] = hf.get("defaults") or {}

    def read(self, config: Mapping[str, Any], family: Mapping[str, Any]) -> dict[str, Any]:
        """Return the family's spec with the numbers of a config.json.

        Raises:
            CheckpointError: a key is unknown, missing, or has a value the YAML can't express.
        """
        self._check_known(config)
        spec = copy.deepcopy(dict(family))
        if self.head is not None:
            spec["head"] = self.head
        for path, right in self.pairs:
            if isinstance(right, Mapping) and "rope" in right:
                rope = self._value(spec, path)
                if rope is not None:
                    self._put(spec, path, read_rope(self._filled(config), dict(rope), self._inside_rope()))
            elif isinstance(right, Mapping) and ("layers" in right or "first" in right):
                self._read_exceptions(spec, path, right, config)
            else:
                self._put(spec, path, self._read_value(path, right, config))
        return spec

    def write(self, spec: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config.json of a spec. `kept` holds what a file that was read said beside the mapped keys."""
        absent = set(kept.get(ABSENT, ()))
        config = {key: copy.deepcopy(value) for key, value in kept.items() if key != ABSENT} or _nested(
            {k: v for k, v in self.expect.items() if k not in PLAIN}
        )
        for path, right in self.pairs:
            value = self._value(spec, path)
            if isinstance(right, Mapping) and "rope" in right:
                if value is not None:
                    config["rope_parameters"] = {**config.get("rope_parameters", {}), **write_rope(value)}
            elif isinstance(right, Mapping) and ("layers" in right or "first" in right):
                config.update(self._write_exceptions(spec, value, right))
            elif isinstance(right, Mapping) and "count" in right:
                names = config.get(right["count"])
                if not isinstance(names, Mapping) or len(names) != value:
                    config[right["count"]] = {str(i): f"LABEL_{i}" for i in range(value)}
                    config["label2id"] = {f"LABEL_{i}": i for i in range(value)}
            elif (key := _keys(right)[0]) not in absent or _theirs(right, value) != self.defaults.get(key):
                _assign(config, key, _theirs(right, value))
        for _, right in self.pairs:  # a key that repeats the one it falls back on is written as null, as HF has it
            if isinstance(right, list) and _look(config, right[0]) == _look(config, right[-1]):
                _assign(config, right[0], None)
        return config

    def kept(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a config.json that no rule reads, to be written back as it was."""
        mapped = {key.split(".")[0] for _, right in self.pairs for key in _keys(right)}
        mapped -= {right["count"] for _, right in self.pairs if isinstance(right, Mapping) and "count" in right}
        drop = mapped | {part["config"] for part in (self.hf.get("parts") or {}).values()}
        found = {key: value for key, value in config.items() if key not in drop}
        absent = [_keys(right)[0] for _, right in self.pairs if not any(_look(config, key)[0] for key in _keys(right))]
        return {**found, ABSENT: absent}

    def _check_known(self, config: Mapping[str, Any]) -> None:
        known = {key for _, right in self.pairs for key in _keys(right)} | set(self.expect)
        known |= {key for key in config if any(fnmatch.fnmatchcase(key, pattern) for pattern in self.ignore)}
        known |= {part["config"] for part in (self.hf.get("parts") or {}).values()}
        unknown = list(_unknown(config, known, ""))
        if unknown:
            key, value = unknown[0]
            more = f" ({len(unknown)} such keys: {listing(k for k, _ in unknown)})" if len(unknown) > 1 else ""
            near = did_you_mean(key, known)
            raise CheckpointError(
                f"config.json says {key}={value!r}, which the YAML of {self.hf.get('model_type')} does not name{near}; "
                f"add it under hf.config, hf.expect or hf.ignore{more}"
            )
        for key, value in self.expect.items():
            found, given = _look(config, key)
            if found and given != value and not (given is None and key in PLAIN):
                raise CheckpointError(
                    f"config.json says {key}={given!r}; the YAML of {self.hf.get('model_type')} means {value!r} only"
                )

    def _read_value(self, path: str, right: Any, config: Mapping[str, Any]) -> Any:
        found = [(key, value) for key in _keys(right) for there, value in [_look(config, key)] if there]
        if found:  # the first that says something, as HF's own `a if a is not None else b`
            key, value = next(((k, v) for k, v in found if v is not None), found[0])
            return _ours(right, value, key)
        for key in _keys(right):
            if key in self.defaults:
                return _ours(right, self.defaults[key], key)
        if isinstance(right, Mapping) and "count" in right:
            return _ours(right, None, right["count"])
        raise CheckpointError(f"config.json has no '{_keys(right)[0]}', which gives {path}")

    def _read_exceptions(
        self, spec: dict[str, Any], path: str, right: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        key = right.get("layers") or right["first"]
        found, value = _look(config, key)
        if not found:
            value = self.defaults.get(key)
        if value is None:
            return
        if "first" in right:
            items = [{"layers": f":{value}", **right["are"]}] if value else []
        else:
            items = []
            for kind, change in right["kinds"].items():
                if change and (numbers := [i for i, name in enumerate(value) if name == kind]):
                    items.append({"layers": numbers, **change})
            if strange := set(value) - set(right["kinds"]):
                can = listing(right["kinds"])
                raise CheckpointError(f"config.json says {key} has {sorted(strange)[0]!r}; the YAML can say {can}")
        changes = list(right["kinds"].values()) if "kinds" in right else [right["are"]]
        others = [e for e in self._value(spec, path) or [] if _change(e) not in changes]
        self._put(spec, path, others + items)

    def _write_exceptions(self, spec: Mapping[str, Any], value: Any, right: Mapping[str, Any]) -> dict[str, Any]:
        depth = self._value(spec, right.get("depth", "trunk.depth"))
        if "first" in right:
            counts = [len(select(e["layers"], depth)) for e in value or () if _change(e) == right["are"]]
            return {right["first"]: sum(counts)}
        plain = next(kind for kind, change in right["kinds"].items() if not change)
        names = [plain] * depth
        for item in value or ():
            for kind, change in right["kinds"].items():
                if change and _change(item) == change:
                    for number in select(item["layers"], depth):
                        names[number] = kind
        return {right["layers"]: names}

    def _inside_rope(self) -> set[str]:
        keys = (key for _, right in self.pairs for key in _keys(right))
        return {key.split(".", 1)[1] for key in keys if key.startswith("rope_parameters.")}

    def _filled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        given = {key: config[key] for key in ROPE_KEYS if config.get(key) is not None}
        if "rope_parameters" not in given and "rope_theta" not in given:
            given |= {key: self.defaults[key] for key in ROPE_KEYS if key in self.defaults}
        return given

    def _node(self, spec: Mapping[str, Any], path: str) -> tuple[Any, str]:
        parts = path.split(".")
        node: Any = spec
        if parts[0] == "head":
            head = self.head if isinstance(self.head, str) else spec.get("head")
            node, parts = (spec["heads"][head], parts[1:]) if isinstance(head, str) else (spec["head"], parts[1:])
        for part in parts[:-1]:
            node = None if node is None else node.get(part)
        return node, parts[-1]

    def _put(self, spec: dict[str, Any], path: str, value: Any) -> None:
        node, last = self._node(spec, path)
        if node is None:
            raise SpecError(f"hf.config: the YAML has nothing at '{path}'")
        node[last] = value

    def _value(self, spec: Mapping[str, Any], path: str) -> Any:
        node, last = self._node(spec, path)
        if node is None or last in node:
            return None if node is None else node[last]
        groups = ("head",) if path.startswith("head.") and path.count(".") == 1 else _groups_of(spec, path)
        for group in groups:
            return Spec(node, path, group)[last]
        return None


def _groups_of(spec: Mapping[str, Any], path: str) -> list[str]:
    """Return the group of the node that holds the last part of a path."""
    node = Spec(spec, "", "model")
    for part in path.split(".")[:-1]:
        node = node.child(part)
    return [node.group]


def _pairs(left: str, right: Any) -> Iterator[tuple[str, Any]]:
    lefts = spread(left)
    if isinstance(right, str):
        yield from zip(lefts, spread(right) if len(lefts) > 1 else [right], strict=True)
    else:
        for own in lefts:
            yield own, right


def _keys(right: Any) -> list[str]:
    if isinstance(right, str):
        return [right]
    if isinstance(right, Mapping):
        if "rope" in right:
            return list(ROPE_KEYS)
        found = next((right[word] for word in ("key", "count", "layers", "first") if word in right), None)
        if found is None:
            raise SpecError(f"hf.config: an operator is one of rope, key, count, layers, first, not {sorted(right)}")
        return [found] if isinstance(found, str) else list(found)
    return list(right)


def _ours(right: Any, value: Any, key: str) -> Any:
    if isinstance(right, Mapping) and "count" in right:
        return len(value) if value is not None else 2  # HF's default: LABEL_0 and LABEL_1
    if isinstance(right, Mapping) and "values" in right:
        for own, theirs in right["values"].items():
            if theirs == value and type(theirs) is type(value):
                return own
        can = listing(repr(v) for v in right["values"].values())
        raise CheckpointError(f"config.json says {key}={value!r}; the YAML can say {can}")
    return value


def _theirs(right: Any, value: Any) -> Any:
    if isinstance(right, Mapping) and "values" in right:
        if value not in right["values"]:
            raise SpecError(f"{value!r} has no counterpart in Hugging Face's '{right['key']}'")
        return right["values"][value]
    return value


def _look(config: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    if key in config:
        return True, config[key]
    head, _, rest = key.partition(".")
    inner = config.get(head)
    return _look(inner, rest) if rest and isinstance(inner, Mapping) else (False, None)


def _assign(config: dict[str, Any], key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if rest:
        _assign(config.setdefault(head, {}), rest, value)
    else:
        config[head] = value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in flat.items():
        _assign(result, key, value)
    return result


def _unknown(config: Mapping[str, Any], known: set[str], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        path = f"{prefix}{key}"
        if path in known or key in INERT:
            continue
        if isinstance(value, Mapping) and any(k.startswith(f"{path}.") for k in known):
            yield from _unknown(value, known, f"{path}.")
        else:
            yield path, value


def _change(exception: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in exception.items() if key != "layers"}
