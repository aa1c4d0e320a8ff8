"""Run a network: load it, predict, evaluate, return results."""
