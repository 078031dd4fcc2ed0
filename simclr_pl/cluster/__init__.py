"""Signals, requeueing, ranks, memory."""
