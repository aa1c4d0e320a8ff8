"""Explain detections: class-activation maps, attention maps and feature maps."""
