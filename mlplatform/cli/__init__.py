"""The command line: composes a config with Hydra, checks it, and hands it to the floors below."""
