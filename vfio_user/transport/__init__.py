"""Sockets that carry file descriptors. Knows nothing of the protocol."""
