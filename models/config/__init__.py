"""Network yamls: reading, rows, edits, scaling."""
