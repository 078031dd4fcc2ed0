"""Readers: a file for each kind of data set that `data.dataset` can name."""
