"""A trace as pcapng, for Wireshark with a protocol's dissector (pcapng: draft-ietf-opsawg-pcapng, sections 3 and 4).

Link type USER0. Before each message stands a header of ours, big-endian as Wireshark likes it::

    0  4  whose messages these are: "VFUP" vfio-user's, "VHUP" vhost-user's
    4  1  version, 1
    5  1  direction: 0 to the server, 1 to the client
    6  1  view: 1 received, 2 sent, 3 both
    7  1  dialect, of vfio-user: 0 current, 1 draft-v6, 2 region-migration, 3 and 4 the first and third with 32-bit DMA
          counts
    8  1  kind: 2 message, 3 bytes that are no message, 4 note (JSON)
    9  1  count of descriptors
   10  2  number of the channel: 0 the connection, 1 the one that it has in addition
   12  4  number of the record
   16  4  number of the request's record, in a reply; else 0
   20     per descriptor: kind 4, size 8, inode 8
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from userdev.trace.format import Header, Note, Raw, RecordKind, TraceRecord
from userdev.trace.lines import TraceLine, said_of

PSEUDO = struct.Struct(">4sBBBBBBHII")
PSEUDO_FD = struct.Struct(">IQQ")
VERSION = 1
MAX_OPTION = 0xFFFF
"""Bytes of an option: its length has 16 bits."""
LINKTYPE_USER0 = 147
SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
OPTION_END, OPTION_COMMENT, OPTION_TSRESOL, OPTION_FLAGS, OPTION_NAME = 0, 1, 9, 2, 2
NANOSECONDS = b"\x09"
INBOUND, OUTBOUND = 1, 2


@dataclass(frozen=True)
class PacketForm:
    """The packets of a protocol's."""

    name: str
    magic: bytes
    dissector: Path
    """Wireshark's script for them."""
    dialects: tuple[str, ...] = ()
    """The names of the protocol's dialects, in the order of their numbers."""
    channels: tuple[str, ...] = ("",)


def write_pcapng(stream: BinaryIO, form: PacketForm, header: Header, lines: Iterable[TraceLine]) -> int:
    """Write the entries; returns how many packets.

    What no dissector can know is a comment of the packet (`frame.comment`): the names of registers, and what a request
    was answered.
    """
    about = f"{form.name} trace, dialect {header.dialect}".encode()
    stream.write(_block(SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _options((OPTION_COMMENT, about))))
    options = _options((OPTION_NAME, form.name.encode()), (OPTION_TSRESOL, NANOSECONDS))
    stream.write(_block(INTERFACE, struct.pack("<HHI", LINKTYPE_USER0, 0, 0) + options))
    dialect = form.dialects.index(header.dialect) if header.dialect in form.dialects else 0
    epoch = header.realtime - header.time
    count = 0
    for line in lines:
        entry = line.entry
        if isinstance(entry, Header):
            continue
        data = _packet(form, entry, dialect)
        when = max(0, entry.time + epoch)
        fixed = struct.pack("<IIIII", 0, when >> 32, when & 0xFFFFFFFF, len(data), len(data))
        way = struct.pack("<I", OUTBOUND if entry.direction == 0 else INBOUND)
        said = _cut(said_of(line).encode())
        comments = ((OPTION_COMMENT, said),) if said else ()
        stream.write(_block(PACKET, fixed + _padded(data) + _options((OPTION_FLAGS, way), *comments)))
        count += 1
    return count


def _packet(form: PacketForm, entry: TraceRecord[Any] | Raw | Note, dialect: int) -> bytes:
    body: bytes
    fds, pair = (entry.fds, entry.pair) if isinstance(entry, TraceRecord) else ((), 0)
    match entry:
        case TraceRecord():
            kind, body = RecordKind.MESSAGE, entry.message.encode()
        case Raw():
            kind, body = RecordKind.BYTES, entry.data
        case Note():
            kind, body = RecordKind.NOTE, json.dumps({"event": entry.event, **entry.details}).encode()
    channel = form.channels.index(entry.channel)
    what = (entry.direction, entry.view, dialect, kind, len(fds), channel)
    start = PSEUDO.pack(form.magic, VERSION, *what, entry.number, pair)
    return start + b"".join(PSEUDO_FD.pack(*fd) for fd in fds) + body


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _options(*options: tuple[int, bytes]) -> bytes:
    found = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    return found + struct.pack("<HH", OPTION_END, 0)


def _cut(text: bytes) -> bytes:
    """As much of a text, in whole characters, as an option holds."""
    return text if len(text) <= MAX_OPTION else text[:MAX_OPTION].decode(errors="ignore").encode()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
