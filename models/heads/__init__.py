"""Heads: towers, detection, segmentation."""
