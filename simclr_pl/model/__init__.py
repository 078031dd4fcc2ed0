"""The encoder, the projector, the loss, the optimisation, and the module that holds them."""
