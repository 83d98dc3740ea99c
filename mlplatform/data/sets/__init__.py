"""Real data that comes inside packages: what there is, how it is fetched, how it becomes plain files."""
