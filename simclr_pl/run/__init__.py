"""A run and its directory: what is written where, and when."""
