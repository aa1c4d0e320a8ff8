"""Benchmarks: two variants timed in turn within one run, printed with their ratio; and a control of the data."""
