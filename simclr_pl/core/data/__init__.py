"""Splits, loaders, images in memory, and the data module."""
