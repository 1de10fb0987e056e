"""How a device interrupts, declared: `interrupts = MsiX(vectors=4)`, or several, `IntX() | Msi(4) | MsiX(4)`.

The client chooses among what is offered; the author calls `self.interrupts.trigger(vector)` whatever it chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, TypeVar, overload

from vfio_user.device.interrupts import Interrupts
from vfio_user.device.msix_table import ENTRY, pba_size

M = TypeVar("M", bound="Mechanism")


class Mechanism:
    """One way to interrupt, or several joined by `|`. On an instance the attribute is its `Interrupts`."""

    def part(self, kind: type[M]) -> M | None:
        """The mechanism of this kind in it."""
        return self if isinstance(self, kind) else None

    def __or__(self, other: Mechanism) -> Mechanism:
        return Mechanisms((self, other)) if isinstance(other, Mechanism) else NotImplemented

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: object, owner: type) -> Interrupts: ...
    def __get__(self, device: object | None, owner: type) -> Self | Interrupts:
        if device is None:
            return self
        # Once the device is built its own dictionary has the attribute and answers before this is asked.
        raise AttributeError(f"{owner.__name__}.interrupts is there after PciDevice.__init__")


@dataclass(frozen=True)
class IntX(Mechanism):
    """A level-triggered line. pin: 1 (INTA) to 4 (INTD)."""

    pin: int = 1

    def __post_init__(self) -> None:
        if self.pin not in (1, 2, 3, 4):
            raise ValueError(f"INTx has pin 1 (INTA) to 4 (INTD), not {self.pin!r}")


@dataclass(frozen=True)
class Msi(Mechanism):
    """Message signalled interrupts. vectors: 1, 2, 4, 8, 16 or 32; maskable: each vector can be masked.

    capability: the offset of its capability in configuration space; None: the first gap.
    """

    vectors: int = 1
    address64: bool = True
    maskable: bool = False
    capability: int | None = None

    def __post_init__(self) -> None:
        if self.vectors not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {self.vectors!r}")
        _check_places(self, "capability")


@dataclass(frozen=True)
class MsiX(Mechanism):
    """MSI-X, 1 to 2048 vectors, or 0 for none.

    bar: the BAR of the table and the pending bits; None: the first that nothing else uses. offset: of the table in it.
    capability: as of Msi.
    """

    vectors: int
    bar: int | None = None
    offset: int = 0
    capability: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.vectors, int) or not 0 <= self.vectors <= 2048:
            raise ValueError(f"vectors: MSI-X has up to 2048, not {self.vectors!r}")
        if not isinstance(self.offset, int) or self.offset % 8:
            raise ValueError(f"offset: the table of MSI-X lies on 8 bytes, not at {self.offset!r}")
        _check_places(self, "bar", "capability")

    def part(self, kind: type[M]) -> M | None:
        """The member of that kind; None for one of 0 vectors, which is none."""
        return super().part(kind) if self.vectors else None

    @property
    def table_size(self) -> int:
        """Bytes of the table: 16 for each vector."""
        return ENTRY * self.vectors

    @property
    def pba_offset(self) -> int:
        """Half a page after the table's start, or behind it, as QEMU's msix_init_exclusive_bar lays it out."""
        return self.offset + max(0x800, self.table_size)

    @property
    def pba_size(self) -> int:
        """Bytes of the pending bit array: a bit for each vector, in whole words of 8 bytes."""
        return pba_size(self.vectors)


@dataclass(frozen=True)
class Mechanisms(Mechanism):
    """Several together; the last of a kind counts."""

    members: tuple[Mechanism, ...] = ()

    def part(self, kind: type[M]) -> M | None:
        """The last member of that kind; None where there is none."""
        return next((found for member in reversed(self.members) if (found := member.part(kind))), None)


def _check_places(mechanism: Mechanism, *names: str) -> None:
    for name in names:
        if not isinstance(place := getattr(mechanism, name), int | None):
            raise TypeError(f"{name} is {place!r}: it has to be an int, or None for the first that is free")


NO_INTERRUPTS = Mechanisms()
