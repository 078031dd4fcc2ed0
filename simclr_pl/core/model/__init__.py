"""Encoder, projector, objective, optimisation, checkpoint, and the LightningModule."""
