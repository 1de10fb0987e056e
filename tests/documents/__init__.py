"""What `scripts/docs check` does: what is built of the pages is looked at (pages.py)."""
