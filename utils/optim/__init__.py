"""Optimizer, EMA and what is trained."""
