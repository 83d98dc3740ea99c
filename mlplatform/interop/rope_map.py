"""Hugging Face's one convention for rotary positions, in its two spellings, and ours.

v5: `rope_parameters: {rope_type, rope_theta, factor, ...}`.
Before: `rope_theta` and `rope_scaling: {type or rope_type, factor, ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlplatform.errors import CheckpointError, did_you_mean, listing

KEYS = ("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor")
FIELDS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_length": "original_max_position_embeddings",
    },
    "yarn": {
        "factor": "factor",
        "original_length": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}
"""Our scaling kind -> our field -> their key. The kinds bear HF's `rope_type` names."""


def read_rope(theirs: Mapping[str, Any], rope: dict[str, Any], elsewhere: set[str]) -> dict[str, Any]:
    """Return our rope spec from a config.json's keys.

    Args:
        rope: the YAML's rope, whose kind and other fields stay.
        elsewhere: keys within `rope_parameters` that other rules read.
    """
    parameters = dict(theirs.get("rope_parameters") or {})
    parameters |= theirs.get("rope_scaling") or {}
    kind = parameters.pop("rope_type", None) or parameters.get("type") or "default"
    parameters.pop("type", None)  # the older word for it; some files have both
    for key in ("rope_theta", "partial_rotary_factor"):
        if theirs.get(key) is not None:
            parameters.setdefault(key, theirs[key])
    parameters = {key: value for key, value in parameters.items() if value is not None}
    result = dict(rope)
    if "rope_theta" in parameters:
        result["theta"] = float(parameters.pop("rope_theta"))
    if (fraction := parameters.pop("partial_rotary_factor", None)) is not None:
        result["fraction"] = fraction
    if kind == "default":
        result["scaling"] = None
    elif kind in FIELDS:
        fields = {ours: parameters[key] for ours, key in FIELDS[kind].items() if key in parameters}
        result["scaling"] = {"kind": kind, **fields}
        parameters = {key: value for key, value in parameters.items() if key not in FIELDS[kind].values()}
    else:
        can = listing(["default", *FIELDS])
        raise CheckpointError(
            f"config.json says rope_type={kind!r}{did_you_mean(kind, FIELDS)}; the YAML can say {can}"
        )
    parameters = {key: value for key, value in parameters.items() if key not in elsewhere}
    if parameters:
        key = next(iter(parameters))
        raise CheckpointError(
            f"config.json says {key}={parameters[key]!r} for rope_type={kind}, which no rope of ours has"
        )
    return result


def write_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return HF's `rope_parameters` (v5) for a rope of ours."""
    scaling = rope.get("scaling")
    parameters: dict[str, Any] = {"rope_type": scaling["kind"] if scaling else "default"}
    parameters["rope_theta"] = rope.get("theta", 10000.0)
    if rope.get("fraction", 1.0) != 1.0:
        parameters["partial_rotary_factor"] = rope["fraction"]
    if scaling:
        known = FIELDS[scaling["kind"]]
        parameters |= {known[key]: value for key, value in scaling.items() if key != "kind" and value is not None}
    return parameters
