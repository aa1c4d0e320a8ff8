"""Drawing, data, losses, training and evaluation around the networks."""

import os

if "WORLD_SIZE" in os.environ:  # read when torch is imported: every rank would print torch's notes about the others
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
