"""Training: optimizers, schedules, precision, strategies, checkpoints, and the engine that runs a task on data."""
