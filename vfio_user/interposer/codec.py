"""vfio-user's messages, for the relay."""

from __future__ import annotations

from userdev.relay import Codec
from vfio_user.wire import Message, split_messages
from vfio_user.wire.header import MessageHeader as MessageHeader

MAX_FRAME = (64 << 20) + (64 << 10)
"""Longest message that is taken for one: QEMU accepts up to 64 MiB of data from a server's VERSION."""

CODEC = Codec(Message, split_messages, MAX_FRAME)
