"""Guest memory in slots with guard areas between them: what the device was not given, it must not have written."""

from __future__ import annotations

from userdev.fuzz.finds import Found
from vfio_user.client.memory import GuestMemory
from vfio_user.fuzz.oracles import MEMORY

SLOTS = 4
SLOT = 0x4000
GUARD = 0x2000
FILLING = b"\xa5"
BASE = 0x10_0000
"""IOVA of the first slot; there is nothing between them, so that neighbours touch."""


def offset_of(slot: int) -> int:
    """Where in the memory's file a slot begins."""
    return GUARD + slot * (SLOT + GUARD)


def iova_of(slot: int) -> int:
    """Where the device finds a slot."""
    return BASE + slot * SLOT


class GuardedMemory:
    """The memory, and what it has to be as long as nobody was given it for writing."""

    def __init__(self) -> None:
        self.memory = GuestMemory(offset_of(SLOTS), name="fuzz-ram")
        self.private = GuestMemory(offset_of(SLOTS), shared=False)
        """The same without a descriptor: the server has to ask for every byte."""
        self._expected: dict[bool, bytearray] = {}
        for shared, memory in ((True, self.memory), (False, self.private)):
            memory.view[:] = FILLING * len(memory)
            self._expected[shared] = bytearray(memory.view)
        self._given: set[tuple[bool, int, int]] = set()

    def give(self, shared: bool, offset: int, size: int) -> None:
        """Say that the device may write there from now on."""
        self._given.add((shared, offset, size))

    def take(self, shared: bool, offset: int, size: int) -> None:
        """Say that it may no longer: what is there now is what stays."""
        self._given.discard((shared, offset, size))
        memory = self.memory if shared else self.private
        self._expected[shared][offset : offset + size] = memory.view[offset : offset + size]

    def check(self) -> None:
        """Compare all that the device was not given.

        Raises:
            Found: it was written to.
        """
        for shared, memory in ((True, self.memory), (False, self.private)):
            expected = self._expected[shared]
            for kind, offset, size in self._given:
                if kind == shared:
                    expected[offset : offset + size] = memory.view[offset : offset + size]
            if memory.view != expected:
                at = next(at for at, byte in enumerate(memory.view) if byte != expected[at])
                raise Found(
                    MEMORY, "written outside", f"memory at {at:#x} was written, which no map gave to the device"
                )

    def close(self) -> None:
        """Give it back."""
        self.memory.close()
        self.private.close()
