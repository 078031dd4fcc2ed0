"""Callbacks that watch a training: probe, kNN, linear evaluation, health, speed."""
