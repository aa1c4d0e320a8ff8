"""Data sets: reading, checking, augmenting and delivering images and labels."""
