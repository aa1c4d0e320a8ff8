"""A user's own layers: loading and record."""
