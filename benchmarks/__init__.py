"""Measurements, side by side in one run: `python -m benchmarks.training`, `python -m benchmarks.inference`."""
