"""What a device gives to be migrated: itself, its values, its memory, and the memory of the client that it writes.

The values of a saved state are None, bool, int, float, str, bytes, and lists, tuples and dicts of them. Large memory is
not among them: it streams beside, in pieces, and while the device runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Value = Any
"""None, bool, int, float, str, bytes, list, tuple or dict of them; `values.encode` says no to anything else."""


@dataclass(frozen=True)
class Memory:
    """Memory of the device that migrates in place: `view` is writable, of bytes, and as large as the memory."""

    name: str
    view: memoryview


class ClientMemory(Protocol):
    """The client's memory as the device knows it, with the log of what the device wrote there."""

    @property
    def log_page_size(self) -> int:
        """Page size of the dirty log; 0 if none is kept."""

    def start_log(self, page_size: int) -> None:
        """Log from now on. Raises ProtocolError (EINVAL) for a page size that is none, or not that of a running log."""

    def stop_log(self) -> None:
        """Log no more, and drop what was logged."""

    def take_dirty(self, iova: int, length: int, page_size: int) -> bytes:
        """The bitmap of a range, whose pages are thereby clean; of `bitmap_size(length, page_size)` bytes.

        Raises ProtocolError: EINVAL if no log is kept; ENOENT if nothing is mapped there.
        """


class Migratable(Protocol):
    """A device, as its migration sees it. Everything is called on the session's thread."""

    @property
    def dma(self) -> ClientMemory: ...

    def identity(self) -> Mapping[str, Value]:
        """What the device is and how it is configured. A state is loaded only where all of it is equal.

        The keys "class" and "ids" say what device it is; all others are its configuration.
        """

    def memories(self) -> Sequence[Memory]:
        """Memory that is saved and loaded in place, not by `save_state`."""

    def save_state(self) -> Mapping[str, Value]:
        """Copies of everything else that makes up the state."""

    def check_state(self, state: Mapping[str, Value]) -> None:
        """Raises ProtocolError (EINVAL) with the reason if `load_state` would not take it. Changes nothing."""

    def load_state(self, state: Mapping[str, Value]) -> None:
        """Become what was saved. Called stopped, with the memory loaded already."""

    def digest(self) -> str:
        """A digest of values and memory; the same on two devices exactly if their states are."""

    def quiesce(self) -> object:
        """Stand still: no DMA and no interrupt. A session that can wait for it asks for it itself, see `Migration`."""

    def stop(self) -> None:
        """Remain still, whoever else has quiesced the device resumes it, until `start`. Quiesced before."""

    def start(self) -> None:
        """Go on."""
