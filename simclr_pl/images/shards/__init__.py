"""Tar files whose members are read by their place: index, addresses, cache."""
