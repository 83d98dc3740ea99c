"""Whole models: towers, assemblies, building."""

from mlplatform.models.building import build, initialise

__all__ = ["build", "initialise"]
