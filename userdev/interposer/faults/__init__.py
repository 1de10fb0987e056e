"""Faults by script: a scenario says which messages to match and what to do to them; the same seed does the same."""
