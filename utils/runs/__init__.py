"""The runs of the other commands: val.py, detect.py and export.py."""
