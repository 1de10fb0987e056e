"""Bad input as a table: a request, the errnos that may answer it, and that nothing is different afterwards."""

from __future__ import annotations

import errno as errnos
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from userdev.conformance.check import Group, Level
from vfio_user.client.conformance.bench import Bench
from vfio_user.wire import Command

Payload = bytes | Callable[[Bench], bytes]

SINCE_2022 = "libvfio-user efd091b of 2026-06; that of 2022, which QEMU's source carries, does otherwise"
"""A revision of checks that `tests/test_reference.py` sees the older library fail."""


@dataclass(frozen=True)
class Bad:
    """One bad request. `need` skips the check where it does not apply; `keep` is run before and checked after."""

    name: str
    what: str
    """The request in words, as the subject of "is refused"."""
    payload: Payload
    accepted: Sequence[int] = (errnos.EINVAL,)
    fds: int = 0
    """How many memfds to attach."""
    level: Level = Level.REFERENCE
    rule: str = ""
    dialects: frozenset[str] | None = None
    revision: str = ""
    """As `Check.revision`."""
    needs: tuple[str, ...] = ()
    """As `Check.needs`."""


Keep = Callable[[Bench], Callable[[], None]]
"""Sets something up and returns a function that checks that it is still so."""


def enter(
    group: Group[Bench],
    command: Command,
    rows: Sequence[Bad],
    *,
    need: Callable[[Bench], object] | None = None,
    keep: Keep | None = None,
    dialects: frozenset[str] | None = None,
    needs: tuple[str, ...] = (),
) -> None:
    """Enter the rows as checks of `group`; `dialects` holds for those rows that name none, `needs` for all."""
    for row in rows:
        names = " or ".join(errnos.errorcode[number] for number in row.accepted)
        group.add(
            row.name,
            f"{row.what} is refused with {names}",
            _run(command, row, need, keep),
            rule=row.rule,
            level=row.level,
            dialects=row.dialects or dialects,
            needs=(*needs, *row.needs),
            revision=row.revision,
        )


def _run(
    command: Command, row: Bad, need: Callable[[Bench], object] | None, keep: Keep | None
) -> Callable[[Bench], None]:
    def run(bench: Bench) -> None:
        if need is not None:
            need(bench)
        if row.fds:
            bench.need_fds()
        payload = row.payload if isinstance(row.payload, bytes) else row.payload(bench)
        before = bench.snapshot()
        still = keep(bench) if keep is not None else None
        reply = bench.ask(command, payload, [bench.memfd() for _ in range(row.fds)])
        bench.refused(reply, row.accepted, row.what)
        if still is not None:
            still()
        bench.unchanged(before, f"{row.what} was refused and still")

    return run
