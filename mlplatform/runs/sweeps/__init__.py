"""Sweeps: many runs of one config, at points a search chooses, kept in a study that several processes share."""
