"""Answers a name of the original: detect.py serves every head."""

from utils.cli import retired_script

retired_script("detect_dual.py", "detect.py")
