"""Drawing and plots."""
