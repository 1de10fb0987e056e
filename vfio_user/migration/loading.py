"""Loading: a saved state as it comes, kept beside the device until all of it is there and found good.

Each write is checked as far as it goes: a state of another device is refused with its first bytes, long before the
source has stopped. Memory is collected in a file of its size, of which zeros cost nothing. Storage alone is
written as it comes: it may be larger than memory, and is of no use to anybody but the device that is to come.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from userdev.declare import values
from userdev.declare.values import shortened, shown
from userdev.errors import ProtocolError
from vfio_user.migration.memory import PIECE, Memfd, MemfdMemory, pieces_with_data
from vfio_user.migration.migratable import Migratable
from vfio_user.migration.stream import PLACE, ZEROS, Frame, FrameKind, FrameReader, differing, refuse

log = logging.getLogger(__name__)

MAX_STORAGE = 1 << 63
"""Bytes of a storage: what a file can have (off_t)."""
_DEVICE_KEYS = ("class", "ids")


class Loading:
    """One stream. `write` takes its bytes, `apply` makes the device what they say."""

    def __init__(self, device: Migratable) -> None:
        self._device = device
        self._memories = list(device.memories())
        self._storages = dict(enumerate(device.storages(), len(self._memories)))
        """By section."""
        self._announced: dict[int, int] = {}
        """Sizes of the storages at the source, by section."""
        self._files = [Memfd("vfio-user-received", memory.size) for memory in self._memories]
        self._received = [
            MemfdMemory(memory.name, file, 0, file.size)
            for memory, file in zip(self._memories, self._files, strict=True)
        ]
        self._reader = FrameReader()
        self._state = bytearray()
        self._end: dict[str, Any] | None = None
        self._failure: ProtocolError | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            ProtocolError: (EINVAL) the state is refused, and why. It stays refused.
        """
        if self._failure is not None:
            raise self._failure
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except ProtocolError as error:
            self._failure = error
            raise
        except OSError as error:
            self._failure = refuse(f"its storage cannot be written here: {error.strerror}")
            raise self._failure from error

    def apply(self) -> None:
        """Make the device what was saved; whatever fails, it is what it was.

        Raises:
            ProtocolError: (EINVAL) the state is refused; or what the device raises while it loads.
        """
        if self._failure is not None:
            raise self._failure
        if self._end is None:
            raise refuse(f"it is cut short, after {self._reader.frames} frames")
        state = values.decode(self._state)
        if not isinstance(state, dict):
            raise refuse(f"its values are no dict, but {type(state).__name__}")
        self._understand(self._device.check_state, state)
        try:
            for storage in self._storages.values():
                storage.settle()
        except OSError as error:
            raise refuse(f"its storage cannot be written here: {error.strerror}") from error
        before = self._device.save_state()
        self._swap_memory()
        try:
            self._understand(self._device.load_state, state)
            self._check_digests(self._end["digests"])
        except BaseException:
            self._swap_memory()
            self._device.load_state(before)
            raise

    def _understand(self, take: Callable[[Mapping[str, Any]], None], state: Mapping[str, Any]) -> None:
        """Have the device look at a state, or take it; one that makes its code fail is no good state of it."""
        try:
            take(state)
        except (ProtocolError, OSError, MemoryError):
            raise
        except Exception as error:
            log.warning("a saved state makes the device fail", exc_info=error)
            raise refuse(f"the device cannot take it: {type(error).__name__}: {shortened(str(error), 200)}") from error

    def close(self) -> None:
        """Drop what has come, if it was not taken over; storage is told that it is over."""
        for received, file in zip(self._received, self._files, strict=True):
            received.view.release()
            file.close()
        for storage in self._storages.values():
            storage.end()

    def _take(self, frame: Frame) -> None:
        if (frame.kind is FrameKind.IDENTITY) is not (self._reader.frames == 0):
            raise refuse(f"frame {self._reader.frames} is {frame.kind.name}")
        match frame.kind:
            case FrameKind.IDENTITY:
                self._check_identity(_dict_of(frame.payload, identity=dict, memories=list))
            case FrameKind.MEMORY:
                (offset,) = PLACE.unpack_from(self._sized(frame, PLACE.size))
                self._put(frame.section, offset, memoryview(frame.payload)[PLACE.size :])
            case FrameKind.ZERO:
                offset, length = ZEROS.unpack_from(self._sized(frame, ZEROS.size))
                self._clear(frame.section, offset, length)
            case FrameKind.GREW:
                (size,) = PLACE.unpack_from(self._sized(frame, PLACE.size))
                if not self._announced.get(frame.section, MAX_STORAGE) < size < MAX_STORAGE:
                    raise refuse(f"section {frame.section} cannot have grown to {size} bytes")
                self._announced[frame.section] = size
            case FrameKind.STATE:
                self._state += frame.payload
                if len(self._state) > values.MAX_SIZE:
                    raise refuse(f"its values have more than {values.MAX_SIZE} bytes")
            case FrameKind.END:
                end = _dict_of(frame.payload, frames=int, digests=dict)
                if end["frames"] != self._reader.frames:
                    raise refuse(f"it has {self._reader.frames} frames and should have {end['frames']}")
                self._end = end

    def _check_digests(self, theirs: Mapping[str, Any]) -> None:
        if names := differing(theirs, self._device.digests()):
            raise refuse(f"with it the device is not what it was at the source; what differs: {', '.join(names)}")

    def _check_identity(self, header: Mapping[str, Any]) -> None:
        theirs, ours = header["identity"], dict(self._device.identity())
        for key in _DEVICE_KEYS:
            if theirs.get(key) != ours.get(key):
                raise refuse(f"it is of another device: {key} is {_there_and_here(theirs, ours, key)}")
        for key in sorted(theirs.keys() | ours.keys(), key=str):
            if key not in theirs or key not in ours or theirs[key] != ours[key]:
                differs = _there_and_here(theirs, ours, key)
                raise refuse(f"its device is configured differently: {shortened(str(key))} is {differs}")
        memories = [(memory.name, memory.size) for memory in self._memories]
        if header["memories"] != memories:
            raise refuse(f"its device has other memory: {shown(header['memories'], 200)} there and {memories} here")

        sizes = _storages_of(header)
        names = [storage.name for storage in self._storages.values()]
        if list(sizes) != names:
            raise refuse(f"other storage goes along with it: {shown(list(sizes), 200)} there and {names} here")
        for section, storage in self._storages.items():
            storage.begin_loading(sizes[storage.name])
            self._announced[section] = sizes[storage.name]

    def _sized(self, frame: Frame, size: int) -> bytes:
        if len(frame.payload) < size or frame.section >= len(self._memories) + len(self._storages):
            raise refuse(f"frame {self._reader.frames}, {frame.kind.name}, is malformed")
        return frame.payload

    def _check_range(self, section: int, offset: int, length: int) -> None:
        if section in self._storages:
            size, name = self._announced[section], f"storage {self._storages[section].name}"
        else:
            size, name = self._received[section].size, f"memory {self._memories[section].name}"
        if offset + length > size:
            raise refuse(f"it has bytes behind the end of {name}")

    def _put(self, section: int, offset: int, data: memoryview) -> None:
        self._check_range(section, offset, len(data))
        if section in self._storages:
            self._storages[section].write(offset, data)
        else:
            self._received[section].write(offset, bytes(data))

    def _clear(self, section: int, offset: int, length: int) -> None:
        self._check_range(section, offset, length)
        if section in self._storages:
            self._storages[section].clear(offset, length)
        else:
            self._received[section].clear(offset, length)

    def _swap_memory(self) -> None:
        """Exchange the device's memory with what was received; a second time, and all is as before."""
        for memory, received in zip(self._memories, self._received, strict=True):
            for at in pieces_with_data(memory, received):
                before, after = memory.read(at, PIECE), received.read(at, PIECE)
                if before != after:
                    memory.write(at, after)
                    received.write(at, before)


def _there_and_here(theirs: Mapping[str, Any], ours: Mapping[str, Any], key: str) -> str:
    there, here = (shown(each.get(key, "nothing"), 200) for each in (theirs, ours))
    return f"{there} there and {here} here"


def _storages_of(header: Mapping[str, Any]) -> dict[str, int]:
    """Sizes by name; nothing from a source that has none."""
    sizes: dict[str, int] = {}
    entries = header.get("storages", [])
    for entry in entries if isinstance(entries, list) else [entries]:
        match entry:
            case [str(name), int(size)] if 0 <= size < MAX_STORAGE and name not in sizes:
                sizes[name] = size
            case _:
                raise refuse(f"{shown(entry)} is no storage")
    return sizes


def _dict_of(payload: bytes, **types: type) -> dict[str, Any]:
    """A decoded dict with these keys, and values of these types."""
    found = values.decode(payload)
    if not isinstance(found, dict) or any(type(found.get(key)) is not kind for key, kind in types.items()):
        raise refuse("it is malformed")
    return found
