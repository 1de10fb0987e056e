"""Saving: a device's state as a stream that is read in transfers of any size, and may begin while the device runs.

Memory goes first. Nobody tells who else writes it (a client that has it mapped cannot), so what was sent is remembered
by a fingerprint of each page, and pages that differ are sent again: round by round while the device runs, once more
when it has stopped. Storage knows itself what was written. Nothing is copied but the piece at hand.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator

from vfio_user.errors import ProtocolError
from vfio_user.migration import values
from vfio_user.migration.migratable import Memory, Migratable, Storage
from vfio_user.migration.stream import PIECE, PLACE, ZEROS, FrameWriter, Kind

PAGE = 4096
"""What is sent again is sent in pages of this size."""
SCAN = 16 << 20
"""Memory looked through in one read while the device runs, so that no read takes long."""

_ZERO = bytes(PIECE)
_PAUSE = b""


class Saving:
    """One stream. `read` gives its next bytes; call `stopped` when the device has stopped, and `close` in any case.

    Raises ProtocolError (EIO) from `read` and `pending` where a storage cannot be read; the stream has no end then.
    """

    def __init__(self, device: Migratable) -> None:
        self._device = device
        self._memories = list(device.memories())
        self._storages = dict(enumerate(device.storages(), len(self._memories)))
        """By section."""
        self._writer = FrameWriter()
        self._buffer = bytearray()
        self._unsent = sum(len(memory.view) for memory in self._memories)
        self._unsent += sum(storage.size for storage in self._storages.values())
        self._running = True
        self._ended = False
        self._frames = self._make_frames()
        for storage in self._storages.values():
            storage.begin_saving()

    def stopped(self) -> None:
        """From now on nothing changes any more: the stream gets an end."""
        self._running = False

    def close(self) -> None:
        for storage in self._storages.values():
            storage.end()

    def read(self, size: int) -> bytes:
        """The next bytes: `size` of them, or fewer at the end of the stream, or when there are no more for now."""
        self._fill(size)
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def pending(self) -> int:
        """Bytes that are left, as far as known; 0 at the end, or when there are none for now."""
        self._fill(PIECE)
        return len(self._buffer) and len(self._buffer) + self._unsent

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size and not self._ended:
            try:
                frame = next(self._frames, None)
            except OSError as error:
                raise ProtocolError(f"storage cannot be read: {error.strerror}", errno.EIO) from error
            if frame is None:
                self._ended = True
            elif frame is not _PAUSE:
                self._buffer += frame
            elif self._running:
                break

    def _make_frames(self) -> Iterator[bytes]:
        writer, device = self._writer, self._device
        header: dict[str, object] = {"identity": dict(device.identity())}
        header["memories"] = [(memory.name, len(memory.view)) for memory in self._memories]
        if self._storages:
            header["storages"] = [(storage.name, storage.size) for storage in self._storages.values()]
        yield writer.preamble + writer.frame(Kind.IDENTITY, values.encode(header))
        for section, storage in self._storages.items():
            yield from self._stored(section, storage)
        if self._running:
            yield from self._memory_while_running()
        else:
            for section, memory in enumerate(self._memories):
                yield from self._whole(section, memory, None)
        state = memoryview(values.encode(dict(device.save_state())))
        for at in range(0, len(state), PIECE):
            yield writer.frame(Kind.STATE, bytes(state[at : at + PIECE]))
        yield writer.frame(Kind.END, values.encode({"frames": writer.frames, "digests": dict(device.digests())}))

    def _memory_while_running(self) -> Iterator[bytes]:
        sent = [array("q", bytes(8 * -(-len(memory.view) // PAGE))) for memory in self._memories]
        for section, memory in enumerate(self._memories):
            yield from self._whole(section, memory, sent[section])
        while self._running:
            before = self._writer.frames
            yield from self._round(sent)
            if self._writer.frames != before:
                yield _PAUSE  # after each round there is nothing once: else a busy device would have a reader for ever
            yield _PAUSE
        yield from self._round(sent)

    def _round(self, sent: list[array[int]]) -> Iterator[bytes]:
        """All that is no longer as it was sent."""
        for section, memory in enumerate(self._memories):
            yield from self._changed(section, memory, sent[section])
        yield from self._written()

    def _whole(self, section: int, memory: Memory, sent: array[int] | None) -> Iterator[bytes]:
        """All of a memory, runs of zeros as such."""
        zeros_from = 0
        for at in range(0, len(memory.view), PIECE):
            piece = bytes(memory.view[at : at + PIECE])
            if sent is not None:
                for page in range(0, len(piece), PAGE):
                    sent[(at + page) // PAGE] = hash(piece[page : page + PAGE])
            self._unsent -= len(piece)
            end = at + len(piece)
            if piece == _ZERO:
                if not end % SCAN:
                    yield self._writer.frame(Kind.ZERO, ZEROS.pack(zeros_from, end - zeros_from), section)
                    yield _PAUSE
                    zeros_from = end
                continue
            if zeros_from < at:
                yield self._writer.frame(Kind.ZERO, ZEROS.pack(zeros_from, at - zeros_from), section)
            zeros_from = end
            yield self._writer.frame(Kind.MEMORY, PLACE.pack(at) + piece, section)
        if zeros_from < len(memory.view):
            yield self._writer.frame(Kind.ZERO, ZEROS.pack(zeros_from, len(memory.view) - zeros_from), section)

    def _changed(self, section: int, memory: Memory, sent: array[int]) -> Iterator[bytes]:
        """The pages that are no longer what was sent."""
        for at in range(0, len(memory.view), PIECE):
            piece = bytes(memory.view[at : at + PIECE])
            for page in range(0, len(piece), PAGE):
                content = piece[page : page + PAGE]
                fingerprint = hash(content)
                if sent[(at + page) // PAGE] != fingerprint:
                    sent[(at + page) // PAGE] = fingerprint
                    yield self._writer.frame(Kind.MEMORY, PLACE.pack(at + page) + content, section)
            if not (at + PIECE) % SCAN:
                yield _PAUSE

    def _stored(self, section: int, storage: Storage) -> Iterator[bytes]:
        """All of a storage, runs of zeros as such; what it gives depends on the content alone, not on its holes."""
        zeros_from, data_at, size = 0, 0, storage.size
        for at in range(0, size, PIECE):
            end = min(at + PIECE, size)
            if data_at < at:
                data_at = storage.next_data(at)
            piece = storage.read(at, end - at) if data_at < end else b""
            self._unsent -= end - at
            if _ZERO.startswith(piece):
                if end % SCAN and end < size:
                    continue
                yield self._writer.frame(Kind.ZERO, ZEROS.pack(zeros_from, end - zeros_from), section)
                yield _PAUSE
            else:
                if zeros_from < at:
                    yield self._writer.frame(Kind.ZERO, ZEROS.pack(zeros_from, at - zeros_from), section)
                yield self._writer.frame(Kind.MEMORY, PLACE.pack(at) + piece, section)
            zeros_from = end

    def _written(self) -> Iterator[bytes]:
        """What was written to storages meanwhile, as it is now."""
        for section, storage in self._storages.items():
            for at, size in storage.take_written():
                end = at + size
                while at < end:
                    data_at = min(storage.next_data(at), end)
                    if at < data_at:
                        yield self._writer.frame(Kind.ZERO, ZEROS.pack(at, data_at - at), section)
                    else:
                        piece = storage.read(at, min(PIECE, end - at))
                        yield self._writer.frame(Kind.MEMORY, PLACE.pack(at) + piece, section)
                        data_at = at + max(1, len(piece))
                    at = data_at
