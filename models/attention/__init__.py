"""Attention layers. models/catalogue.py imports every file of this folder."""
