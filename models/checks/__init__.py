"""The conformance test for layers and networks: `python -m models.check` and the test suite make the same checks."""
