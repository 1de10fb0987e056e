"""What can be seen of a device without changing it: its configuration space, and the beginning of each BAR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from vfio_user.client.errors import RemoteError
from vfio_user.fuzz.encounter import Encounter
from vfio_user.wire import Command
from vfio_user.wire.constants import RegionIndex
from vfio_user.wire.layouts import REGION_ACCESS

REACH = 0x100
"""Bytes of a BAR that are looked at: where devices have their registers."""
STORED = (1, 2, 1)
"""Values that are tried: small, as a register may have bounds."""
WIDTHS = (4, 1)
"""Of an access: a device that refuses the first is asked by bytes."""


@dataclass(frozen=True)
class Observation:
    """What each place said: by region and offset, the bytes; a place that refuses has none."""

    places: dict[tuple[int, int], bytes]

    @classmethod
    def of(cls, encounter: Encounter) -> Observation:
        """Look at a device that runs."""
        size = encounter.ground.config_size
        places = {(int(RegionIndex.CONFIG), 0): encounter.client.config_read(0, size)} if size else {}
        wanted = [
            (bar.index, at, width)
            for bar in encounter.ground.bars
            for width in (WIDTHS[0] if bar.size >= REACH else WIDTHS[1],)
            for at in range(0, min(bar.size, REACH), width)
        ]
        client = encounter.client
        pending = [client.submit(Command.REGION_READ, REGION_ACCESS.pack(at, bar, width)) for bar, at, width in wanted]
        for (bar, at, width), reply in zip(wanted, client.gather(pending), strict=True):
            places[bar, at] = b"" if reply.failed else client.read_reply(reply, width)
        return cls(places)

    def registers(self) -> tuple[tuple[int, int], ...]:
        """Region and offset of each place of a BAR that says something else than most of that BAR."""
        found: list[tuple[int, int]] = []
        for region in sorted({region for region, _ in self.places} - {int(RegionIndex.CONFIG)}):
            said = {at: data for (other, at), data in self.places.items() if other == region}
            (usual, times), *_ = Counter(said.values()).most_common(1)
            few = times > len(said) // 2 and len(said) > 8
            found += [(region, at) for at, data in said.items() if data and not (few and data == usual)]
        return tuple(found)

    def difference(self, other: Observation, *, but: frozenset[tuple[int, int]] = frozenset()) -> str:
        """What another one says differently, in words; "" where nothing is. `but`: bytes that differ by themselves."""
        for region, at in _different(self, other):
            if (region, at) not in but and (region, at) not in _STATUS:
                name = "configuration space" if region == RegionIndex.CONFIG else f"region {region}"
                return f"{name} at {at:#x} is {other.byte(region, at)}, and was {self.byte(region, at)}"
        return ""

    def bytes_that_differ(self, other: Observation) -> frozenset[tuple[int, int]]:
        """Region and offset of each byte that is different."""
        return frozenset(_different(self, other))

    def byte(self, region: int, at: int) -> str:
        """One byte, in words."""
        for (found, start), data in self.places.items():
            if found == region and start <= at < start + max(1, len(data)):
                return f"{data[at - start]:#04x}" if data else "refused"
        return "not there"


def storing(encounter: Encounter, registers: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Those registers whose lowest byte reads back as it was written; the device is to be reset behind this."""
    found = []
    client = encounter.client
    for region, at in registers:
        with suppress(RemoteError):
            kept = []
            for value in STORED:
                client.store(region, at, WIDTHS[0], value)
                kept.append(client.load(region, at, WIDTHS[0]) & 0xFF)
            if kept == [*STORED]:
                found.append((region, at))
    return tuple(found)


_STATUS = ((int(RegionIndex.CONFIG), 6), (int(RegionIndex.CONFIG), 7))
"""The device's to change."""


def _different(one: Observation, other: Observation) -> list[tuple[int, int]]:
    found = []
    for (region, start), data in one.places.items():
        now = other.places.get((region, start), b"")
        if data == now:
            continue
        if len(data) != len(now):
            found.append((region, start))
            continue
        found += [(region, start + at) for at in range(len(data)) if data[at] != now[at]]
    return found
