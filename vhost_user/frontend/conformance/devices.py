"""A harmless request by the kind of device: what checks need where something is to be served.

vhost-user has no message that says what a device is: whoever runs the checks does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vhost_user.frontend.queue import Buffer, Completion


@dataclass(frozen=True)
class DeviceKind:
    """One kind of device: a request that changes nothing, what is right of its answer, and where it goes."""

    name: str
    virtio_id: int
    queue: int
    request: tuple[Buffer, ...]
    """Bytes are to be read, numbers are bytes to be written; what is to be written comes last."""
    is_right: Callable[[Completion], bool]
    config_size: int
    """Bytes of configuration space, as front-ends ask for it; 0 where there is none."""
    beside: tuple[int, ...] = ()
    """Queues that are started with it, as some back-ends begin only with all of them."""
    discards: bool = False
    """Whether a ring that is disabled has its requests taken and dropped, as a network card's."""
    repeats: bool = True
    """Whether the request has the same answer each time."""
    begins_read_only: bool = True
    """Whether the first byte of its configuration space is one that a driver must not write."""

    @property
    def writable(self) -> int:
        """Bytes that the device may write."""
        return sum(buffer for buffer in self.request if isinstance(buffer, int))


def _blk(done: Completion) -> bool:
    """The sector's bytes and status 0 (virtio 1.3, "Block Device", "Device Operation")."""
    return done.writable[-1] == 0


def _rng(done: Completion) -> bool:
    return 0 < done.written <= len(done.writable)


def _consumed(done: Completion) -> bool:
    return True


def _fuse(done: Completion) -> bool:
    """The answer to the request of this number, without an error (FUSE, struct fuse_out_header)."""
    _, error, unique = struct.unpack_from("<IiQ", done.writable)
    return (error, unique) == (0, _UNIQUE)


_UNIQUE = 0x1234
_FUSE_INIT = struct.pack("<IIQQIIIHHIIII", 104, 26, _UNIQUE, 0, 0, 0, 0, 0, 0, 7, 31, 0, 0) + bytes(48)
"""FUSE_INIT of version 7.31: the first message of a session, which may come again."""

_ARP = bytes(12) + bytes.fromhex("ffffffffffff0200000000010806000108000604000102000000000100000000000000000000c0000201")
"""An ARP probe (no sender's address) for 192.0.2.1, behind a header of virtio 1."""

_VSOCK_RST = struct.pack("<QQIIIHHIII", 3, 2, 1024, 1024, 0, 1, 3, 0, 0, 0)
"""VIRTIO_VSOCK_OP_RST of a connection that there is none of."""

DEVICES: Mapping[str, DeviceKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            DeviceKind("net", 1, 1, (_ARP,), _consumed, 12, beside=(0,), discards=True),
            DeviceKind("blk", 2, 0, (struct.pack("<IIQ", 0, 0, 0), 512, 1), _blk, 60),
            DeviceKind("rng", 4, 0, (64,), _rng, 0, repeats=False),
            DeviceKind("vsock", 19, 1, (_VSOCK_RST,), _consumed, 8),
            DeviceKind("fs", 26, 1, (_FUSE_INIT, 80), _fuse, 40),
        )
    }
)
"""By name, as `--device` takes it."""
