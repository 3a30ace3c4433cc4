"""A run and its directory: records, checkpoints, what a terminal shows."""
