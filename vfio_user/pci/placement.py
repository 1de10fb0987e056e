"""Where capabilities are in configuration space: at chosen places, and in the gaps between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vfio_user.pci.capabilities import Capability
from vfio_user.pci.config import CONVENTIONAL_SIZE, EXPRESS_SIZE, FIRST_CAPABILITY, FIRST_EXTENDED, Field


@dataclass(frozen=True)
class Placed:
    """A capability, and what else is to be said of it.

    offset: where it is in configuration space, on 4 bytes; None: the first gap.
    read_only: software changes nothing in it; what is written is ignored.
    callback: accesses to what is behind its header go to the device's `capability_read` and `capability_write`.
    """

    capability: Capability
    offset: int | None = None
    read_only: bool = False
    callback: bool = False

    @property
    def place(self) -> int:
        """The offset of one that has been placed."""
        assert self.offset is not None
        return self.offset

    @property
    def registers(self) -> range:
        """The bytes behind the header of one that has been placed."""
        header = 4 if self.capability.extended else 2
        return range(self.place + header, self.place + self.capability.size)

    def fields(self) -> Iterable[Field]:
        """The capability's registers, as they are here."""
        for field in self.capability.fields():
            yield field._replace(writable=0, rw1c=0) if self.read_only else field


def place_capabilities(capabilities: Iterable[Capability | Placed]) -> list[Placed]:
    """Each capability with its offset, in the order of the chains: the conventional ones, then the extended.

    Raises:
        ValueError: one does not fit, overlaps another, or is one too many of its id.
    """
    wanted = [each if isinstance(each, Placed) else Placed(each) for each in capabilities]
    _check_repeated([each.capability for each in wanted])
    conventional = [each for each in wanted if not each.capability.extended]
    extended = [each for each in wanted if each.capability.extended]
    first = _place(conventional, FIRST_CAPABILITY, CONVENTIONAL_SIZE)
    second = sorted(_place(extended, FIRST_EXTENDED, EXPRESS_SIZE), key=lambda each: each.place != FIRST_EXTENDED)
    if second and second[0].place != FIRST_EXTENDED:  # PCI Express Base, 7.9.3
        raise ValueError(f"one of the extended capabilities has to be at {FIRST_EXTENDED:#x}, where software begins")
    return first + second


def _check_repeated(capabilities: Iterable[Capability]) -> None:
    """Software takes the first of an id, and would never see the second."""
    found: dict[tuple[bool, int], Capability] = {}
    for each in capabilities:
        key = (each.extended, each.id)
        if key in found and not (each.repeatable and found[key].repeatable):
            names = dict.fromkeys((type(found[key]).__name__, type(each).__name__))
            kind = "an extended capability" if each.extended else "a capability"
            raise ValueError(f"{kind} of id {each.id:#x} is there twice: {' and '.join(names)}; keep one of them")
        found[key] = each


def _place(capabilities: Sequence[Placed], first: int, end: int) -> list[Placed]:
    taken: list[range] = []

    def is_free(offset: int, size: int) -> bool:
        return offset + size <= end and all(r.stop <= offset or offset + size <= r.start for r in taken)

    found: dict[int, Placed] = {}
    for which, each in sorted(enumerate(capabilities), key=lambda one: one[1].offset is None):
        size, name, offset = each.capability.size, type(each.capability).__name__, each.offset
        if offset is None:
            offset = next((gap for gap in range(first, end, 4) if is_free(gap, size)), None)
            if offset is None:
                raise ValueError(f"{name} of {size} bytes does not fit: configuration space ends at {end:#x}")
        elif offset % 4 or not first <= offset <= end - size:
            raise ValueError(
                f"{name} of {size} bytes cannot be at {offset:#x}: on 4 bytes, from {first:#x} to {end:#x}"
            )
        elif not is_free(offset, size):
            raise ValueError(f"{name} of {size} bytes cannot be at {offset:#x}: another capability is there")
        taken.append(range(offset, offset + size))
        found[which] = replace(each, offset=offset)
    return [found[which] for which in range(len(capabilities))]
