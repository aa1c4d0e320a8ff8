"""Images of networks."""
