"""A server that does less than it could, as it may, fails no check; one that does half of what it may not fails one."""

from __future__ import annotations

from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from tests.cases import for_each, for_each_row
from tests.clauses.faults import Says
from tests.clauses.sessions import NeverRefuses, RefusesWithoutTheBit
from tests.conformance_target import Fault, InProcess, Proceed, Reply, failed, skipped, with_fault
from tests.everything_device import Everything
from userdev.errors import ProtocolError
from userdev_servers.edu import Edu
from vfio_user.client.conformance import CATALOGUE, Level, Outcome, run
from vfio_user.server.connection import ClientGone
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, DRAFT_V6, HEADER_SIZE, REGION_MIGRATION, Command, Dialect, Message
from vfio_user.wire.constants import Feature, FeatureFlags, IrqSetFlags, MigrationState, MigrationSupport
from vfio_user.wire.layouts import DMA_ENTRY_V6, DMA_UNMAP, FEATURE, IRQ_SET, MIGRATION_FLAGS, REGION_ACCESS, VERSION


class DoesNoDma(Fault):
    """DMA_MAP and DMA_UNMAP are nothing to it."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DMA_MAP:
            return b"", []
        if command is Command.DMA_UNMAP:
            return message.payload[: DMA_UNMAP.size], []
        return proceed(command, message)


class HasNoPreCopy(Fault):
    """Its state is saved of a device that stands still alone."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is not Command.DEVICE_FEATURE or len(message.payload) < FEATURE.size:
            return proceed(command, message)
        flags = FEATURE.unpack(message.payload).flags
        state = message.payload[FEATURE.size : FEATURE.size + 4]
        if flags == Feature.MIG_DEVICE_STATE | FeatureFlags.SET and state == MigrationState.PRE_COPY.to_bytes(
            4, "little"
        ):
            raise ProtocolError("there is no pre-copy here")
        payload, fds = proceed(command, message)
        if flags == Feature.MIGRATION | FeatureFlags.GET:
            payload = payload[: FEATURE.size] + MIGRATION_FLAGS.pack(MigrationSupport.STOP_COPY)
        return payload, fds


@for_each([CURRENT, DRAFT_V6], ids=lambda dialect: dialect.name)
def test_a_server_that_does_no_dma_is_asked_for_none(dialect: Dialect, tmp_path: Path) -> None:
    with InProcess(tmp_path, Everything, dialect=dialect, session=with_fault(DoesNoDma())) as target:
        results = target.results("dma_map", "dma_unmap")
    assert not failed(results)
    assert len(skipped(results)) > len(results) / 2
    with InProcess(tmp_path, Edu, dialect=dialect, session=with_fault(DoesNoDma())) as target:
        results = target.results("device_dma")
    assert skipped(results) == {result.check.id for result in results}, failed(results)


def test_a_server_without_pre_copy_is_asked_for_all_but_that(tmp_path: Path) -> None:
    with InProcess(tmp_path, Everything, session=with_fault(HasNoPreCopy())) as target:
        results = target.results("migration")
    assert not failed(results)
    left_out = skipped(results)
    assert left_out
    assert all("pre-copy" in id for id in left_out)


SHAPES = {
    Command.DMA_MAP: (32, 0),
    Command.DMA_UNMAP: (24, 24),
    Command.SET_IRQS: (20, 0),
    Command.REGION_WRITE: (16, 16),
    Command.REGION_WRITE_MULTI: (8, 8),
    Command.DEVICE_FEATURE: (8, None),
    Command.MIG_DATA_WRITE: (8, 0),
    Command.DIRTY_PAGES: (8, 0),
}
"""The least bytes of a request, and how many of them a good reply has."""


@dataclass
class AnswersAndIgnores(Fault):
    """Looks at the size of these and says that they are done; of DEVICE_FEATURE that is SET."""

    ignored: Set[Command]

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        least, echoed = SHAPES.get(command, (0, 0))
        if command not in self.ignored or len(message.payload) < least or not self._acts(command, message.payload):
            return proceed(command, message)
        return message.payload[:echoed], []

    @staticmethod
    def _acts(command: Command, payload: bytes) -> bool:
        if command is not Command.DEVICE_FEATURE:
            return True
        flags = FEATURE.unpack(payload).flags
        return bool(flags & FeatureFlags.SET) and not flags & FeatureFlags.PROBE


@dataclass
class ForgetsARefusal(Fault):
    """Does what it is asked, and says of one kind of request that it is done where it should say why it is not."""

    of: Command
    flag: int

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if (
                command is self.of
                and len(message.payload) >= 24
                and DMA_UNMAP.unpack(message.payload).flags == self.flag
            ):
                return message.payload[: SHAPES[command][1]], []
            raise


C = Command


class TakesWhatLiesOverAnother(Fault):
    """As done, where nothing else is wrong with a map."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError as error:
            if command is not Command.DMA_MAP or "overlap" not in str(error):
                raise
            return b"", []


MAPS = ("dma_map", "dma_unmap")
DMA = (*MAPS, "dirty_logging", "dirty_pages", "session", "reset")
STATES = ("feature", "migration", "mig_data", "dirty_logging", "reset")
WRITES = ("order", "region_write", "write_multi", "config", "migration_region")
NO_DMA = {Command.DMA_MAP, Command.DMA_UNMAP}
ONE_CAUSE: dict[str, tuple[Fault, Dialect, tuple[str, ...], str]] = {
    "DMA": (AnswersAndIgnores(NO_DMA), CURRENT, DMA, "dma_map/impossible"),
    "DMA by tables": (AnswersAndIgnores(NO_DMA), DRAFT_V6, DMA, "dma_map/table-impossible"),
    "overlaps": (TakesWhatLiesOverAnother(), CURRENT, ("dma_map",), "dma_map/overlap-inside"),
    "overlaps in tables": (TakesWhatLiesOverAnother(), DRAFT_V6, ("dma_map",), "dma_map/table-overlap-inside"),
    "maps alone": (AnswersAndIgnores({Command.DMA_MAP}), CURRENT, MAPS, "dma_map/map-and-unmap"),
    "interrupts": (AnswersAndIgnores({Command.SET_IRQS}), CURRENT, ("set_irqs", "reset"), "set_irqs/trigger"),
    "resets": (AnswersAndIgnores({Command.DEVICE_RESET}), CURRENT, ("reset",), "reset/ends-error"),
    "writes": (AnswersAndIgnores({Command.REGION_WRITE}), CURRENT, WRITES, "region_write/stays"),
    "v1 writes": (AnswersAndIgnores({Command.REGION_WRITE}), REGION_MIGRATION, WRITES, "region_write/stays"),
    "many writes": (AnswersAndIgnores({Command.REGION_WRITE_MULTI}), CURRENT, WRITES, "write_multi/in-order"),
    "features": (AnswersAndIgnores({Command.DEVICE_FEATURE}), CURRENT, STATES, "feature/impossible-set"),
    "state": (AnswersAndIgnores({Command.MIG_DATA_WRITE}), CURRENT, STATES, "migration/resuming-to-running"),
    "v1's log": (
        AnswersAndIgnores({Command.DIRTY_PAGES}),
        REGION_MIGRATION,
        ("dirty_pages",),
        "dirty_pages/clean-at-first",
    ),
    "a flag of a map": (ForgetsARefusal(Command.DMA_MAP, 0x13), CURRENT, MAPS, "dma_map/unknown-flag"),
    "a flag of an unmap": (ForgetsARefusal(Command.DMA_UNMAP, 4), CURRENT, MAPS, "dma_unmap/unknown-flag"),
    "an unmap of nothing": (ForgetsARefusal(Command.DMA_UNMAP, 0), CURRENT, MAPS, "dma_map/unmap-unknown"),
}


class RepeatsARefusedId(Fault):
    """The first good reply behind a refusal has the id of what was refused."""

    def __init__(self) -> None:
        self._refused: list[int] = []

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            self._refused = [message.id]
            raise

    def sent(self, message: Message) -> list[Message]:
        if message.command == CURRENT.number(Command.VERSION):
            self._refused.clear()
        return [replace(message, id=self._refused.pop())] if self._refused else [message]


@dataclass
class AnswersHalf(Fault):
    """Reads of 8 bytes, of one region or of each, are answered with 4."""

    of: int | None = None

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is Command.REGION_READ:
            asked = REGION_ACCESS.unpack(message.payload)
            if asked.length == 8 and self.of in (None, asked.region):
                payload = payload[:-4]
        return payload, fds


class FiresTwice(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        reply = proceed(command, message)
        if command is Command.SET_IRQS and IRQ_SET.unpack(message.payload).flags == TRIGGER:
            proceed(command, message)
        return reply


TRIGGER = IrqSetFlags.TRIGGER | IrqSetFlags.DATA_NONE
MANY = ("version", "header", "order", "info", "irq_info", "region_read", "set_irqs", "dma_map", "session")
TOLD: dict[str, tuple[Fault, tuple[str, ...], str, str]] = {
    "ids": (RepeatsARefusedId(), MANY, "header/id-echoed", "which was sent with id 513, has id 512"),
    "ids of any group": (RepeatsARefusedId(), ("dma_map",), "dma_map/impossible", "has id"),
    "reads": (AnswersHalf(), ("region_read", "device_dma"), "region_read/reply", "of 8 bytes is answered with count 8"),
    "reads of a BAR": (AnswersHalf(0), ("region_read", "device_dma"), "device_dma/registers", "with count 8 and 4"),
    "interrupts": (FiresTwice(), ("set_irqs", "reset"), "set_irqs/trigger", "it was fired 2 times in place of 1"),
}


def test_what_is_wrong_with_all_that_comes_is_one_finding_that_says_what_came(tmp_path: Path) -> None:
    for number, (name, (fault, groups, expected, said)) in enumerate(TOLD.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with InProcess(folder, Edu, session=with_fault(fault)) as target:
            wrong = failed(target.results(*groups))
        assert wrong.keys() == {expected}, (name, wrong)
        assert said in wrong[expected], (name, wrong)


@for_each(ONE_CAUSE)
def test_what_is_answered_and_ignored_is_one_finding(name: str, tmp_path: Path) -> None:
    fault, dialect, groups, expected = ONE_CAUSE[name]
    with InProcess(tmp_path, Everything, dialect=dialect, session=with_fault(fault)) as target:
        results = target.results(*groups)
    assert {result.check.id for result in results if result.outcome is Outcome.FAIL} == {expected}


class CountsIds(Session):
    """Its replies have ids of its own."""

    def _negotiate(self) -> bool:
        send, ids = self.connection.send, count()
        self.connection.send = lambda message: send(replace(message, id=next(ids)))  # type: ignore[method-assign]
        return super()._negotiate()


def test_a_conversation_that_does_not_begin_is_no_fault_of_the_first_group_that_is_tried(tmp_path: Path) -> None:
    with InProcess(tmp_path, Edu, session=CountsIds) as target:
        [(id, said)] = failed(target.results("region_read", timeout=1)).items()
    assert id == "region_read/reply"
    assert "that is the rule of version/agreed" in said


class HangsUpOnLess(Fault):
    """On whoever sends less than the structure of a request."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if len(message.payload) < SHAPES.get(command, (0, 0))[0]:
            raise ClientGone("it says too little")
        return proceed(command, message)


@for_each([CURRENT, DRAFT_V6])
def test_a_session_that_ends_of_too_short_a_payload_fails_what_is_about_that(dialect: Dialect, tmp_path: Path) -> None:
    with InProcess(tmp_path, Edu, dialect=dialect, session=with_fault(HangsUpOnLess())) as target:
        wrong = failed(target.results("dma_map", "dma_unmap", "device_dma", "reset", "session"))
    assert all(id.endswith(("/payload-too-short", "/table-cut")) for id in wrong), wrong
    assert "dma_map/payload-too-short" in wrong or dialect is DRAFT_V6


@for_each([CURRENT, DRAFT_V6])
def test_replies_that_end_too_early_are_one_finding_in_words_of_the_reply(dialect: Dialect, tmp_path: Path) -> None:
    for command in (C.GET_INFO, C.GET_REGION_INFO, C.GET_IRQ_INFO, C.REGION_READ, C.REGION_WRITE):
        fault = Says(command, lambda _: b"abc")
        groups = ["header", "region_info", "irq_info", "region_read", "order"]
        if command is C.GET_INFO:  # which is all that those of VERSION ask for
            groups.insert(0, "version")
        with InProcess(tmp_path, Edu, dialect=dialect, session=with_fault(fault)) as target:
            wrong = failed(target.results(*groups))
        assert len(wrong) == 1, (command, wrong)
        assert all(f"the reply to {command.value} has 3 bytes of payload" in said for said in wrong.values()), wrong


def test_refusals_without_the_error_bit_are_one_finding_of_the_rule_that_has_it(tmp_path: Path) -> None:
    """Though others are tried before that; where it is not tried, it is the finding of who meets it."""
    groups = ("version", "header", "info", "irq_info", "region_read", "feature", "dma_map", "dma_unmap", "set_irqs")
    for session, said in ((RefusesWithoutTheBit, "has errno EINVAL and no Error bit"), (NeverRefuses, "no Error bit")):
        for device in (Everything, Edu):
            with InProcess(tmp_path, device, session=session) as target:
                found = target.results(*groups)
                alone = failed(target.results("region_read"))
            wrong = failed(found)
            assert wrong.keys() == {"header/flags-of-replies"}, wrong
            assert said in wrong["header/flags-of-replies"]
            assert len({result.check.id for result in found}) == len(found)
            assert len(alone) == 1, alone


def test_an_edu_without_dma_is_one_finding_too(tmp_path: Path) -> None:
    with InProcess(tmp_path, Edu, session=with_fault(AnswersAndIgnores(NO_DMA))) as target:
        assert set(failed(target.results("dma_map", "device_dma", timeout=0.5))) == {"dma_map/impossible"}
        musts = [check for check in CATALOGUE if check.level is Level.MUST and check.group in ("dma_map", "session")]
        assert not failed([*run(musts, target, CURRENT, timeout=2)]), "no specification has a map refused"


class AnswersAnotherMajor(Fault):
    """Where 0.1 was proposed."""

    def sent(self, message: Message) -> list[Message]:
        if message.command == 1 and not message.failed and VERSION.unpack(message.payload).minor == 1:
            return [replace(message, payload=VERSION.pack(1, 1, tail=message.payload[VERSION.size :]))]
        return [message]


class ForgetsMapsOnReset(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DEVICE_RESET:
            session.function.dma.unmap_all()
        return proceed(command, message)


class MapsTheFirstOfATable(Fault):
    """Of a table that it refuses."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            if command is Command.DMA_MAP and len(message.payload) > DMA_ENTRY_V6.size:
                with suppress(ProtocolError):
                    proceed(command, replace(message, payload=message.payload[: DMA_ENTRY_V6.size], fds=[]))
            raise


class DoesHalfAWrite(Session):
    """What has come of a write when its client goes away is done."""

    def _end(self, *, attached: bool) -> None:
        framer = self.connection.framer
        came = bytes(framer.buffer[framer.start : framer.end])[HEADER_SIZE:]
        if len(came) > REGION_ACCESS.size:
            self.function.config.set(0x3C, 1, came[REGION_ACCESS.size])
        super()._end(attached=attached)


HALVES: tuple[tuple[type[Session], Dialect, str, str], ...] = (
    (with_fault(AnswersAnotherMajor()), CURRENT, "version", "agreed"),
    (with_fault(ForgetsMapsOnReset()), CURRENT, "reset", "keeps-dma"),
    (with_fault(MapsTheFirstOfATable()), DRAFT_V6, "dma_map", "table-all-or-nothing"),
    (DoesHalfAWrite, CURRENT, "session", "interrupted-write"),
)


@for_each_row(HALVES, ids=[name for *_, name in HALVES])
def test_what_is_done_by_half_fails_the_check_for_it_and_no_other(
    session: type[Session], dialect: Dialect, group: str, name: str, tmp_path: Path
) -> None:
    with InProcess(tmp_path, Everything, dialect=dialect, session=session) as target:
        assert set(failed(target.results(group))) == {f"{group}/{name}"}


def test_what_only_a_reference_does_says_of_which_revision_that_is() -> None:
    revisions = {check.revision for check in CATALOGUE if check.level is Level.REFERENCE}
    assert any(revisions)
