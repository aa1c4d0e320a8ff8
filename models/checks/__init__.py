"""Conformance tests for layers and networks, run by `python -m models.check` and by the test suite."""
