"""Saving: a device's state as a stream that is read in transfers of any size, and may begin while the device runs.

Memory goes first. Nobody tells who else writes it (a client that has it mapped cannot), so what was sent is remembered
by a fingerprint of each page, and pages that differ are sent again: round by round while the device runs, once more
when it has stopped. What was sent is hashed for the state's digest then, while nobody waits, and again only from the
first piece on that has changed. Storage knows itself what was written. Nothing is copied but the piece at hand, and
nobody looks into holes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from userdev.declare import values
from userdev.errors import ProtocolError
from vfio_user.migration.memory import PIECE, Content, Memory, is_zero, pieces_with_data
from vfio_user.migration.memory_digest import MemoryDigest
from vfio_user.migration.migratable import Migratable
from vfio_user.migration.stream import PLACE, ZEROS, FrameKind, FrameWriter

PAGE = 4096
"""What is sent again is sent in pages of this size."""
SCAN = 16 << 20
"""Memory looked through in one read while the device runs, so that no read takes long."""

_PAUSE = b""


class Fingerprints:
    """The hashes of what was sent of a memory, one a page, in pieces. A page without one was sent as zeros."""

    def __init__(self, digest: MemoryDigest) -> None:
        self._digest = digest
        self._pieces: dict[int, list[int]] = {}

    def note(self, at: int, piece: bytes) -> None:
        """This piece has been sent."""
        self._pieces[at] = _hashes(piece)
        self._digest.take(at, piece)

    def pieces(self, memory: Memory) -> Iterator[int]:
        """Offsets of all pieces that may not be as they were sent."""
        known = set(self._pieces)
        for at in pieces_with_data(memory):
            known.discard(at)
            yield at
        yield from sorted(known)  # these have become holes

    def changed(self, at: int, piece: bytes) -> list[int]:
        """Offsets in the piece of the pages that differ; noted as sent."""
        new = _hashes(piece)
        old = self._pieces.get(at) or _hashes(bytes(len(piece)))
        if is_zero(piece):
            self._pieces.pop(at, None)
        elif new != old:
            self._pieces[at] = new
        if new != old:
            self._digest.changed(at)
        return [index * PAGE for index, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]


def _hashes(piece: bytes) -> list[int]:
    return [hash(piece[page : page + PAGE]) for page in range(0, len(piece), PAGE)]


def _piece(content: Content, at: int, size: int) -> tuple[int, bytes]:
    """The end of the next piece, and what is in it: nothing in a hole, which is one piece as far as it can be."""
    if (data_at := content.next_data(at)) >= min(at + PIECE, size):
        end = size if data_at >= size else data_at - data_at % PIECE
        return min(end, (at // SCAN + 1) * SCAN), b""
    end = min(at + PIECE, size)
    return end, content.read(at, end - at)


class Saving:
    """One stream. `read` gives its next bytes; call `stopped` when the device has stopped, and `close` in any case.

    Raises:
        ProtocolError: EIO, from `read` and `pending`, where a storage cannot be read; the stream has no end then, and
            whoever goes on reading is told so again. So it is with whatever an author's hook raises.
    """

    def __init__(self, device: Migratable) -> None:
        self._device = device
        self._memories = list(device.memories())
        self._storages = dict(enumerate(device.storages(), len(self._memories)))
        """By section."""
        self._announced = {section: storage.size for section, storage in self._storages.items()}
        self._digests = [MemoryDigest(memory) for memory in self._memories]
        self._writer = FrameWriter()
        self._buffer = bytearray()
        self._unsent = sum(memory.size for memory in self._memories)
        self._unsent += sum(storage.size for storage in self._storages.values())
        self._running = True
        self._ended = False
        self._failure: Exception | None = None
        self._frames = self._make_frames()
        for storage in self._storages.values():
            storage.begin_saving()

    def stopped(self) -> None:
        """Give the stream an end: nothing changes any more."""
        self._running = False

    def close(self) -> None:
        """Tell storage that it is over."""
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
        return len(self._buffer) + self._unsent if self._buffer else 0

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size and not self._ended:
            if self._failure is not None:  # what makes frames has ended with it
                raise self._failure
            try:
                frame = next(self._frames, None)
            except OSError as error:
                self._failure = ProtocolError(f"storage cannot be read: {error.strerror}", errno.EIO)
                raise self._failure from error
            except Exception as error:
                self._failure = error
                raise
            if frame is None:
                self._ended = True
            elif frame is not _PAUSE:
                self._buffer += frame
            elif self._running:
                break

    def _make_frames(self) -> Iterator[bytes]:
        writer, device = self._writer, self._device
        header: dict[str, object] = {"identity": dict(device.identity())}
        header["memories"] = [(memory.name, memory.size) for memory in self._memories]
        if self._storages:
            header["storages"] = [(s.name, self._announced[section]) for section, s in self._storages.items()]
        yield writer.preamble + writer.frame(FrameKind.IDENTITY, values.encode(header))
        for section, storage in self._storages.items():
            yield from self._grown(section)
            yield from self._whole(section, storage)
        if self._running:
            yield from self._memory_while_running()
        else:
            for section, memory in enumerate(self._memories):
                yield from self._whole(section, memory, self._digests[section].take)
        state = memoryview(values.encode(dict(device.save_state())))
        for at in range(0, len(state), PIECE):
            yield writer.frame(FrameKind.STATE, bytes(state[at : at + PIECE]))
        known = {memory.name: digest.finish() for memory, digest in zip(self._memories, self._digests, strict=True)}
        end = {"frames": writer.frames, "digests": dict(device.digests(known))}
        yield writer.frame(FrameKind.END, values.encode(end))

    def _memory_while_running(self) -> Iterator[bytes]:
        sent = [Fingerprints(digest) for digest in self._digests]
        for section, memory in enumerate(self._memories):
            yield from self._whole(section, memory, sent[section].note)
        while self._running:
            before = self._writer.frames
            yield from self._round(sent)
            if self._writer.frames != before:
                yield _PAUSE  # after each round there is nothing once: else a busy device would have a reader for ever
            yield _PAUSE
        yield from self._round(sent)

    def _round(self, sent: list[Fingerprints]) -> Iterator[bytes]:
        """All that is no longer as it was sent."""
        for section, memory in enumerate(self._memories):
            yield from self._changed(section, memory, sent[section])
        yield from self._written()

    def _whole(
        self, section: int, content: Content, sent: Callable[[int, bytes], None] = lambda at, piece: None
    ) -> Iterator[bytes]:
        """All of a memory or storage, runs of zeros as such; what it gives depends on the bytes, not on the holes.

        `sent` is told of each piece that is not zeros.
        """
        at = zeros_from = looked_at = 0
        size = content.size
        while at < size:
            end, piece = _piece(content, at, size)
            self._unsent -= end - at
            if not is_zero(piece):
                if zeros_from < at:
                    yield self._zeros(section, zeros_from, at)
                yield self._writer.frame(FrameKind.MEMORY, PLACE.pack(at) + piece, section)
                sent(at, piece)
                zeros_from = end
            elif end % SCAN == 0 or end == size:
                yield self._zeros(section, zeros_from, end)
                zeros_from = end
                if looked_at >= SCAN - PIECE:
                    yield _PAUSE
                    looked_at = 0
            looked_at += len(piece)
            at = end

    def _changed(self, section: int, memory: Memory, sent: Fingerprints) -> Iterator[bytes]:
        """The pages that are no longer what was sent."""
        looked_at = 0
        for at in sent.pieces(memory):
            piece = memory.read(at, PIECE)
            for page in sent.changed(at, piece):
                content = piece[page : page + PAGE]
                yield self._writer.frame(FrameKind.MEMORY, PLACE.pack(at + page) + content, section)
            looked_at += PIECE
            if looked_at >= SCAN:
                yield _PAUSE
                looked_at = 0

    def _zeros(self, section: int, start: int, end: int) -> bytes:
        return self._writer.frame(FrameKind.ZERO, ZEROS.pack(start, end - start), section)

    def _grown(self, section: int) -> Iterator[bytes]:
        """Announce a storage that has become larger: nothing is sent that lies beyond what was announced."""
        size = self._storages[section].size
        if size > self._announced[section]:
            self._announced[section] = size
            yield self._writer.frame(FrameKind.GREW, PLACE.pack(size), section)

    def _written(self) -> Iterator[bytes]:
        """What was written to storages meanwhile, as it is now."""
        for section, storage in self._storages.items():
            yield from self._grown(section)
            for at, size in storage.take_written():
                end = at + size
                while at < end:
                    data_at = min(storage.next_data(at), end)
                    if at < data_at:
                        yield self._zeros(section, at, data_at)
                    else:
                        piece = storage.read(at, min(PIECE, end - at))
                        yield self._writer.frame(FrameKind.MEMORY, PLACE.pack(at) + piece, section)
                        data_at = at + max(1, len(piece))
                    at = data_at
