"""Attention layers. A file put into this folder registers its layers by itself (models/catalogue.py)."""
