"""Layers of necks: fusion, upsampling, connections. models/catalogue.py imports every file of this folder."""
