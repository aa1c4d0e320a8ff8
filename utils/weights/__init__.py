"""Weights files of any kind, read without running them."""
