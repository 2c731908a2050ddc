"""Measure accuracy against seconds beside other libraries: `make bench-accuracy`, docs/accuracy.md."""
