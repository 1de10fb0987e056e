"""Measurements: each module is run with `python -m benchmarks.NAME`, prints ratios measured in one run, writes JSON."""
