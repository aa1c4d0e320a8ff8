"""Data sets: reading, checking, augmenting and delivering pictures and labels."""
