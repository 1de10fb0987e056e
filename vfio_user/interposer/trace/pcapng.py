"""A trace as pcapng, for Wireshark with `vfio_user.lua` (pcapng: draft-ietf-opsawg-pcapng, sections 3 and 4).

Link type USER0. Before each message stands a header of ours, big-endian as Wireshark likes it::

    0  4  "VFUP"
    4  1  version, 1
    5  1  direction: 0 to the server, 1 to the client
    6  1  view: 1 received, 2 sent, 3 both
    7  1  dialect: 0 current, 1 draft-v6, 2 region-migration, 3 and 4 the first and third with 32-bit DMA counts
    8  1  kind: 2 message, 3 bytes that are no message, 4 note (JSON)
    9  1  count of descriptors
   10  2  reserved
   12  4  number of the record
   16  4  number of the request's record, in a reply; else 0
   20     per descriptor: kind 4, size 8, inode 8
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from vfio_user.interposer.trace import Entry, Header, MessageRecord, Note, Raw, RecordKind
from vfio_user.wire import DIALECTS

PSEUDO = struct.Struct(">4sBBBBBBHII")
PSEUDO_FD = struct.Struct(">IQQ")
MAGIC, VERSION = b"VFUP", 1
LINKTYPE_USER0 = 147
SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
OPTION_END, OPTION_COMMENT, OPTION_TSRESOL, OPTION_FLAGS, OPTION_NAME = 0, 1, 9, 2, 2
NANOSECONDS = b"\x09"
INBOUND, OUTBOUND = 1, 2
DIALECT_NUMBERS = {name: number for number, name in enumerate(DIALECTS)}
DISSECTOR = Path(__file__).parent.parent / "vfio_user.lua"


def write_pcapng(stream: BinaryIO, header: Header, entries: Iterable[Entry]) -> int:
    """Write the entries; returns how many packets."""
    about = f"vfio-user trace, dialect {header.dialect}".encode()
    stream.write(_block(SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _options((OPTION_COMMENT, about))))
    options = _options((OPTION_NAME, b"vfio-user"), (OPTION_TSRESOL, NANOSECONDS))
    stream.write(_block(INTERFACE, struct.pack("<HHI", LINKTYPE_USER0, 0, 0) + options))
    dialect = DIALECT_NUMBERS.get(header.dialect, 0)
    epoch = header.realtime - header.time
    count = 0
    for entry in entries:
        if isinstance(entry, Header):
            continue
        data = _packet(entry, dialect)
        when = max(0, entry.time + epoch)
        fixed = struct.pack("<IIIII", 0, when >> 32, when & 0xFFFFFFFF, len(data), len(data))
        way = struct.pack("<I", OUTBOUND if entry.direction == 0 else INBOUND)
        stream.write(_block(PACKET, fixed + _padded(data) + _options((OPTION_FLAGS, way))))
        count += 1
    return count


def _packet(entry: MessageRecord | Raw | Note, dialect: int) -> bytes:
    fds, pair = (entry.fds, entry.pair) if isinstance(entry, MessageRecord) else ((), 0)
    match entry:
        case MessageRecord():
            kind, body = RecordKind.MESSAGE, entry.message.encode()
        case Raw():
            kind, body = RecordKind.BYTES, entry.data
        case Note():
            kind, body = RecordKind.NOTE, json.dumps({"event": entry.event, **entry.details}).encode()
    start = PSEUDO.pack(MAGIC, VERSION, entry.direction, entry.view, dialect, kind, len(fds), 0, entry.number, pair)
    return start + b"".join(PSEUDO_FD.pack(*fd) for fd in fds) + body


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _options(*options: tuple[int, bytes]) -> bytes:
    found = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    return found + struct.pack("<HH", OPTION_END, 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
