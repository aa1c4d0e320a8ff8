"""From a network to results."""
