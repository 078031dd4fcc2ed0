"""Formats: folders, packed files, arrays, data sets that download."""
