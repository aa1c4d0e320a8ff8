"""Answers a name of the original: val.py serves every head."""

from utils.cli import retired_script

retired_script("val_triple.py", "val.py")
