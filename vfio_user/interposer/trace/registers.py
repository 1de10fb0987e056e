"""Names for offsets: PCI's own for config space, the device's from a map that somebody gives (register_file.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from userdev.errors import UserError, meant
from userdev.trace import Header
from vfio_user.wire.constants import RegionIndex

_CONFIG = (
    (0x00, 2, "vendor_id"),
    (0x02, 2, "device_id"),
    (0x04, 2, "command"),
    (0x06, 2, "status"),
    (0x08, 1, "revision"),
    (0x09, 3, "class_code"),
    (0x0C, 1, "cache_line_size"),
    (0x0D, 1, "latency_timer"),
    (0x0E, 1, "header_type"),
    (0x0F, 1, "bist"),
    *((0x10 + 4 * bar, 4, f"bar{bar}") for bar in range(6)),
    (0x28, 4, "cardbus_cis"),
    (0x2C, 2, "subsystem_vendor_id"),
    (0x2E, 2, "subsystem_id"),
    (0x30, 4, "rom_base"),
    (0x34, 1, "capabilities"),
    (0x3C, 1, "interrupt_line"),
    (0x3D, 1, "interrupt_pin"),
)
"""(offset, size, name): PCI Local Bus Specification 3.0, 6.1, header type 0."""

HEADER_KEY = "registers"
"""Of a trace's header: the names that it brings along, entries as a map has them."""
_MALFORMED = (KeyError, TypeError, ValueError, ArithmeticError, AttributeError)
_LISTED = 16
"""Names that a hint lists."""
MAX_BYTES = 1 << 22
"""Of all registers of a map together: each byte has its name."""


@dataclass(frozen=True)
class NamedRegister:
    """One register, or `count` of them every `stride` bytes."""

    region: int
    offset: int
    name: str
    width: int = 4
    count: int = 1
    stride: int = 0

    @property
    def step(self) -> int:
        """Bytes from one of `count` registers to the next: `stride`, or its width where none is given."""
        return self.stride or self.width


class RegisterMap:
    """Finds the name of what an access reaches."""

    def __init__(self, registers: Iterable[NamedRegister] = ()) -> None:
        self._at: dict[tuple[int, int], str] = {}
        """(region, offset of any byte): name."""
        self._bytes = 0
        self.registers = tuple(registers)
        """Those that somebody has given."""
        self._named = {register.region for register in self.registers}
        for offset, size, name in _CONFIG:
            self._add(NamedRegister(RegionIndex.CONFIG, offset, name, size))
        for register in self.registers:
            self._add(register)

    def name(self, region: int, offset: int) -> str:
        """`queue[3]`, `queue[3]+2` within it, or nothing."""
        return self._at.get((region, offset), "")

    @property
    def plain(self) -> list[dict[str, Any]]:
        """Those that somebody has given, as a map has them."""
        return [{**asdict(register), "stride": register.step} for register in self.registers]

    def names_of(self, region: int | None) -> bool:
        """Whether somebody has given names to registers of this region."""
        return region in self._named

    def check(self, wanted: str) -> None:
        """Look for the name `wanted`; see `is_named`.

        Raises:
            UserError: no register has it.
        """
        if not any(is_named(name, wanted) for name in self._at.values()):
            names = sorted({name.partition("+")[0].partition("[")[0] for name in self._at.values()})
            near = meant(wanted.partition("+")[0].partition("[")[0], names)
            given = ", ".join(sorted({register.name for register in self.registers})[:_LISTED])
            there = f"there are, beside those of PCI: {given}" if given else "--registers names those of a device"
            raise UserError(f"there is no register {wanted!r}", hint=f"{near}{there}")

    def _add(self, register: NamedRegister) -> None:
        self._bytes += register.count * register.width
        if self._bytes > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes of registers")
        for index in range(register.count):
            name = f"{register.name}[{index}]" if register.count > 1 else register.name
            for byte in range(register.width):
                place = register.region, register.offset + index * register.step + byte
                self._at[place] = f"{name}+{byte}" if byte else name


def registers_of(header: Header) -> RegisterMap:
    """The names that a trace brings along.

    Raises:
        UserError: they are none.
    """
    try:
        return RegisterMap([_register(entry) for entry in header.about.get(HEADER_KEY) or ()])
    except _MALFORMED as error:
        raise UserError(
            f"the names of registers in the trace are none: {error}", hint="--registers gives others"
        ) from None


def is_named(name: str, wanted: str) -> bool:
    """Whether what is called `queue[3]+2` is meant by `queue`, `queue[3]`, or all of it, as it is printed."""
    element = name.partition("+")[0]
    return wanted in (name, element, element.partition("[")[0])


def _register(entry: Mapping[str, Any]) -> NamedRegister:
    region = entry["region"] if "region" in entry else entry["bar"]
    numbers = {key: int(entry[key]) for key in ("width", "count", "stride") if key in entry}
    if any(number < 1 for number in numbers.values()):
        raise ValueError(f"{entry['name']}: width, count and stride are 1 or more")
    return NamedRegister(int(region), int(entry["offset"]), str(entry["name"]), **numbers)
