"""Nights: a plan of cells, run as jobs of avocado, and what they leave on disk (docs/nightly.md)."""
