"""Each check against servers that do everything wrong in one way: one that none of them fails could not fail at all.

`test_conformance_clauses` has a server for what a check requires, and finds it by its words; here are those whose
requirement is that of many, as of all that are refused.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.clauses.table import CLAUSES
from tests.conformance_target import Fault, InProcess, Proceed, Reply, with_fault
from tests.conftest import PATIENCE
from tests.everything_device import Everything
from userdev import conformance
from userdev.errors import ProtocolError
from vfio_user.client import Client
from vfio_user.client.conformance import CATALOGUE, Bench, Level, Outcome, run
from vfio_user.device import PciDevice
from vfio_user.server.session import Session
from vfio_user.wire import COMMAND, CURRENT, DRAFT_V6, NO_REPLY, REGION_MIGRATION, Command, Dialect, Message
from vfio_user.wire.constants import IrqSetFlags
from vfio_user.wire.layouts import DEVICE_INFO, IRQ_SET, VERSION


class WrongErrno(Fault):
    """Refuses what it has to, and says why wrongly."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError as error:
            raise ProtocolError(str(error), errno.EXDEV) from error


class AcceptsAll(Fault):
    """Refuses nothing."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            return message.payload, []


class AcceptsAllOfInterrupts(AcceptsAll):
    """And refuses what is no question of its interrupt types."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        asks = command is Command.GET_IRQ_INFO
        return super().command(session, command, message, proceed) if asks else proceed(command, message)


class RefusesAll(Fault):
    """Serves nothing but its description."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command in (Command.GET_INFO, Command.GET_REGION_INFO, Command.GET_IRQ_INFO):
            return proceed(command, message)
        raise ProtocolError("no", errno.EIO)


class AnswersAnother(Fault):
    """Every answer but the first has the id of another request: who gets no good VERSION could check nothing."""

    def sent(self, message: Message) -> list[Message]:
        return [message] if message.command == VERSION_NUMBER else [replace(message, id=message.id ^ 0x100)]


VERSION_NUMBER = 1
GOOD_VERSION = VERSION.pack(0, 0, tail=b'{"capabilities":{}}\0')


class KeepsTheTwin(Fault):
    """The twin socket that was agreed on does not come."""

    def sent(self, message: Message) -> list[Message]:
        return [replace(message, fds=[])]


class RefusesTheUnusual(Session):
    """What QEMU says is taken, and nothing else."""

    def _negotiate(self) -> bool:
        take = self.connection.next

        def taken() -> Message | None:
            first = take()
            unusual = first is not None and (b'"max_' not in first.payload or b"1024}" in first.payload)
            if first is not None and (first.flags & NO_REPLY or unusual):
                first.flags, first.payload = COMMAND, b""
            return first

        self.connection.next = taken  # type: ignore[method-assign]
        return super()._negotiate()


class AgreesToAnything(Session):
    """Whatever comes first is as good as VERSION."""

    def _negotiate(self) -> bool:
        take = self.connection.next

        def taken() -> Message | None:
            first = take()
            if first is not None:
                self.connection.next = take  # type: ignore[method-assign]
                first.command, first.payload, first.flags = VERSION_NUMBER, GOOD_VERSION, 0
            return first

        self.connection.next = taken  # type: ignore[method-assign]
        return super()._negotiate()


class TakesAnyHeader(Session):
    """What is no message at all is passed over, and what is no command is done."""

    def _negotiate(self) -> bool:
        framer = self.connection.framer

        def taken() -> Message | None:
            while True:
                try:
                    return framer.next()
                except ProtocolError:
                    if framer.pending >= 16:
                        framer.start += 16

        self.connection.next = taken  # type: ignore[method-assign]
        return super()._negotiate()

    def _command(self, message: Message) -> Command:
        try:
            return super()._command(message)
        except ProtocolError:
            message.payload = DEVICE_INFO.pack(16, 0, 0, 0)
            return Command.GET_INFO


class ServesOneClient(Session):
    """Nobody is served after the first, until there is a new server."""

    served: set[int] = set()

    def run(self) -> None:
        if id(self.function) in self.served:
            self.connection.close()
            return
        self.served.add(id(self.function))
        super().run()


WRONG: tuple[tuple[type[Session], frozenset[str] | None], ...] = (
    (with_fault(WrongErrno()), None),
    (with_fault(RefusesAll()), None),
    (AgreesToAnything, None),
    (TakesAnyHeader, frozenset({"header/oversize"})),
    (with_fault(AnswersAnother()), frozenset({"header/id-echoed"})),
    (with_fault(KeepsTheTwin()), frozenset({"version/twin-socket"})),
    (
        RefusesTheUnusual,
        frozenset(f"version/{name}" for name in ("no-json", "empty-object", "unknown-capability", "unknown-member"))
        | {"version/no-reply-flag", "version/smaller-pages", "version/fds-most"},
    ),
    (ServesOneClient, frozenset({"session/many-clients"})),
)
"""Servers, and what is tried with them: all that those before them have left, or each of what they are for by itself
where they spoil everything.
"""

FOUND_BY_CLAUSES = {clause.id for clause in CLAUSES}
NEEDS_THE_PROCESS = {
    "session/fds-are-closed",
    "session/nothing-is-left",
    "session/fds-on-rubbish",
    "session/memory",
}
"""Skipped here, as `tests/test_conformance.py` has them."""


def _device() -> PciDevice:
    return Everything()


WENT_WRONG = (Outcome.FAIL, Outcome.NOT_JUDGED)
MUTE = "the server begins no conversation"
"""How the detail of a check begins that was not tried, as nobody could speak to the server."""


@pytest.mark.long
@pytest.mark.parametrize("dialect", [CURRENT, DRAFT_V6, REGION_MIGRATION], ids=lambda dialect: dialect.name)
def test_no_check_passes_whatever_a_server_does(tmp_path: Path, dialect: Dialect) -> None:
    """Each server is tried with what those before it have left."""
    everything = (None,) if dialect is CURRENT else ()  # what every dialect has is tried with one of them
    left = [check for check in CATALOGUE if check.dialects in everything or dialect.name in (check.dialects or ())]
    left = [check for check in left if check.id not in FOUND_BY_CLAUSES]
    for number, (session, meant_for) in enumerate(WRONG):
        place = tmp_path / str(number)
        place.mkdir()
        tried = [check for check in left if meant_for is None or check.id in meant_for]
        for some in [[check] for check in tried] if meant_for else [tried]:
            with InProcess(place, _device, dialect, session=session) as target:
                results = list(run(some, target, dialect, timeout=0.25))
            assert not any(result.detail.startswith(MUTE) for result in results), session
            failed = {result.check.id for result in results if result.outcome in WENT_WRONG}
            left = [check for check in left if check.id not in failed]
    assert {check.id for check in left} == set()


def test_which_errno_a_refusal_has_is_no_must(tmp_path: Path) -> None:
    """No specification says it: only the reference's rules ask for one."""
    musts = [check for check in CATALOGUE if check.level is Level.MUST and check.group != "device_dma"]
    musts = [check for check in musts if check.id not in NEEDS_THE_PROCESS]
    with InProcess(tmp_path, _device, session=with_fault(WrongErrno())) as target:
        found = [result for result in run(musts, target, CURRENT, timeout=PATIENCE) if result.outcome is Outcome.FAIL]
    assert found == []


# what the bench's helpers look at, each with a server that does just that wrong


class StaysOpen(Session):
    """Refuses what is no VERSION as it has to, and keeps the connection."""

    def _negotiate(self) -> bool:
        agreed = super()._negotiate()
        while not agreed and self.connection.receive():
            pass
        return agreed


class TriggersBefore(Fault):
    """A request that is refused has fired the vector."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if command is Command.SET_IRQS:
                session.function.interrupts.trigger(0)
            raise


class FiresTheWholeIndex(Fault):
    """A range or booleans of vectors are all of them, and a whole index is what it is."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.SET_IRQS and len(message.payload) >= IRQ_SET.size:
            asked = IRQ_SET.unpack(message.payload)
            flags, irqs = IrqSetFlags(asked.flags), session.function.irqs
            fires = flags in (IrqSetFlags.TRIGGER | data for data in (IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL))
            if fires and asked.nr_vectors and asked.irq < len(irqs) and asked.start + asked.nr_vectors <= 2:
                whole = IrqSetFlags.TRIGGER | IrqSetFlags.DATA_NONE
                message.payload = IRQ_SET.pack(IRQ_SET.size, whole, asked.irq, 0, irqs[asked.irq].count)
        return proceed(command, message)


class UnmapsBefore(Fault):
    """A request that is refused has taken what is mapped away."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if command in (Command.DMA_MAP, Command.DMA_UNMAP) and len(session.function.dma):
                session.function.dma.unmap_all()
            raise


def refusals(group: str) -> set[str]:
    """The checks of a group that say of a request that it is refused."""
    return {check.id for check in CATALOGUE if check.group == group and " is refused with " in check.title}


TITLES = {check.id: check.title for check in CATALOGUE}
OF_CURRENT = {check.id for check in CATALOGUE if check.dialects is None or CURRENT.name in check.dialects}
HELPERS: dict[str, tuple[type[Session], str, set[str], str]] = {
    "another errno": (with_fault(WrongErrno()), "irq_info", refusals("irq_info"), "failed with EXDEV"),
    "no refusal": (
        with_fault(AcceptsAllOfInterrupts()),
        "irq_info",
        refusals("irq_info"),
        "succeeded instead of failing",
    ),
    "a connection that stays": (
        StaysOpen,
        "version",
        {id for id in refusals("version") if "ends the connection" in TITLES[id]}
        | {"version/major-mismatch", "version/short-payload", "version/must-be-first", "version/reply-first"},
        "stays open",
    ),
    "an interrupt": (with_fault(TriggersBefore()), "set_irqs", refusals("set_irqs"), "fired an interrupt"),
    "other vectors": (
        with_fault(FiresTheWholeIndex()),
        "set_irqs",
        {"set_irqs/trigger-range", "set_irqs/trigger-bool"},
        "fire vector 1 alone",
    ),
    "memory that is gone": (
        with_fault(UnmapsBefore()),
        "dma_unmap",
        refusals("dma_unmap") - {"dma_unmap/around"},
        "unmapping the range",
    ),
}


class Patient(Bench):
    """Waits for answers as long as a busy machine takes, and just for what is not to come no longer than its timeout.

    Else a check fails of an answer that came late, and not of what it is for.
    """

    def stranger(self) -> Client:
        client = super().stranger()
        client.channel.timeout = 60.0
        return client


@for_each(HELPERS)
def test_what_is_wrong_beside_a_refusal_is_noticed_and_named(name: str, tmp_path: Path) -> None:
    session, group, expected, said = HELPERS[name]
    checks = [check for check in CATALOGUE if check.group == group and check.id in OF_CURRENT]
    with InProcess(tmp_path, _device, CURRENT, session=session) as target:
        bench = partial(Patient, target, CURRENT, timeout=0.25)
        results = list(conformance.run(checks, target, bench, dialect=CURRENT.name, settle=target.settle))
    failed = {result.check.id: result.detail for result in results if result.outcome is Outcome.FAIL}
    assert {id for id, detail in failed.items() if said in detail} == expected & OF_CURRENT
