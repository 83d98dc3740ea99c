"""Runs: the folder, its record, launching, resuming, comparing."""
