"""Boxes, masks, outlines: pure geometry."""
