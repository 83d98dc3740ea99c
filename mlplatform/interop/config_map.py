"""`hf.config` as data that works in both directions: config.json <-> our spec, strictly.

Left is our path, right the key of theirs (a dotted one within a nested config; a list for several spellings, the first
that says something is read and the first is written), or an operator:

    trunk.layer.attention.bias: {key: qkv_bias, values: {qkv: true, false: false}}     ours: theirs
    trunk.layer.attention.scale: {key: query_pre_attn_scalar, power: -0.5}  ours = theirs ** power
    trunk.context_length: {key: max_position_embeddings, plus: [-pad_token_id, -1]}    a number or another key, or both
    trunk.layer.mlp.shared.width: {key: num_shared_experts, times: moe_intermediate_size}
    trunk.layer.attention.rope: {rope: true}                                HF's rotary convention (rope_map.py)
    head.labels: {count: id2label}                                          as many as theirs has entries
    trunk.exceptions: {layers: layer_types, kinds: {full_attention: {attention: {rope: null}}}}    (layer_lists.py)
    trunk.exceptions: {first: num_dense_layers, are: {mlp: {...}}}

Several operators for one path stand in a list, and have to agree. null takes an inherited rule away.
`{encoder,decoder}.dim: d_model` is two rules.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from mlplatform.errors import CheckpointError, SpecError, did_you_mean, listing
from mlplatform.interop.config_keys import look, nested, remove, unknown
from mlplatform.interop.config_rules import ABSENT, Count, RopeValue, Value, value_rule
from mlplatform.interop.layer_lists import LIST_KEYS, LayerRule
from mlplatform.interop.templates import spread
from mlplatform.registry import Spec

INERT = frozenset(
    """architectures model_type dtype torch_dtype transformers_version _name_or_path auto_map name_or_path
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id use_cache initializer_range initializer_factor return_dict use_return_dict
    output_attentions output_hidden_states output_scores id2label label2id num_labels problem_type task_specific_params
    output_past _num_labels gradient_checkpointing tokenizer_class finetuning_task torchscript prefix _commit_hash
    is_encoder_decoder
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


Rule = Value | Count | RopeValue | LayerRule


class ConfigMap:
    """The two-way map of one model's YAML, with the chosen head's part."""

    def __init__(self, hf: Mapping[str, Any], head: str | None) -> None:
        self.hf, self.head = hf, head
        own = (hf.get("heads") or {}).get(head) or {}
        pairs = [
            pair
            for left, right in {**(hf.get("config") or {}), **(own.get("config") or {})}.items()
            if right is not None
            for pair in _pairs(left, right)
        ]
        self.expect = {**PLAIN, **(hf.get("expect") or {}), **(own.get("expect") or {})}
        self.ignore = [*(hf.get("ignore") or ()), *(own.get("ignore") or ())]
        self.defaults: dict[str, Any] = hf.get("defaults") or {}
        self.parts: dict[str, Any] = hf.get("parts") or {}
        ignored = {key for _, right in pairs for key in _plain_keys(right)} | {*self.ignore, *self.expect}
        self.rules = [_rule(path, right, ignored) for path, right in pairs]
        self.keys = {key for rule in self.rules for key in rule.keys}
        for key in self.keys & PLAIN.keys():  # a key that is mapped is not expected to be plain
            self.expect.pop(key, None)

    def read(self, config: Mapping[str, Any], family: Mapping[str, Any]) -> dict[str, Any]:
        """Return the family's spec with the numbers of a config.json.

        Raises:
            CheckpointError: a key is unknown, missing, or has a value the YAML can't express.
        """
        self._check_known(config)
        spec = copy.deepcopy(dict(family))
        if self.head is not None:
            spec["head"] = self.head

        def find(key: str) -> tuple[bool, Any]:
            there, value = look(config, key)
            return (there, value) if there else (key in self.defaults, self.defaults.get(key))

        said: dict[str, tuple[str, Any]] = {}
        for rule in self.rules:
            if not isinstance(rule, LayerRule):
                old = self._value(spec, rule.path) if isinstance(rule, RopeValue) else None
                value = rule.read(find, old)
                key, other = said.setdefault(rule.path, (rule.keys[0], value))
                if other != value:
                    raise CheckpointError(
                        f"config.json says {key}={other!r} and {rule.keys[0]}={value!r}, which are one number here"
                    )
                self._put(spec, rule.path, value)
        for rule in self.rules:
            if isinstance(rule, LayerRule):
                depth, old = self._value(spec, rule.depth_path), self._value(spec, rule.path)
                self._put(spec, rule.path, rule.read(find, list(old or ()), depth))
        return spec

    def write(self, spec: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config.json of a spec. `kept` holds what a file that was read said beside the mapped keys.

        Raises:
            SpecError: a value Hugging Face's config has no word for, or two values for which it has one number.
        """
        absent = set(kept.get(ABSENT, ()))
        config = {key: copy.deepcopy(value) for key, value in kept.items() if key != ABSENT}
        if not config:
            config = nested({k: v for k, v in self.expect.items() if k not in PLAIN})
            if any(rule.path.endswith(".vocab") for rule in self.rules):
                config["pad_token_id"] = None  # a class's default may lie outside of this vocabulary
        said: dict[str, tuple[str, Any]] = {}
        for rule in sorted((r for r in self.rules if not isinstance(r, LayerRule)), key=lambda rule: rule.needs):
            value = self._value(spec, rule.path)
            rule.write(value, config, self.defaults, absent)
            if isinstance(rule, Value) and len(rule.keys) == 1 and "drop" not in rule.keys[0]:
                key, theirs = rule.keys[0], look(config, rule.keys[0])
                if said.setdefault(key, (rule.path, theirs))[1] != theirs:
                    other = said[key][0]
                    raise SpecError(
                        f"{rule.path}={value!r} and {other}={self._value(spec, other)!r} are one number in Hugging "
                        f"Face's config, '{key}'; make them equal"
                    )
        self._write_layers(spec, config, absent)
        return config

    def kept(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a config.json that no rule reads, to be written back as it was."""
        found = copy.deepcopy(dict(config))
        for part in self.parts.values():
            remove(found, part["config"])
        for rule in self.rules:
            if isinstance(rule, LayerRule):
                remove(found, rule.key)
            else:
                rule.drop(found)
        return {**found, ABSENT: sorted(key for key in self.keys if not look(config, key)[0])}

    def _write_layers(self, spec: Mapping[str, Any], config: dict[str, Any], absent: set[str]) -> None:
        rules = [rule for rule in self.rules if isinstance(rule, LayerRule)]
        for rule in rules:
            exceptions = list(self._value(spec, rule.path) or ())
            rule.write(exceptions, self._value(spec, rule.depth_path), config, self.defaults, absent)
            for number, item in enumerate(exceptions):
                if all(other.kind_of(item) is None for other in rules if other.path == rule.path):
                    raise SpecError(f"{rule.path}.{number}: Hugging Face's config has no word for layers like these")

    def _check_known(self, config: Mapping[str, Any]) -> None:
        known = {*self.keys, *self.expect, *(part["config"] for part in self.parts.values())}

        def is_known(path: str) -> bool:
            return (
                path in known
                or path.rpartition(".")[2] in INERT
                or any(fnmatch.fnmatchcase(path, pattern) for pattern in self.ignore)
            )

        left = list(unknown(config, is_known, {*known, *self.ignore}))
        if left:
            key, value = left[0]
            more = f" ({len(left)} such keys: {listing(k for k, _ in left)})" if len(left) > 1 else ""
            near = did_you_mean(key, known)
            raise CheckpointError(
                f"config.json says {key}={value!r}, which the YAML of {self.hf.get('model_type')} does not name{near}; "
                f"add it under hf.config, hf.expect or hf.ignore{more}"
            )
        for key, value in self.expect.items():
            found, given = look(config, key)
            if found and given != value and not (given is None and key in PLAIN):
                raise CheckpointError(
                    f"config.json says {key}={given!r}; the YAML of {self.hf.get('model_type')} means {value!r} only"
                )

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


def _rule(path: str, right: Any, ignored: set[str]) -> Rule:
    if isinstance(right, Mapping) and any(word in right for word in LIST_KEYS):
        return LayerRule(path, right, ignored)
    return value_rule(path, right, ignored)


def _pairs(left: str, right: Any) -> Iterator[tuple[str, Any]]:
    """Yield (our path, one rule) for what a line of `hf.config` stands for."""
    lefts = spread(left)
    if isinstance(right, str):
        rights = spread(right)
        yield from zip(lefts, rights if len(rights) > 1 else rights * len(lefts), strict=True)
    else:
        several = isinstance(right, list) and all(isinstance(item, Mapping) for item in right)
        for own in lefts:
            for item in right if several else [right]:
                yield own, item


def _plain_keys(right: Any) -> list[str]:
    """Return the keys a rule names that may lie within a rope's parameters."""
    if isinstance(right, Mapping):
        right = right.get("key", []) if "rope" not in right else []
    return [right] if isinstance(right, str) else list(right)
