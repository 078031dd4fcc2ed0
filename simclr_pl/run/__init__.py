"""A run directory: config, checkpoints, metrics, results."""
