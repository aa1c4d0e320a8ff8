"""Plug-ins: loading users' layers, and recording them in checkpoints."""
