"""Sockets that carry file descriptors. Knows nothing of the protocol."""

from userdev.transport.address import MAX_PATH, Address, Listener, connect
from userdev.transport.stream import MAX_FDS_PER_SEND, DescriptorsLost, Stream, close_all

__all__ = ["MAX_FDS_PER_SEND", "MAX_PATH", "Address", "DescriptorsLost", "Listener", "Stream", "close_all", "connect"]
