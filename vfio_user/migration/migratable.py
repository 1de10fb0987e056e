"""What a device gives to be migrated: itself, its values, its memory, and the memory of the client that it writes.

The values of a saved state are None, bool, int, float, str, bytes, and lists, tuples and dicts of them. Large memory is
not among them: it streams beside, in pieces, and while the device runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vfio_user.migration.memory import Content, Memory
from vfio_user.wire.constants import MigrationState

Value = Any
"""None, bool, int, float, str, bytes, list, tuple or dict of them; `values.encode` says no to anything else."""


class Storage(Content, Protocol):
    """Data that a device keeps outside of memory, such as a disk's image, and that migrates as well: bytes at offsets.

    It may be larger than memory. What it holds is written at the destination as it comes, not when all of the stream
    is there; the device does not use it meanwhile. Everything raises OSError for what the storage itself refuses.
    """

    @property
    def name(self) -> str:
        """The same on both sides."""

    def begin_saving(self) -> None:
        """Remember what is written, from now on until `end`."""

    def take_written(self) -> list[tuple[int, int]]:
        """Offsets and sizes of what was written since this was called last, in order and apart."""

    def begin_loading(self, size: int) -> None:
        """Expect another's content, of this size in bytes, until `end`."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write content that came."""

    def clear(self, offset: int, size: int) -> None:
        """Write zeros that came."""

    def settle(self) -> None:
        """Return when all that came is as durable as what the device itself is told to keep."""

    def end(self) -> None:
        """End saving or loading."""


class ClientMemory(Protocol):
    """The client's memory as the device knows it, with the log of what the device wrote there."""

    @property
    def log_page_size(self) -> int:
        """Page size of the dirty log; 0 if none is kept."""

    def start_log(self, page_size: int) -> None:
        """Log from now on.

        Raises:
            ProtocolError: EINVAL, a page size that is none, or not that of a running log.
        """

    def stop_log(self) -> None:
        """Log no more, and drop what was logged."""

    def take_dirty(self, iova: int, length: int, page_size: int) -> bytearray:
        """The bitmap of a range, whose pages are thereby clean; of `bitmap_size(length, page_size)` bytes.

        Raises:
            ProtocolError: EINVAL if no log is kept; ENOENT if nothing is mapped there.
        """

    def dirty_report(self, iova: int, length: int, page_size: int) -> Callable[[], bytearray]:
        """What takes that bitmap when it is called, also of memory that is unmapped by then; raises as `take_dirty`."""


class Migratable(Protocol):
    """A device, as its migration sees it. Everything is called on the session's thread."""

    @property
    def dma(self) -> ClientMemory:
        """Client memory, for what the log says of it."""

    def identity(self) -> Mapping[str, Value]:
        """The device's kind and configuration. A state is loaded only where all of it is equal.

        The keys "class" and "ids" say what device it is; all others are its configuration.
        """

    def memories(self) -> Sequence[Memory]:
        """Memory that is saved and loaded in place, not by `save_state`."""

    def storages(self) -> Sequence[Storage]:
        """The storages that go along beside memory."""

    def save_state(self) -> Mapping[str, Value]:
        """Copies of everything else that makes up the state."""

    def check_state(self, state: Mapping[str, Value]) -> None:
        """Look whether `load_state` would take it; changes nothing.

        Raises:
            ProtocolError: EINVAL, it would not, with the reason.
        """

    def load_state(self, state: Mapping[str, Value]) -> None:
        """Become what was saved. Called stopped, with the memory loaded already."""

    def check_savable(self) -> None:
        """Look whether what `save_state` gives could be loaded; the device may be running.

        Raises:
            ProtocolError: EIO, it could not, with the reason.
        """

    def digests(self, known: Mapping[str, str] = ...) -> Mapping[str, str]:
        """A digest of each part of values and memory, by its name; the same on two devices exactly if the parts are.

        Those of memories that are `known`, by name, need not be found out.
        """

    def on_migration(self, state: MigrationState) -> None:
        """Prepare what is outside of the state for PRE_COPY, STOP, STOP_COPY or RUNNING; see
        `PciDevice.on_migration`.

        What it raises fails the arc, with its errno.
        """

    def client_reset(self) -> None:
        """Become what the device is after power-on. Stopped before."""

    def stop(self) -> None:
        """Stand still until `start`: no DMA and no interrupt.

        Raises:
            ProtocolError: the device refuses, or needs time: a session waits for that before, see `Migration`.
        """

    def start(self) -> None:
        """Go on."""
