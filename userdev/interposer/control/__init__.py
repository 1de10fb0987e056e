"""The control socket of an interposer: JSON lines in, JSON lines out, a documented command each."""
