"""The shared building blocks: small modules that a model's YAML composes."""
