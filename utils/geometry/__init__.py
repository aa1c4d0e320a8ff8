"""Boxes, masks, outlines and anchor points: geometry without networks or files."""
