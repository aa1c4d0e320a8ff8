"""Blocks: CSP shells, convolutions, normalisation. models/catalogue.py imports every file of this folder."""
