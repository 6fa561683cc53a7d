"""Measurements of speed and of quality. Run them from the repository's root: ``python -m benchmarks.all``."""
