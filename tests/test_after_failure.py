"""What failed once can be used again, or says again that it cannot: conversations, readers, holds.

An answer that comes too late, in halves, or behind one that was refused is never taken for that of another question.
"""

from __future__ import annotations

import errno
import io
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from tests.device_kit import open_fds
from tests.migration_device import Adder, get_state, read_all, read_data, save, set_state, write_data
from userdev.control import ControlClient, ControlError
from userdev.errors import ProtocolError
from userdev.relay.outlet import Outlet
from userdev.trace import Note, TraceReader, TraceWriter
from userdev.transport import BadFrame, Framer, Listener, Stream
from vfio_user.device import PciDevice, PciExpress, PciIds, Quiesce, ResetKind
from vfio_user.device.standstill import Standstill
from vfio_user.harness.qtest import QTest, QTestError
from vfio_user.interposer.trace.files import NAME, PROTOCOL
from vfio_user.migration import Migration
from vfio_user.testing import attached, find_capability, write_register
from vfio_user.wire import HEADER, Message
from vfio_user.wire.constants import MigrationState, RegionIndex

SOON = 0.02
"""Seconds that an answer has which is not there."""


class Conversation:
    """Somebody who asks, and a peer that says exactly what the test has it say."""

    peer: socket.socket
    failures: tuple[type[Exception], ...]
    """What the asker raises for an answer that does not come."""
    refusals: tuple[type[Exception], ...]

    def ask(self) -> object:
        """Ask something, and what the answer is."""
        raise NotImplementedError

    def answer(self, value: int) -> bytes:
        """The bytes of an answer that `ask` makes `value` of."""
        raise NotImplementedError

    def refusal(self) -> bytes:
        """The bytes of a refusal."""
        raise NotImplementedError

    def noise(self) -> bytes:
        """The bytes of what is no answer, and harmless."""
        raise NotImplementedError

    def close(self) -> None:
        self.peer.close()


class QTesting(Conversation):
    """QTest's lines, which have no numbers."""

    failures = refusals = (QTestError,)

    def __init__(self, folder: Path) -> None:
        ours, self.peer = socket.socketpair()
        self.asker = QTest(ours, limit=SOON)

    def ask(self) -> object:
        return self.asker.readl(0)

    def answer(self, value: int) -> bytes:
        return f"OK {value:#x}\n".encode()

    def refusal(self) -> bytes:
        return b"FAIL Unknown command 'readl'\n"

    def noise(self) -> bytes:
        return b"IRQ raise 3\n"

    def close(self) -> None:
        self.asker.close()
        super().close()


class Controlling(Conversation):
    """The lines of a control socket, which are answered in their order."""

    failures = (TimeoutError,)
    refusals = (ControlError,)

    def __init__(self, folder: Path) -> None:
        listener = Listener(f"unix:{folder}/control")
        self.asker = ControlClient(folder / "control", timeout=SOON)
        self.peer = listener.accept().socket
        listener.close()

    def ask(self) -> object:
        return self.asker.call("get")["value"]

    def answer(self, value: int) -> bytes:
        return json.dumps({"ok": True, "result": {"value": value}}).encode() + b"\n"

    def refusal(self) -> bytes:
        return json.dumps({"ok": False, "error": {"what": "no"}}).encode() + b"\n"

    def noise(self) -> bytes:
        return b'{"event": {"what": "happens"}}\n'

    def close(self) -> None:
        self.asker.close()
        super().close()


class ControllingRaw(Controlling):
    """The same, with bytes behind the line of an answer."""

    def ask(self) -> object:
        return int(self.asker.call("get")["raw"])

    def answer(self, value: int) -> bytes:
        data = str(value).encode()
        return json.dumps({"ok": True, "result": {"raw": len(data)}}).encode() + b"\n" + data


@pytest.fixture(params=[QTesting, Controlling, ControllingRaw])
def conversation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Conversation]:
    made: Conversation = request.param(tmp_path)
    yield made
    made.close()


def test_an_answer_that_came_too_late_is_not_the_next_ones(conversation: Conversation) -> None:
    for late in (11, 12):
        with pytest.raises(conversation.failures):
            conversation.ask()
        conversation.peer.sendall(conversation.noise() + conversation.answer(late))
    conversation.peer.sendall(conversation.answer(13))
    assert conversation.ask() == 13


@pytest.mark.parametrize("place", range(1, 12, 2))
def test_an_answer_that_came_in_part_in_time_is_there_whole_later(conversation: Conversation, place: int) -> None:
    late = conversation.answer(0x1234567)
    place = min(place, len(late) - 1)
    conversation.peer.sendall(late[:-place])
    with pytest.raises(conversation.failures):
        conversation.ask()
    conversation.peer.sendall(late[-place:] + conversation.answer(2))
    assert conversation.ask() == 2


def test_behind_a_refusal_the_next_answer_is_the_next_questions(conversation: Conversation) -> None:
    conversation.peer.sendall(conversation.refusal() + conversation.answer(1))
    with pytest.raises(conversation.refusals):
        conversation.ask()
    assert conversation.ask() == 1


def test_a_refusal_that_came_too_late_is_nobodys(conversation: Conversation) -> None:
    with pytest.raises(conversation.failures):
        conversation.ask()
    conversation.peer.sendall(conversation.refusal() + conversation.answer(1))
    assert conversation.ask() == 1


# QTest's other ways to ask


def post_two(qtest: QTest) -> None:
    with qtest.posted():
        qtest.outl(0xCF8, 1)
        qtest.outl(0xCF8, 2)


def fail_in_between(qtest: QTest) -> None:
    with qtest.posted():
        qtest.outl(0xCF8, 1)
        qtest.outl(0xCF8, 2)
        raise QTestError("somebody else's")


def out_of_time(qtest: QTest) -> None:
    with qtest.within(SOON):
        qtest.ask_all(["inl 0x1", "inl 0x2"])


def ask_two(qtest: QTest) -> None:
    qtest.ask_all(["inl 0x1", "inl 0x2"])


@pytest.mark.parametrize("ask", [post_two, fail_in_between, out_of_time, ask_two])
@pytest.mark.parametrize(
    "answers", [b"", b"OK\n", b"FAIL\nOK 0x5\n", b"OK 0x4\nFAIL\n"], ids=["none", "one", "the first no", "the last no"]
)
def test_lines_that_were_sent_together_are_all_answered_before_the_next(
    ask: Callable[[QTest], object], answers: bytes
) -> None:
    ours, peer = socket.socketpair()
    qtest = QTest(ours, limit=SOON)
    peer.sendall(answers)
    try:
        ask(qtest)
        raise AssertionError
    except QTestError:
        missing = 2 - answers.count(b"\n")
    peer.sendall(b"OK 0x6\n" * missing + b"OK 0x7\n")
    assert qtest.readl(0) == 7
    qtest.close()
    peer.close()


def test_seconds_that_were_for_a_block_of_qtest_end_with_it_however_it_ended() -> None:
    class Quick:
        """Answers at once, and keeps how long it was given for that."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def settimeout(self, seconds: float) -> None:
            self.seconds.append(seconds)

        def sendall(self, data: bytes) -> None:
            pass

        def recv(self, size: int) -> bytes:
            return b"OK 0x5\n"

    connection = Quick()
    qtest = QTest(cast(socket.socket, connection), limit=1000.0)
    for error in (None, KeyError(), KeyboardInterrupt()):
        with suppress(KeyError, KeyboardInterrupt), qtest.within(5.0):
            assert qtest.readl(0) == 5
            assert max(connection.seconds) <= 5.0
            if error is not None:
                raise error
        connection.seconds.clear()
        assert qtest.readl(0) == 5
        assert min(connection.seconds) > 5.0, error
        connection.seconds.clear()


def test_behind_half_a_line_qtest_says_nothing_any_more() -> None:
    """QEMU would take the next line for the rest of it."""
    ours, peer = socket.socketpair()
    qtest = QTest(ours, limit=SOON)
    with pytest.raises(QTestError):
        qtest.write(0, bytes(4 << 20))
    with pytest.raises(QTestError, match="in part"):
        qtest.readl(0)
    qtest.close()
    peer.close()


def test_behind_half_a_command_a_program_is_told_nothing_any_more(tmp_path: Path) -> None:
    """It would take the next command for the rest of it; what it answers to those before is heard."""
    controlling = ControllingRaw(tmp_path)
    before = controlling.asker.post("get")
    with pytest.raises(TimeoutError):
        controlling.asker.post("put", behind=bytes(4 << 20))
    controlling.peer.sendall(controlling.answer(1))
    assert int(before.result()["raw"]) == 1
    with pytest.raises(ControlError, match="in part"):
        controlling.ask()
    controlling.close()


# Readers


def test_a_trace_that_is_damaged_is_not_read_on_behind_that(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    writer = TraceWriter(path, NAME, {})
    sizes = []
    for text in ("one", "two", "three"):
        writer.note(text)
        writer.flush()
        sizes.append(writer.size)
    writer.close()
    data = bytearray(path.read_bytes())
    data[sizes[0] + 24 : sizes[1]] = b"\xff" * (sizes[1] - sizes[0] - 24)  # the text of the second, behind its prefix
    reader = TraceReader(io.BytesIO(data), "trace", PROTOCOL)
    assert [entry.event for entry in reader if isinstance(entry, Note)] == ["one"]
    assert reader.truncated
    assert list(reader) == []


def test_a_stream_that_cannot_be_framed_says_so_each_time() -> None:
    framer: Framer[Message] = Framer(Message, max_message=4096)
    framer.feed(HEADER.pack(1, 1, 1 << 20, 0, 0) + bytes(100))
    for _ in range(2):
        with pytest.raises(BadFrame) as told:
            framer.next()
        assert told.value.fatal


class Disk:
    """Storage that cannot be read at times."""

    name = "disk"
    size = 1 << 16

    def __init__(self) -> None:
        self.fails: Exception | None = None

    def begin_saving(self) -> None:
        pass

    def next_data(self, offset: int) -> int:
        return offset

    def read(self, offset: int, size: int) -> bytes:
        if self.fails is not None:
            raise self.fails
        return b"\1" * size

    def take_written(self) -> list[tuple[int, int]]:
        return []

    def end(self) -> None:
        pass


class Kept(Adder):
    """A device with such a disk."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()

    def storages(self) -> Any:
        return [self.disk]


STATE_FAILURES: Mapping[str, Exception] = {
    "of the disk": OSError(errno.EIO, "the disk is broken"),
    "of the protocol": ProtocolError("cannot", errno.ENODATA),
    "of the author": RuntimeError("a defect"),
}


@pytest.mark.parametrize("failure", STATE_FAILURES)
def test_a_state_that_cannot_be_read_is_not_at_its_end(failure: str) -> None:
    """An end without the last frame would be told where it is loaded, if at all. The next attempt is a new one."""
    device = Kept()
    migration = Migration(device)
    device.disk.fails = STATE_FAILURES[failure]
    set_state(migration, MigrationState.PRE_COPY)
    for _ in range(3):
        with pytest.raises((ProtocolError, RuntimeError)):
            read_all(migration)
    device.disk.fails = None
    with pytest.raises((ProtocolError, RuntimeError)):
        read_data(migration)
    set_state(migration, MigrationState.RUNNING)
    set_state(migration, MigrationState.PRE_COPY)
    assert b"\1" * 1000 in b"".join(iter(lambda: read_data(migration), b""))
    assert get_state(migration) is MigrationState.PRE_COPY


def test_a_state_that_was_refused_can_be_loaded_after_a_reset() -> None:
    source, target = Adder(), Adder()
    source.values["total"] = 7
    state = save(source)
    migration = Migration(target)
    target.fails["load"] = RuntimeError("not today")
    with pytest.raises((ProtocolError, RuntimeError)):
        take(migration, state)
    target.fails.clear()
    assert target.values["total"] == 0
    migration.was_reset()
    assert get_state(migration) is MigrationState.RUNNING
    take(migration, state)
    assert target.values["total"] == 7


def test_a_device_that_takes_its_own_state_back_finds_its_memory_as_it_was() -> None:
    """As it finds that of the state which it refuses then."""

    class Looks(Adder):
        def load_state(self, state: Mapping[str, Any]) -> None:
            seen.append((state["total"], self.ram[0]))
            if len(seen) == 1:
                raise RuntimeError("not today")
            super().load_state(state)

    seen: list[tuple[int, int]] = []
    source, target = Adder(), Looks()
    source.values["total"], source.ram[0] = 7, 77
    target.values["total"], target.ram[0] = 5, 55
    with pytest.raises(ProtocolError):
        take(Migration(target), save(source))
    assert seen == [(7, 77), (5, 55)]
    assert target.ram[0] == 55


@pytest.mark.parametrize("way", ["a reset", "another client"])
def test_a_device_that_comes_out_of_error_runs_and_is_told_so(way: str) -> None:
    """It was stopped for a state that was refused, and would stand still for ever."""
    device = Adder()
    migration = Migration(device)
    set_state(migration, MigrationState.RESUMING)
    with pytest.raises(ProtocolError):
        set_state(migration, MigrationState.RUNNING)
    assert get_state(migration) is MigrationState.ERROR
    assert device.actions == ["stop"]
    if way == "a reset":
        migration.was_reset()
    else:
        migration.detach()
        migration.attach()
    assert get_state(migration) is MigrationState.RUNNING
    assert device.actions == ["stop", "start"]
    assert device.entered[-1] is MigrationState.RUNNING
    migration.was_reset()
    assert device.actions == ["stop", "start"], "there was nothing to come out of"


def take(migration: Migration, state: bytes) -> None:
    set_state(migration, MigrationState.RESUMING)
    write_data(migration, state)
    set_state(migration, MigrationState.RUNNING)


# Peers


def test_what_waits_for_a_peer_that_goes_is_dropped_with_its_descriptors_and_told_of() -> None:
    """Whoever waits for room in the outlet has waited enough."""
    before = open_fds()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outlet, told = Outlet(Stream(ours)), list[str]()
    reader, writer = os.pipe()
    outlet.send(bytes(1 << 22), [])
    outlet.send(b"behind it", [reader])
    outlet.when_taken(lambda: told.append("taken"))
    seen = [outlet.waiting]
    theirs.close()
    outlet.flush()
    seen.append(outlet.waiting)
    outlet.send(b"more", [writer])
    assert (outlet.broken, [*seen, outlet.waiting], told) == (True, [True, False, False], ["taken"])
    for fd in (reader, writer):
        os.close(fd)
    ours.close()
    assert open_fds() == before


# Holds


class Asked:
    """A device that is asked to stand still, and answers as the test says."""

    def __init__(self) -> None:
        self.answers: list[Quiesce | Exception | None] = []
        self.said: list[str] = []
        self.standstill = Standstill("device", self._ask, lambda: self.said.append("go on"), lambda work: work())

    def _ask(self) -> Quiesce | None:
        self.said.append("asked")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_an_answer_that_was_waited_for_no_longer_is_none_to_the_next_question() -> None:
    """Its client has gone, another has come, and the device is asked again before it has answered the first."""
    device = Asked()
    first, second = Quiesce(), Quiesce()
    device.answers = [first, second]
    gone = device.standstill.hold()
    device.standstill.give_up()
    assert gone.settled
    gone.release()
    waits = device.standstill.hold()
    settled: list[bool] = []
    for answer in (first, second):
        answer.done()
        settled.append(waits.settled)
    assert settled == [False, True], "the first is the answer to another question"
    waits.release()
    assert device.said == ["asked", "go on", "asked", "go on"]


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_guest_may_ask_again_for_a_reset_at_which_its_device_failed(when: str) -> None:
    answers = [Quiesce(), Quiesce()]
    said: list[str] = []

    class Clumsy(PciDevice):
        ids = PciIds(vendor=1, device=2)
        capabilities = (PciExpress(flr=True),)

        def on_quiesce(self) -> Quiesce | None:
            return answers[len(said)] if when == "later" else None

        def on_reset(self, kind: ResetKind) -> None:
            said.append(kind.value)
            if len(said) == 1:
                raise RuntimeError("a reset that fails")

    device = Clumsy()
    control = find_capability(device, PciExpress.id) + PciExpress.DEVICE_CONTROL
    with attached(device) as link:
        for answer in answers:
            with nullcontext() if said else pytest.raises(RuntimeError):
                write_register(device, RegionIndex.CONFIG, control, 2, PciExpress.INITIATE_FLR)
                answer.done()
                link.run_deferred()
    assert said[:2] == ["flr", "flr"]
    device.close()


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_a_device_that_has_refused_is_asked_anew_and_whoever_was_refused_is_told_once(late: bool) -> None:
    device = Asked()
    first = Quiesce()
    device.answers = [first if late else ProtocolError("no", errno.EBUSY), None]
    refused = device.standstill.hold()
    told: list[object] = []
    refused.then(lambda: told.append(refused.refusal))
    if late:
        first.fail(errno.EBUSY)
    assert len(told) == 1
    assert isinstance(told[0], ProtocolError)
    good = device.standstill.hold()
    assert (good.settled, good.refusal, len(told)) == (True, None, 1)
    assert refused.refusal is told[0]
    good.release()
    assert device.said == ["asked", "asked", "go on"], "who was refused holds nothing"
    refused.release()
    assert device.said == ["asked", "asked", "go on"]
