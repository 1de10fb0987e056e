"""What tests say to back-ends: the front-end, under short names."""

from __future__ import annotations

from vhost_user.frontend import FEATURES, Buffer, Disconnected, FrontEnd, Queue
from vhost_user.frontend.memory import SIZE, USER_ADDRESS
from vhost_user.frontend.split import SplitDriver
from vhost_user.wire import NO_FD, FrontEndRequest, ProtocolFeature, VirtioFeature

R = FrontEndRequest
V = VirtioFeature
P = ProtocolFeature
MEMORY, USER = SIZE, USER_ADDRESS
PROTOCOL = P.MQ | P.REPLY_ACK | P.LOG_SHMFD | P.CONFIGURE_MEM_SLOTS | P.RESET_DEVICE | P.INFLIGHT_SHMFD
"""What QEMU agrees to for every device."""

__all__ = [
    "FEATURES",
    "MEMORY",
    "PROTOCOL",
    "USER",
    "Buffer",
    "Disconnected",
    "FrontEnd",
    "P",
    "Queue",
    "R",
    "V",
    "no_fd",
    "split",
]


def no_fd(index: int) -> int:
    """What SET_VRING_KICK and its like say of a ring without a descriptor."""
    return index | NO_FD


def split(queue: Queue) -> SplitDriver:
    """The ring of a queue, to do wrong things with."""
    assert isinstance(queue.driver, SplitDriver)
    return queue.driver
