"""Draw objects, plots and panels."""
