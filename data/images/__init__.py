"""Image files and sources."""
