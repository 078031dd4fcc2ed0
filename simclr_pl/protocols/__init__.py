"""Evaluations of a finished encoder: features, linear, kNN, fine-tuning."""
