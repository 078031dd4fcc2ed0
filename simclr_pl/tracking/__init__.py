"""Experiment trackers: W&B, TensorBoard, artifacts, provenance."""
