"""The matrix of disconnections: who goes, how, at which moment, and what everybody is to make of it.

`disconnecting.py` brings each cell about, `test_disconnections.py` compares; docs/disconnections.md explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple


class Moment(Enum):
    """When it happens; the value is a heading of the table."""

    VERSION = "during version"
    MAP = "between map and reply"
    IDLE = "idle"
    READ = "inside a register read"
    WRITES = "inside a burst of writes"
    BURST = "inside a posted burst"
    DMA = "DMA in flight"
    INTERRUPT = "interrupt pending"
    MIGRATING = "migrating"

    @property
    def activity(self) -> str:
        """What the guest's program does meanwhile."""
        return {
            Moment.READ: "read",
            Moment.WRITES: "burst",
            Moment.BURST: "burst",
            Moment.DMA: "dma",
            Moment.INTERRUPT: "storm",
            Moment.MIGRATING: "dma",
        }.get(self, "idle")


class Row(NamedTuple):
    """Who goes, and how."""

    who: str
    how: str


@dataclass(frozen=True)
class Expected:
    """What is to be seen.

    `guest`: "right" when it notices nothing, "ones" when its reads end in all ones, with what the device goes on to do
    by itself; or what its program could not do. `qemu` and `server`: "runs", "serves" (everything of the old client
    let go, a new one served), or how they end. `frozen`: seconds that QMP may be silent, with all vCPUs.
    """

    guest: str
    qemu: str
    server: str
    frozen: float


PAUSE, TIMEOUT, TWO_TIMEOUTS = 2.0, 4.0, 8.0
"""The tests' own pauses (0.6 s), QEMU's x-msg-timeout (2 s), and twice that; with room for a busy host."""

Column = Mapping[Moment, Expected]


def unnoticed(frozen: float = PAUSE) -> dict[Moment, Expected]:
    """Everybody goes on as if nothing had been."""
    calm = Expected("right", "runs", "serves", frozen)
    working = {Moment.DMA: "right and dma", Moment.MIGRATING: "right and dma", Moment.INTERRUPT: "right and interrupts"}
    return {moment: replace(calm, guest=working.get(moment, calm.guest)) for moment in Moment}


def device_dies(server: str) -> dict[Moment, Expected]:
    """QEMU loses its connection at once: what waits for a reply, and all else with it, waits for x-msg-timeout."""
    ones = Expected("ones", "runs", server, PAUSE)
    return {
        Moment.VERSION: Expected("no device", "runs", server, TIMEOUT),
        Moment.MAP: Expected("[Errno 14] Bad address", "runs", server, TIMEOUT),
        Moment.IDLE: ones,
        Moment.READ: replace(ones, frozen=TIMEOUT),
        Moment.WRITES: replace(ones, frozen=TIMEOUT),
        Moment.DMA: ones,
        Moment.INTERRUPT: ones,
        Moment.MIGRATING: ones,
    }


def qemu_dies(how: str) -> dict[Moment, Expected]:
    """The server lets everything go and serves the next QEMU."""
    return dict.fromkeys(Moment, Expected("gone with QEMU", how, "serves", TIMEOUT))


def closed_at_a_read() -> dict[Moment, Expected]:
    """The server's end is closed when the next read comes, and the server itself lives."""
    ones = Expected("ones", "runs", "serves", TIMEOUT)
    return {
        **{moment: ones for moment in Moment if moment is not Moment.BURST},
        Moment.VERSION: replace(ones, guest="no device"),
        Moment.MAP: replace(ones, guest="[Errno 14] Bad address"),
    }


def half_closed_at_a_read() -> dict[Moment, Expected]:
    """QEMU can send and hears nothing: each access takes x-msg-timeout, and the device works on."""
    ones = Expected("ones", "runs", "serves", TWO_TIMEOUTS)
    return {
        **closed_at_a_read(),
        Moment.IDLE: ones,
        Moment.READ: ones,
        Moment.WRITES: ones,
        Moment.DMA: replace(ones, guest="ones and dma"),
        Moment.INTERRUPT: replace(ones, guest="ones and interrupts"),
        Moment.MIGRATING: replace(ones, guest="ones and dma"),
    }


def without(column: Column, *moments: Moment) -> Column:
    """A row that has no such moments: `IMPOSSIBLE` says why."""
    return {moment: expected for moment, expected in column.items() if moment not in moments}


CELLS: Mapping[Row, Column] = {
    Row("server", "SIGKILL"): device_dies("was killed by SIGKILL"),
    Row("server", "SIGTERM"): device_dies("exited with status 0"),
    Row("server", "SIGSTOP"): unnoticed(),
    Row("server", "close"): closed_at_a_read(),
    Row("server", "half-close"): half_closed_at_a_read(),
    Row("QEMU", "SIGKILL"): qemu_dies("was killed by SIGKILL"),
    Row("QEMU", "SIGTERM"): qemu_dies("exited with status 0"),
    Row("QEMU", "SIGSTOP"): unnoticed(),
    Row("QEMU", "close"): without(unnoticed(), Moment.VERSION, Moment.MAP),
    Row("interposer", "SIGKILL"): device_dies("serves"),
    Row("interposer", "SIGTERM"): device_dies("serves"),
    Row("interposer", "SIGSTOP"): unnoticed(),
}


def posts_writes(moment: Moment) -> bool:
    """Whether QEMU may post writes to the device."""
    return moment is not Moment.WRITES


def goes_for_good(row: Row) -> bool:
    """Whether QEMU loses what it is connected to."""
    return row.who != "QEMU" and row.how != "SIGSTOP"


NOT_TRIED: Mapping[tuple[Row, Moment], str] = {
    (row, Moment.BURST): "lost-server-abort" for row in CELLS if goes_for_good(row)
}
"""What is left alone, as QEMU does not survive it, and the known issue that has the reason. `Moment.WRITES` is the
nearest that is tried there: the same burst with x-no-posted-writes=on.
"""

IMPOSSIBLE: Mapping[tuple[Row, Moment | None], str] = {
    (
        Row("QEMU", "close"),
        Moment.VERSION,
    ): "QEMU closes at device_del, and takes no command while it waits for VERSION",
    (Row("QEMU", "close"), Moment.MAP): "QEMU closes at device_del, and takes no command while it waits for a map",
    (
        Row("QEMU", "half-close"),
        None,
    ): "QEMU never ends one direction; a client that does is in tests/test_disconnections.py",
    (
        Row("interposer", "close"),
        None,
    ): "what it closes towards QEMU are the rows of the server, towards the server those of QEMU",
    (Row("interposer", "half-close"), None): "as its close",
}
