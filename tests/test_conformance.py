"""The catalogue of checks: our servers pass it, and a server with one fault fails just the checks for that fault."""

from __future__ import annotations

import errno
import json
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from tests.conformance_target import Fault, InProcess, Proceed, Reply, failed, skipped, with_fault
from tests.everything_device import Everything
from userdev.errors import ProtocolError
from userdev.layout import Layout
from userdev_servers.edu import Edu
from vfio_user.cli.conformance import command as conformance
from vfio_user.client.conformance import CATALOGUE, Level, Outcome
from vfio_user.client.conformance.bench import Bench
from vfio_user.server import Offer
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, DIALECTS, DRAFT_V6, NO_REPLY, REGION_MIGRATION, Command, Message, decode_version
from vfio_user.wire.constants import IrqSetFlags, MigrationState
from vfio_user.wire.layouts import (
    DEVICE_INFO,
    DIRTY_RANGE_V6,
    IRQ_INFO,
    IRQ_SET,
    REGION_ACCESS,
    REGION_INFO,
    VERSION,
)

NEEDS_THE_PROCESS = {
    "session/fds-are-closed",
    "session/nothing-is-left",
    "session/fds-on-rubbish",
    "session/memory",
}

NEEDS_EDU = {check.id for check in CATALOGUE if check.group == "device_dma"}
DEVICE_MIGRATES = {"feature/none-without-migration"}
HAS_A_PIN = {"config/no-interrupt-status"}
ALWAYS_SKIPPED = NEEDS_THE_PROCESS | NEEDS_EDU | DEVICE_MIGRATES | HAS_A_PIN
NEEDS_MAPPABLE = {"region_info/areas-are-pages", "region_info/descriptor-maps", "version/twin-socket"}
"""What only comes with a descriptor."""
NEEDS_DESCRIPTORS = {
    *(f"dirty_logging/{check}" for check in ("clean-at-first", "off", "report-argsz", "report-length-0")),
    *(f"dirty_logging/report-{check}" for check in ("page-size-0", "page-size-odd", "too-short", "unmapped")),
    "dirty_logging/unmap-with-bitmap",
    *("dirty_pages/clean-at-first", "dirty_pages/off", "reset/keeps-irqs", "session/irqs-are-dropped"),
    *(f"dma_map/{check}" for check in ("fd-size-0", "fd-that-cannot-map", "overlap-other-fd", "surplus-fds")),
    *("dma_map/table-one-fd-for-two", "dma_map/two-modes"),
    *(
        f"set_irqs/{check}"
        for check in ("all-vectors", "behind-others", "detach", "detach-range", "disable", "eventfd-range", "replace")
    ),
    *(f"set_irqs/fds-{check}" for check in ("too-few", "too-many", "with-bool", "with-none")),
    *(f"set_irqs/{check}" for check in ("replace", "trigger", "trigger-bool", "trigger-range")),
}


def test_ids_are_unique_and_every_check_has_a_title_and_a_rule() -> None:
    ids = [check.id for check in CATALOGUE]
    assert len(ids) == len(set(ids))
    assert all(check.title and check.rule for check in CATALOGUE)
    assert {check.level for check in CATALOGUE} == {Level.MUST, Level.REFERENCE}


@pytest.mark.parametrize("dialect", [CURRENT, DRAFT_V6, REGION_MIGRATION], ids=lambda d: d.name)
def test_a_device_with_everything_passes_in_every_dialect(tmp_path: Path, dialect) -> None:  # type: ignore[no-untyped-def]
    with InProcess(tmp_path, Everything, dialect) as target:
        results = target.results(slow=dialect is CURRENT)
    assert failed(results) == {}
    assert skipped(results) <= ALWAYS_SKIPPED


@for_each(DIALECTS.values(), ids=DIALECTS)
def test_edu_passes_in_every_dialect_and_does_dma_by_message(dialect, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with InProcess(tmp_path, Edu, dialect) as target:
        results = target.results("info", "device_dma", "dma_map", "set_irqs", "reset")
    assert failed(results) == {}
    assert skipped(results) == set()


def test_a_device_whose_dma_goes_by_message_passes(tmp_path: Path) -> None:
    class ByMessage(Everything):
        dma_by_message = True

    with InProcess(tmp_path, ByMessage) as target:
        assert failed(target.results("dma_map", "dma_unmap", "device_dma", "session")) == {}


@pytest.mark.parametrize("dialect", [CURRENT, DRAFT_V6], ids=lambda d: d.name)
def test_a_device_passes_over_a_transport_without_descriptors(tmp_path: Path, dialect) -> None:  # type: ignore[no-untyped-def]
    there = {check.id for check in CATALOGUE if check.dialects is None or dialect.name in check.dialects}
    needs = NEEDS_DESCRIPTORS & there
    with InProcess(tmp_path, Everything, dialect, tcp=True) as target:
        results = target.results()
    assert failed(results) == {}
    assert skipped(results) - ALWAYS_SKIPPED == needs | NEEDS_MAPPABLE & there
    with InProcess(tmp_path, Edu, dialect, tcp=True) as target:
        results = target.results("device_dma")
    assert failed(results) == {}
    assert skipped(results) == {"device_dma/by-mapping", "device_dma/logged"}
    with InProcess(tmp_path, Everything, dialect, offer=Offer(max_msg_fds=0)) as target:
        groups = ("set_irqs", "dma_map", "dirty_logging", "dirty_pages", "reset")
        results = target.results(*groups)
    assert failed(results) == {}
    assert skipped(results) == {id for id in needs if id.startswith(groups)}


def test_a_server_is_alive_though_a_check_has_a_client_left(tmp_path: Path) -> None:
    """Whoever serves one at a time would turn the next away."""
    with InProcess(tmp_path, Everything, CURRENT) as target, closing(Bench(target, CURRENT, timeout=5)) as bench:
        assert bench.client.device_info()
        bench.alive()
        assert len(bench.clients) == 2


REPLYS_OWN: dict[Command, tuple[Layout[Any], tuple[str, ...]]] = {
    Command.GET_INFO: (DEVICE_INFO, ("flags", "num_regions", "num_irqs")),
    Command.GET_REGION_INFO: (REGION_INFO, ("flags", "cap_offset", "size", "offset")),
    Command.GET_IRQ_INFO: (IRQ_INFO, ("flags", "nr_vectors")),
    Command.DIRTY_PAGES: (DIRTY_RANGE_V6, ("data",)),
}
"""What a request leaves for its reply to say, or for nobody."""


class LooksAtEverything(Fault):
    """None: what a request is given for nobody may be refused."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        layout, names = REPLYS_OWN.get(command, (DEVICE_INFO, ()))
        said = message.payload[-layout.size :]
        if len(said) == layout.size and any(getattr(layout.unpack(said), name) for name in names):
            raise ProtocolError(f"{command} has {', '.join(names)}", errno.E2BIG)
        return proceed(command, message)


class SaysWhatItIsInAnyState(with_fault(LooksAtEverything())):  # type: ignore[misc]
    def _command(self, message: Message) -> Command:
        command = self.dialect.command(message.command)
        return command if command is Command.GET_INFO else super()._command(message)


@for_each([CURRENT, DRAFT_V6], ids=lambda d: d.name)
def test_a_server_passes_that_takes_no_request_with_what_replies_say(dialect, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with InProcess(tmp_path, Everything, dialect, session=SaysWhatItIsInAnyState) as target:
        results = target.results("info", "region_info", "irq_info", "migration", "migration_region", "dirty_pages")
    assert failed(results) == {}


def test_edu_passes_as_a_program(tmp_path: Path) -> None:
    """What needs the server's process to be seen is in these runs."""
    command = f"{sys.executable} -m vfio_user serve edu --socket-path {{socket}}"
    junit, found = tmp_path / "junit.xml", tmp_path / "found.json"
    arguments = ["--server-command", command, "--junit", str(junit), "--json", str(found)]
    only = [argument for group in ("version", "info", "device_dma", "session") for argument in ("--only", group)]
    result = CliRunner().invoke(conformance, [*arguments, *only])
    assert result.exception is None, result.output

    checks = json.loads(found.read_text())["checks"]
    assert {check["outcome"] for check in checks} == {"pass"}
    cases = ElementTree.parse(junit).getroot().iter("testcase")
    assert len(list(cases)) == len(checks)


# a server with one fault


class ForgetsUnmapErrors(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if command is Command.DMA_UNMAP:
                return message.payload[:24], []
            raise


class TakesAnyArgsz(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.GET_IRQ_INFO and len(message.payload) == 16:
            message.payload = (16).to_bytes(4, "little") + message.payload[4:]
        return proceed(command, message)


class Both(Fault):
    """Two faults of one server, which is tried whole: each of both must leave all other checks as they are."""

    def __init__(self, one: Fault, other: Fault) -> None:
        self._one, self._other = one, other

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        return self._one.command(
            session, command, message, lambda command, message: self._other.command(session, command, message, proceed)
        )


class AnswersPostedWrites(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if message.flags & NO_REPLY and command is Command.REGION_WRITE:
            session.connection.send(message.reply())
        return proceed(command, message)


class WritesBeforeItChecks(Fault):
    """A write over the end is refused, and its beginning done."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if command is Command.REGION_WRITE and len(message.payload) > REGION_ACCESS.size:
                session.function.config.set(0x3C, 1, message.payload[REGION_ACCESS.size])
            raise


class KeepsMaps(Fault):
    """What one client maps is still there for the next."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        session.function.dma.unmap_all = lambda: None  # type: ignore[method-assign]
        return proceed(command, message)


class AnswersOneMinorTooHigh(Fault):
    def sent(self, message: Message) -> list[Message]:
        if message.command == 1 and not message.failed and VERSION.unpack(message.payload).minor == 1:
            return [replace(message, payload=VERSION.pack(0, 2, tail=message.payload[4:]))]
        return [message]


class EchoesTheWrongCommand(Fault):
    def sent(self, message: Message) -> list[Message]:
        return [replace(message, command=message.command ^ 0x100)]


class ShortReads(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is Command.REGION_READ and len(payload) > 16 + 64:
            payload = payload[:-1]
        return payload, fds


class FiresFromTheFirst(Fault):
    """TRIGGER begins at vector 0 whatever its start."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.SET_IRQS:
            argsz, flags, irq, start, count = IRQ_SET.unpack(message.payload)
            if flags == IrqSetFlags.TRIGGER | IrqSetFlags.DATA_NONE and count == 1 and start == 1:
                message.payload = IRQ_SET.pack(argsz, flags, irq, 0, start + count)
        return proceed(command, message)


class ForgetsInterruptsOnReset(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DEVICE_RESET:
            session.function.interrupts.release()
        return proceed(command, message)


class EntersAnyState(Fault):
    """A migration state that does not exist is taken for STOP."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        state = int.from_bytes(message.payload[8:12], "little")
        if command is Command.DEVICE_FEATURE and message.payload[4:8] == b"\2\0\2\0" and state in (0, 8):
            message.payload = message.payload[:8] + (1).to_bytes(4, "little") + message.payload[12:]
        return proceed(command, message)


class RefusesTheTrigger(Fault):
    """SET_IRQS takes eventfds, and no DATA_NONE: what nearly every rule about interrupts is tried by."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.SET_IRQS and message.payload[4:8] == (1 << 0 | 1 << 5).to_bytes(4, "little"):
            raise ProtocolError("no DATA_NONE here", errno.EINVAL)
        return proceed(command, message)


class DoesNotTrigger(Fault):
    """The same without a word."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.SET_IRQS and message.payload[4:8] == (1 << 0 | 1 << 5).to_bytes(4, "little"):
            return b"", []
        return proceed(command, message)


@dataclass
class CannotReach(Fault):
    """A migration state is refused, from wherever the device comes."""

    state: int

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        wanted = int.from_bytes(message.payload[8:12], "little")
        if command is Command.DEVICE_FEATURE and message.payload[4:8] == b"\2\0\2\0" and wanted == self.state:
            raise ProtocolError("no way there", errno.EINVAL)
        return proceed(command, message)


class TakesNoMemory(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DMA_MAP and len(message.payload) == 32:
            raise ProtocolError("no memory here", errno.ENOMEM)
        return proceed(command, message)


class DescribesNoRom(Fault):
    """One region is not described: a refusal that every comparison of before and after would meet."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.GET_REGION_INFO and message.payload[8:12] == (6).to_bytes(4, "little"):
            raise ProtocolError("no ROM here", errno.EINVAL)
        return proceed(command, message)


class DescribesNoRequests(Fault):
    """The same of an interrupt type."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.GET_IRQ_INFO and message.payload[8:12] == (4).to_bytes(4, "little"):
            raise ProtocolError("no REQ here", errno.EINVAL)
        return proceed(command, message)


class TakesVersionAgain(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is not Command.VERSION or decode_version(session.dialect, message.payload).minor:
            return proceed(command, message)
        return message.payload, []


class HasNoSuchCommand(Fault):
    """It does not know one, and says so with the errno of that."""

    def __init__(self, unknown: Command) -> None:
        self.state = self.unknown = unknown

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is self.unknown:
            raise ProtocolError("there is no such command", errno.ENOTSUP)
        return proceed(command, message)


class RefusesWhatHasNoUse(Fault):
    """Of a request for a region's description only argsz and the index have one."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.GET_REGION_INFO and len(message.payload) == REGION_INFO.size:
            _, flags, _, *rest = REGION_INFO.unpack(message.payload)
            if flags or any(rest):
                raise ProtocolError("what is that for?", errno.EINVAL)
        return proceed(command, message)


class RefusesWhatComesFirstWrongly(Fault):
    """Another command in the place of VERSION is refused, and the errno says something else."""

    def sent(self, message: Message) -> list[Message]:
        return [replace(message, errno=errno.EXDEV) if message.failed and message.command == FIRST else message]


FIRST = CURRENT.number(Command.GET_INFO)


STATES = ("migration", "mig_data")
ONE_REFUSAL: tuple[tuple[Fault, tuple[str, ...], set[str]], ...] = (
    (RefusesTheTrigger(), ("set_irqs", "reset"), {"set_irqs/trigger"}),
    (DoesNotTrigger(), ("set_irqs", "reset"), {"set_irqs/trigger"}),
    (CannotReach(MigrationState.RUNNING), STATES, {"migration/running-to-running"}),
    (CannotReach(MigrationState.STOP), STATES, {"migration/running-to-stop"}),
    (CannotReach(MigrationState.STOP_COPY), STATES, {"migration/running-to-stop-copy"}),
    (CannotReach(MigrationState.RESUMING), STATES, {"migration/running-to-resuming"}),
    (CannotReach(MigrationState.PRE_COPY), STATES, {"migration/running-to-pre-copy"}),
    (TakesNoMemory(), ("dma_map", "dma_unmap", "dirty_logging", "reset"), {"dma_map/map-and-unmap"}),
    (DescribesNoRom(), ("region_info", "region_read", "io_fds"), {"region_info/describes-every-region"}),
    (
        HasNoSuchCommand(Command.DEVICE_FEATURE),
        ("feature", "migration", "mig_data", "dirty_logging"),
        {"feature/none-without-migration"},
    ),
    (HasNoSuchCommand(Command.GET_REGION_IO_FDS), ("io_fds",), {"io_fds/two-steps"}),
    (DescribesNoRequests(), ("irq_info", "set_irqs"), {"irq_info/describes-every-type"}),
)


@for_each_row(ONE_REFUSAL, ids=[f"{type(fault).__name__}{getattr(fault, 'state', '')}" for fault, _, _ in ONE_REFUSAL])
def test_one_refusal_is_one_finding_and_what_needs_it_is_not_judged(
    fault: Fault, groups: tuple[str, ...], expected: set[str], tmp_path: Path
) -> None:
    with InProcess(tmp_path, Everything, session=with_fault(fault)) as target:
        results = target.results(*groups)
    assert set(failed(results)) == expected
    unjudged = [result for result in results if result.outcome is Outcome.NOT_JUDGED]
    assert unjudged
    for result in unjudged:
        assert any(id in result.detail for id in expected), result


class RefusesConfigSpace(Fault):
    """Its header cannot be read, at which every comparison of before and after would fail."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.REGION_READ and message.payload[8:12] == (7).to_bytes(4, "little"):
            raise ProtocolError("no config space here", errno.EINVAL)
        return proceed(command, message)


def test_what_cannot_be_compared_is_a_fact_and_no_failure_of_whatever_compares(tmp_path: Path) -> None:
    with InProcess(tmp_path, Everything, session=with_fault(RefusesConfigSpace())) as target:
        assert not failed(target.results("device_info", "irq_info"))


def test_what_a_check_needs_is_a_check_before_it() -> None:
    """Whoever fails for a need is told of a check that has been run."""
    known: list[str] = []
    for check in CATALOGUE:
        assert set(check.needs) <= set(known), check.id
        known.append(check.id)


BAD_WRITES = {
    f"region_write/{name}"
    for name in (
        "at-the-end",
        "count-huge",
        "data-missing",
        "data-too-long",
        "over-the-end",
        "region-behind-last",
        "region-huge",
        "region-of-size-0",
        "wraps",
    )
}

FAULTS: tuple[tuple[Fault, tuple[str, ...], set[str]], ...] = (
    (
        Both(TakesAnyArgsz(), ForgetsUnmapErrors()),
        (),
        {"irq_info/argsz-too-small", "header/no-payload", "dma_map/unmap-unknown"},
    ),
    (AnswersPostedWrites(), ("order", "header"), {"order/posted-write-is-silent", "order/posted-write-comes-first"}),
    (WritesBeforeItChecks(), ("region_read", "region_write"), BAD_WRITES),
    (KeepsMaps(), ("session",), {"session/maps-are-dropped"}),
    (AnswersOneMinorTooHigh(), ("version", "header", "order"), {"version/agreed"}),
    (EchoesTheWrongCommand(), ("header", "order", "info", "version"), {"header/command-echoed"}),
    (ShortReads(), ("region_read", "order"), {"region_read/reply"}),
    (FiresFromTheFirst(), ("set_irqs", "reset"), {"set_irqs/trigger-range"}),
    (ForgetsInterruptsOnReset(), ("reset", "set_irqs"), {"reset/keeps-irqs"}),
    (EntersAnyState(), ("migration", "mig_data"), {"migration/invalid-states"}),
    (TakesVersionAgain(), ("version",), {"version/again"}),
    (RefusesWhatHasNoUse(), ("region_info",), set()),
    (RefusesWhatComesFirstWrongly(), ("version",), {"version/must-be-first"}),
)


@pytest.mark.parametrize(("fault", "groups", "expected"), FAULTS, ids=[type(fault).__name__ for fault, _, _ in FAULTS])
def test_a_fault_fails_the_checks_for_it_and_no_others(
    tmp_path: Path, fault: Fault, groups: tuple[str, ...], expected: set[str]
) -> None:
    with InProcess(tmp_path, Everything, session=with_fault(fault)) as target:
        assert set(failed(target.results(*groups))) == expected
