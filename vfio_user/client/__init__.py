"""The VMM's side of the protocol in Python."""
