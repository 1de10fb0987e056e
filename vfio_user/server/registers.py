"""The hot path: register accesses of natural width, from the bytes of the message to the device's function.

The 16 bytes behind the header (offset, region, count) are the key of a table, so that one `struct` call and one
look-up find what to do. Whatever is not exactly a declared register is left for the general path.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from userdev.errors import AUTHORS_FAILURES
from vfio_user.server.connection import ServerConnection
from vfio_user.server.owed import Owed
from vfio_user.wire import NO_REPLY, REPLY, Command, Dialect, Message

if TYPE_CHECKING:
    from vfio_user.device import Function

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_ACCESS = struct.Struct("<HHII4x16s")  # id, command, size, flags, key
_KEY = struct.Struct("<QII")  # offset, region, count
_VALUE = {width: struct.Struct("<" + code) for width, code in _CODES.items()}
_READ_REPLY = {width: struct.Struct("<HHIII16s" + code) for width, code in _CODES.items()}
_WRITE_REPLY = struct.Struct("<HHIII12sI")
_SIZE = 32
"""Bytes of an access before its data."""


class RegisterPath:
    """The register table of one session."""

    def __init__(
        self,
        dialect: Dialect,
        connection: ServerConnection,
        owed: Owed,
        failed: Callable[[Message, BaseException], None],
    ) -> None:
        """`failed` answers an access whose function raised."""
        self._connection = connection
        self._owed = owed
        self._failed = failed
        self._read = dialect.number(Command.REGION_READ)
        self._write = dialect.number(Command.REGION_WRITE)
        self._counts = dialect.write_reply_counts
        self._readers: dict[bytes, tuple[Any, int, Callable[[], int], Callable[[int], int]]] = {}
        self._writers: dict[bytes, tuple[int, Any, Callable[[int], None]]] = {}

    def clear(self) -> None:
        """Leave every access to the general path."""
        self._readers.clear()
        self._writers.clear()

    def fill(self, function: Function) -> None:
        """Make the table from the registers of a device: an entry for each width that carries a whole value."""
        for (region, offset, width), read in function.readers.items():
            reply = _READ_REPLY[width]
            fit = function.fits[region, offset, width]
            self._readers[_KEY.pack(offset, region, width)] = (reply.pack, reply.size, read, fit)
        for (region, offset, width), write in function.writers.items():
            self._writers[_KEY.pack(offset, region, width)] = (_SIZE + width, _VALUE[width].unpack_from, write)

    def serve(self) -> None:
        """Serve register accesses until the buffer holds something else, or nothing whole.

        A handler may wait for message DMA, which serves further messages in between: buffer and position are looked
        up anew for each access.
        """
        connection, owed = self._connection, self._owed
        framer = connection.framer
        unpack = _ACCESS.unpack_from
        readers, writers = self._readers, self._writers
        reading, writing = self._read, self._write
        while framer.end - (start := framer.start) >= _SIZE:
            id, command, size, flags, key = unpack(framer.buffer, start)
            try:
                if command == writing:
                    writer = writers.get(key)
                    if writer is None or size != writer[0] or flags & ~NO_REPLY or start + size > framer.end:
                        return
                    (value,) = writer[1](framer.buffer, start + _SIZE)
                    framer.start = start + size
                    if flags:
                        writer[2](value)
                    else:
                        owed.reply = reply = self._write_reply(id, key)
                        writer[2](value)
                        if owed.reply is reply:
                            connection.out += reply
                            owed.reply = None
                elif command == reading:
                    reader = readers.get(key)
                    if reader is None or size != _SIZE or flags:
                        return
                    framer.start = start + _SIZE
                    owed.blocking = True
                    value = reader[2]()
                    owed.blocking = False
                    try:
                        connection.out += reader[0](id, command, reader[1], REPLY, 0, key, value)
                    except struct.error:  # it does not fit
                        connection.out += reader[0](id, command, reader[1], REPLY, 0, key, reader[3](value))
                else:
                    return
            except AUTHORS_FAILURES as error:
                if command == reading:
                    owed.reply = b""
                self._failed(Message(id, command, flags), error)

    def _write_reply(self, id: int, key: bytes) -> bytes:
        return _WRITE_REPLY.pack(id, self._write, _SIZE, REPLY, 0, key[:12], key[12] if self._counts else 0)
