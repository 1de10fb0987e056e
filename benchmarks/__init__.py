"""Measurements: each module is run with `python -m benchmarks.NAME`, prints ratios measured in one run, writes JSON.

`python -m benchmarks` runs all, and prints one table of what they found and what their goals are (`goals.py`).
"""
