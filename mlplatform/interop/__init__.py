"""Hugging Face's files, both ways: config.json and safetensors <-> a YAML model."""

from mlplatform.interop.families import choose, families
from mlplatform.interop.hub import fetch
from mlplatform.interop.loading import load
from mlplatform.interop.saving import config_json, save

__all__ = ["choose", "config_json", "families", "fetch", "load", "save"]
