"""Numbers and structures of virtio 1.3, "Block Device"."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

SECTOR = 512

HEADER = struct.Struct("<I4xQ")
"""Of a request: type and sector; between them is what was a priority once."""

SEGMENT = struct.Struct("<QII")
"""Of a discard, or of zeroes to write (virtio_blk_discard_write_zeroes): sector, number of sectors, flags."""

UNMAP = 1
"""In the flags of a segment of zeroes: they need no place on the disk."""

SERIAL_SIZE = 20


class RequestType(IntEnum):
    """What a request wants (VIRTIO_BLK_T_*)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(IntEnum):
    """What has become of it (VIRTIO_BLK_S_*)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class Feature(IntFlag):
    """VIRTIO_BLK_F_*."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
