"""Feature bits: those of virtio that vhost-user has a part in, and those of the protocol itself.

Bits of a device's own (0 to 23 and 50 to 127) are the device's. Unknown bits of a peer are kept, and mean nothing.
"""

from __future__ import annotations

from enum import IntFlag
from types import MappingProxyType
from typing import TypeVar

from userdev.errors import ProtocolError

F = TypeVar("F", bound=IntFlag)


def _complement(features: F) -> F:
    """All other bits of 64. Python's own complement ends at the highest bit that has a name.

    It is written in each class, as `enum` gives every class of flags its own operators.
    """
    return type(features)(~int(features) & (1 << 64) - 1)


def names_of(features: IntFlag) -> tuple[str, ...]:
    """The bits that are set, by name, or number where they have none."""
    named = {int(member): member.name or "" for member in type(features)}
    return tuple(named.get(1 << bit, f"bit {bit}") for bit in range(64) if int(features) & 1 << bit)


def words_of(features: IntFlag) -> str:
    """The same for people."""
    return ", ".join(names_of(features)) or "none"


class VirtioFeature(IntFlag):
    """Bits of GET_FEATURES and SET_FEATURES (virtio 1.3, "Reserved Feature Bits"; linux/vhost.h; specification)."""

    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    """vhost's own: what is written to memory is to be marked in the dirty log."""
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    """vhost-user's own: GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES are understood."""
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    """Addresses are translated by an IOMMU; the specification calls it VIRTIO_F_IOMMU_PLATFORM."""
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41

    __invert__ = _complement


class ProtocolFeature(IntFlag):
    """Bits of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES (specification, "Protocol features").

    The edition of 2019 ends with INFLIGHT_SHMFD, and calls BACKEND_* SLAVE_*. The last is of 2026.
    """

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM = 1 << 22
    GET_VRING_BASE_SKIP_DRAIN = 1 << 23

    __invert__ = _complement


class DeviceStatus(IntFlag):
    """Bits of GET_STATUS and SET_STATUS (virtio 1.3, "Device Status Field")."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


_P = ProtocolFeature

NEEDS = MappingProxyType(
    {
        _P.INBAND_NOTIFICATIONS: _P.BACKEND_REQ | _P.REPLY_ACK,  # "In-band notifications"
        _P.GET_VRING_BASE_INFLIGHT: _P.INFLIGHT_SHMFD,  # GET_VRING_BASE
        _P.GET_VRING_BASE_SKIP_DRAIN: _P.GET_VRING_BASE_INFLIGHT | _P.INFLIGHT_SHMFD,
    }
)
"""Protocol features that may be negotiated only with others, and with which."""


def check_protocol_features(features: ProtocolFeature) -> None:
    """Refuse a set of protocol features that lacks what one of them needs.

    Raises:
        ProtocolError: fatal, since the specification has no other way to say it ("In-band notifications").
    """
    for feature, needed in NEEDS.items():
        if feature in features and needed not in features:
            raise ProtocolError(f"{feature.name} without {words_of(needed & ~features)}", fatal=True)
