"""Command lines: options, errors, checkpoints to evaluate, and one training in its directory."""
