"""Drawing, data, losses, training and evaluation around the networks."""
