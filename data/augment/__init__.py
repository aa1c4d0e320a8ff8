"""Samples and augmentation."""
