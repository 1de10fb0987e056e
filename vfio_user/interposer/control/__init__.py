"""The control socket: JSON lines in, JSON lines out, a documented command each."""
