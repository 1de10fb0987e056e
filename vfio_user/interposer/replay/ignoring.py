"""What a replay is asked to leave out: commands, regions, registers, interrupts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from userdev.errors import UserError, meant
from vfio_user.interposer.trace.decode import DecodedMessage
from vfio_user.interposer.trace.registers import RegisterMap, is_named
from vfio_user.interposer.trace.show import command_named, parse_offsets, parse_region
from vfio_user.wire import Command
from vfio_user.wire.constants import IrqIndex, RegionIndex

_COMMANDS = frozenset(word for known in Command for word in (known.name, known.value))
FORMS = "a command, BAR0, BAR0:0x10 or BAR0:0x10-0x1f, a register's name, MSIX or MSIX:3"


@dataclass(frozen=True)
class Ignored:
    """What may differ. Nothing of it is compared, but that a register is refused is another answer than any value."""

    commands: frozenset[str] = frozenset()
    """Names of the specification: their replies, and DMA by message."""
    places: tuple[tuple[int, int, int], ...] = ()
    """(region, first and last offset): the values of accesses that touch it."""
    registers: tuple[str, ...] = ()
    irqs: frozenset[tuple[int, int | None]] = field(default=frozenset())
    """(index, vector, or None for all of the index): interrupts; of a whole index what is said of it, too."""

    @classmethod
    def parse(cls, texts: Collection[str], registers: RegisterMap) -> Ignored:
        """What these words name, as `FORMS` says; registers by the map.

        Raises:
            UserError: one names nothing.
        """
        found: list[Ignored] = [_parse(text, registers) for text in texts]
        return cls(
            frozenset().union(*(each.commands for each in found)),
            tuple(place for each in found for place in each.places),
            tuple(name for each in found for name in each.registers),
            frozenset().union(*(each.irqs for each in found)),
        )

    def request(self, asked: DecodedMessage) -> bool:
        """Whether nothing of the answer to a request counts."""
        if asked.command in self.commands:
            return True
        of_irq = asked.command == Command.GET_IRQ_INFO.value
        return of_irq and any(
            asked.fields.get("irq") in (index, _name(index)) for index, vector in self.irqs if vector is None
        )

    def value(self, asked: DecodedMessage) -> bool:
        """Whether the value that an access reads does not count."""
        if any(is_named(asked.register, name) for name in self.registers if asked.register):
            return True
        if asked.offset is None:
            return False
        end = asked.offset + max(1, asked.size or 1)
        return any(
            asked.region == region and asked.offset <= last and first < end for region, first, last in self.places
        )

    def interrupt(self, index: int, vector: int) -> bool:
        """Whether an interrupt does not count."""
        return (index, vector) in self.irqs or (index, None) in self.irqs


def _name(index: int) -> str:
    return IrqIndex(index).name if index in IrqIndex.__members__.values() else str(index)


def _parse(text: str, registers: RegisterMap) -> Ignored:
    name, _, within = text.partition(":")
    if name.upper() in IrqIndex.__members__:
        try:
            return Ignored(irqs=frozenset({(int(IrqIndex[name.upper()]), int(within, 0) if within else None)}))
        except ValueError:
            raise UserError(f"{within!r} is no vector of {name}", hint="a number, as in MSIX:3") from None
    if within or name.upper() in RegionIndex.__members__:
        first, last = parse_offsets(within) if within else (0, (1 << 64) - 1)
        return Ignored(places=((parse_region(name), first, last),))
    if name.upper() in _COMMANDS:
        return Ignored(commands=frozenset({command_named(name)}))
    try:
        registers.check(name)
    except UserError:
        near = meant(name.upper(), [*_COMMANDS, *RegionIndex.__members__, *IrqIndex.__members__])
        raise UserError(f"{text!r} is nothing that can be ignored", hint=f"{near}{FORMS}") from None
    return Ignored(registers=(name,))
