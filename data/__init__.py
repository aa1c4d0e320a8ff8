"""Data sets: read, check, augment and batch images and labels."""
