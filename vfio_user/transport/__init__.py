"""Sockets that carry file descriptors. Knows nothing of the protocol."""

from vfio_user.transport.address import MAX_PATH, Address, Listener, connect
from vfio_user.transport.stream import MAX_FDS_PER_SEND, DescriptorsLost, Stream, close_all

__all__ = ["MAX_FDS_PER_SEND", "MAX_PATH", "Address", "DescriptorsLost", "Listener", "Stream", "close_all", "connect"]
