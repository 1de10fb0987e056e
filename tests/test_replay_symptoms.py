"""What a replay tells of a server that goes wrong, and when a reference that was played the same does right."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import EINVAL, EPERM
from pathlib import Path
from typing import Any, cast

import pytest

from tests.cases import for_each, for_each_row
from tests.conftest import PATIENCE
from tests.interposer_bench import read, request, write
from tests.scripted_server import ScriptedServer
from tests.traced import DOWN, UP, Written
from userdev.descriptors import FdInfo, FdKind
from userdev.relay import Direction
from userdev.transport import Stream
from vfio_user.client import EventFd
from vfio_user.interposer.replay import Ignored, What, load_script, replay
from vfio_user.interposer.replay.comparing import Comparison
from vfio_user.interposer.replay.memory import PAGE, SparseMemory
from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome
from vfio_user.interposer.replay.player import SILENT, Ended, Player
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import count_of, is_interrupt, vector_of
from vfio_user.interposer.replay.symptom import Symptom, asked_again
from vfio_user.interposer.trace import MessageRecord
from vfio_user.wire import CURRENT, Capabilities, Command, Message, encode_version
from vfio_user.wire.constants import IrqIndex, IrqSetFlags
from vfio_user.wire.layouts import DMA_ACCESS, IRQ_SET, REGION_ACCESS

WRONG_REPLY = Difference(What.REPLY, 5, evidence=b"wrong")
STRAY = Difference(What.INTERRUPT_UNEXPECTED, 0, evidence=(2, 0), after=5)


@for_each_row(
    {
        "it did all right": (WRONG_REPLY, [], True),
        "the same": (WRONG_REPLY, [WRONG_REPLY], False),
        "the same record otherwise": (WRONG_REPLY, [replace(WRONG_REPLY, evidence=b"other")], False),
        "another record": (WRONG_REPLY, [replace(WRONG_REPLY, record=7)], True),
        "an interrupt instead of a wrong reply": (WRONG_REPLY, [STRAY], True),
        "the same in another way": (WRONG_REPLY, [replace(STRAY, evidence=b"wrong")], True),
        "the same interrupt": (STRAY, [STRAY], False),
        "the same interrupt elsewhere": (STRAY, [replace(STRAY, after=9)], False),
        "another interrupt": (STRAY, [replace(STRAY, evidence=(2, 1))], True),
        "a wrong reply": (STRAY, [replace(WRONG_REPLY, evidence=(2, 0))], True),
        **{
            f"{gone.value} and {wanted.what.value}": (wanted, [Difference(gone, 9)], False)
            for wanted in (WRONG_REPLY, STRAY)
            for gone in (What.CLOSED, What.NO_REPLY)
        },
    }
)
def test_a_reference_did_right_where_nothing_of_it_is_alike(
    wanted: Difference, found: list[Difference], spared: bool
) -> None:
    outcome = ReplayOutcome(cast(Any, None), differences=found)
    assert Symptom(wanted).spares(outcome) is spared


@for_each_row(
    {
        "it goes wrong": (0, [WRONG_REPLY], True),
        "it does not": (0, [], False),
        "with another difference that has no record": (0, [WRONG_REPLY, STRAY], True),
        "it does right then": (9, [WRONG_REPLY], True),
        "it goes wrong again": (9, [WRONG_REPLY, replace(WRONG_REPLY, record=9)], False),
        "it goes wrong only then": (9, [replace(WRONG_REPLY, record=9)], False),
    }
)
def test_a_passing_symptom_shows_where_a_server_that_is_asked_again_does_right(
    again: int, found: list[Difference], shows: bool
) -> None:
    assert Symptom(WRONG_REPLY, again=again).shows(ReplayOutcome(cast(Any, None), differences=found)) is shows


def test_a_request_that_is_asked_again_has_the_same_reply_of_its_own(tmp_path: Path) -> None:
    with Written(tmp_path / "trace") as trace:
        number = trace.ask(read(0, UP), b"this")
    script = load_script(trace.path)
    again = asked_again(script, number, 90)
    *before, request, reply = cast(tuple[MessageRecord, ...], again.steps)
    assert tuple(before) == script.steps
    assert [(each.number, each.pair) for each in (request, reply)] == [(90, 0), (91, 90)]
    assert [each.message for each in (request, reply)] == [each.message for each in before[-2:]]


@for_each([True, False])
def test_a_server_that_hangs_up_is_said_to_with_what_it_did_not_answer(waits: bool, tmp_path: Path) -> None:
    with Written(tmp_path / "trace") as trace:
        trace.ask(write(0, UP, b"\x5a\0\0\0"))
    script = load_script(tmp_path / "trace")
    request = next(step for step in script.steps if isinstance(step, MessageRecord))
    outcome = ReplayOutcome(script)
    Comparison(script, Ignored(), None, outcome).closed(request if waits else None, "it ended", frozenset({1}))
    (told,) = outcome.differences
    assert (told.what, told.found, told.record) == (What.CLOSED, "it ended", request.number if waits else 0)
    assert told.expected == ("an answer to REGION_WRITE offset=0x60 region=BAR0 length=4 = 0x5a" if waits else "")
    assert ("REGION_WRITE" in told.place) is waits


@for_each_row([(b"one", b"another", True), (b"one", EINVAL, False), (EINVAL, b"another", False), (EINVAL, EPERM, True)])
def test_a_server_that_agrees_where_another_did_not_differs_whatever_either_offers(
    was: bytes | int, now: bytes | int, same: bool, tmp_path: Path
) -> None:
    with Written(tmp_path / "trace") as trace:
        trace.ask(asked := request(Command.VERSION), was)
    script = load_script(trace.path)
    recorded = next(step for step in script.steps if isinstance(step, MessageRecord))
    outcome = ReplayOutcome(script)
    found = asked.error(now) if isinstance(now, int) else asked.reply(now)
    Comparison(script, Ignored(), None, outcome).reply(recorded, found)
    assert [each.what for each in outcome.differences] == [What.REPLY] * (not same)
    assert outcome.compared == same


HELLO = request(Command.VERSION, encode_version(CURRENT, 0, Capabilities()))


def test_a_reply_is_the_same_only_with_its_command_and_its_descriptors(tmp_path: Path) -> None:
    """Of descriptors it counts what they are: a file in memory is as good as one on disk."""
    trace = Written(tmp_path / "trace")
    with trace, open(tmp_path / "file", "wb") as file, EventFd() as event, memfd() as memory:
        trace.ask(replace(HELLO), encode_version(CURRENT, 0, Capabilities()))
        asked = trace.ask(request(Command.GET_REGION_INFO, b"which"), b"this", reply_fds=[memory])
        trace.writer.flush()
        script = load_script(trace.path)
        cases: dict[str, tuple[int, list[int], bool]] = {
            "the same": (0, [memory], True),
            "a file": (0, [file.fileno()], True),
            "none": (0, [], False),
            "one too many": (0, [memory, memory], False),
            "of another kind": (0, [event.fd], False),
            "to another command": (1, [memory], False),
        }
        for name, (more, fds, same) in cases.items():

            def answer(_: ScriptedServer, message: Message, more: int = more, fds: list[int] = fds) -> Message:
                return replace(message.reply(b"this", fds), command=message.command + more)

            with ScriptedServer(answer) as server, Player(script, server.client_stream, patience=PATIENCE) as player:
                outcome = player.play()
            assert outcome.same is same, name
            assert [(each.what, each.record) for each in outcome.differences] == [(What.REPLY, asked)] * (not same), (
                name
            )
            assert all(each.expected != each.found for each in outcome.differences), name
            assert [step.number for step in outcome.played.steps] == [step.number for step in script.steps], name
            with ScriptedServer(answer) as server, Player(outcome.played, server.client_stream) as player:
                assert player.play().same, f"{name}: what was played is compared with what it is"


def test_an_interrupt_is_the_same_only_as_often_as_it_came_however_much_at_once(tmp_path: Path) -> None:
    """An eventfd counts: two that come together are looked at once, in a recording or in a replay."""
    for recorded, comes, differs in (
        ([1], [1], {}),
        ([2], [1, 1], {}),
        ([1, 1], [2], {}),
        ([3, 1], [1, 1, 1, 1], {}),
        ([1], [2], {What.INTERRUPT_UNEXPECTED}),
        ([1, 1], [1, 2], {What.INTERRUPT_UNEXPECTED}),
        ([2], [1], {What.INTERRUPT_MISSING}),
        ([1, 2], [2], {What.INTERRUPT_MISSING}),
    ):
        with EventFd() as event, Written(tmp_path / "trace") as trace:
            trace.ask(replace(HELLO), encode_version(CURRENT, 0, Capabilities()))
            flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER
            payload = IRQ_SET.pack(IRQ_SET.size, flags, IrqIndex.MSIX, 0, 1)
            trace.ask(replace(request(Command.SET_IRQS, payload), fds=[event.fd]))
            trace.ask(write(0, UP, b"\1\0\0\0"))
            for count in recorded:
                trace.writer.note("interrupt", index=2, vector=0, count=count)
            trace.ask(read(0, UP))

        def answer(server: ScriptedServer, message: Message, comes: list[int] = comes) -> Message:
            if message.command == server.number(Command.REGION_WRITE):
                for count in comes:
                    os.eventfd_write(server.fds[0], count)
            return message.reply()

        outcome = played(load_script(trace.path), answer)
        assert {each.what for each in outcome.differences} == set(differs), (recorded, comes)
        assert len(outcome.differences) == len(differs), (recorded, comes)
        came = [(vector_of(step), count_of(step)) for step in outcome.played.steps if is_interrupt(step)]
        assert {where for where, _ in came} == {(IrqIndex.MSIX, 0)}, (recorded, comes)
        assert sum(count for _, count in came) == sum(comes), (recorded, comes)


def test_interrupts_that_were_not_recorded_are_told_of_where_the_first_of_them_came(tmp_path: Path) -> None:
    """Of several writes that interrupt once, as recorded, the second and all behind it do so twice."""
    written: list[int] = []
    with EventFd() as event, Written(tmp_path / "trace") as trace:
        trace.ask(replace(HELLO), encode_version(CURRENT, 0, Capabilities()))
        payload = IRQ_SET.pack(IRQ_SET.size, IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER, IrqIndex.MSIX, 0, 1)
        trace.ask(replace(request(Command.SET_IRQS, payload), fds=[event.fd]))
        for _ in range(4):
            written.append(trace.write(UP, 1, interrupt=True))
            trace.read(UP, 1)

    def answer(server: ScriptedServer, message: Message) -> Message:
        if message.command == server.number(Command.REGION_WRITE):
            os.eventfd_write(server.fds[0], 1 if len(server.received) == 3 else 2)
            return message.reply(message.payload[: REGION_ACCESS.size])
        is_read = message.command == server.number(Command.REGION_READ)
        return message.reply(message.payload + b"\1\0\0\0" if is_read else b"")

    (told,) = played(load_script(trace.path), answer).differences
    assert (told.what, told.after) == (What.INTERRUPT_UNEXPECTED, written[1])
    assert "3 times" in told.found


def test_a_reply_with_another_requests_id_is_one_difference_and_both_ids_are_named(tmp_path: Path) -> None:
    """The server answers at once: that it did not was said, after all patience, beside a reply that nobody asked."""
    with Written(tmp_path / "trace") as trace:
        trace.ask(replace(HELLO), encode_version(CURRENT, 0, Capabilities()))
        refused = trace.ask(write(0, DOWN, bytes(4)), EINVAL)
        asked = trace.ask(read(0, UP), b"this")
        trace.ask(read(0, UP), b"this")
    cases = {"what was recorded": (b"this", [What.REPLY_ID]), "another": (b"that", [What.REPLY_ID, What.REPLY])}
    for name, (data, kinds) in cases.items():

        def answer(server: ScriptedServer, message: Message, data: bytes = data) -> Message:
            if len(server.received) == 2:
                return message.error(EINVAL)
            if len(server.received) == 3:
                return replace(message.reply(data), id=server.received[1].id)
            return message.reply(b"this")

        outcome = played(load_script(trace.path), answer)
        assert [(each.what, each.record) for each in outcome.differences] == [(kind, asked) for kind in kinds], name
        first = outcome.differences[0]
        assert "to id 3" in first.expected, name
        assert f"to id 2, that of record {refused}" in first.found, name
        assert outcome.compared == 3, name


def test_an_interrupt_of_a_server_that_is_slow_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its time once the server has answered what it was asked: one that has not come so far may yet do it."""
    with Written(tmp_path / "trace") as trace:
        with EventFd() as event:
            trace.ask(replace(HELLO), encode_version(CURRENT, 0, Capabilities()))
            payload = IRQ_SET.pack(IRQ_SET.size, IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER, IrqIndex.MSIX, 0, 1)
            trace.ask(replace(request(Command.SET_IRQS, payload), fds=[event.fd]))
        trace.write(UP, 1, interrupt=True)
        trace.write(DOWN, 1, interrupt=True)

    is_awaited = [threading.Event() for _ in range(5)]  # by the number of messages
    receive = Player._receive

    def receiving(player: Player, seconds: float) -> None:
        if seconds > 0:
            is_awaited[player.outcome.sent].set()
        receive(player, seconds)

    def answer(server: ScriptedServer, message: Message) -> Message:
        if message.command != server.number(Command.REGION_WRITE):
            return message.reply()
        assert is_awaited[len(server.received)].wait(PATIENCE)
        os.eventfd_write(server.fds[0], 1)
        return message.reply(message.payload[: REGION_ACCESS.size])

    monkeypatch.setattr(Player, "_receive", receiving)
    played(load_script(trace.path), answer).check()


def played(script: Script, answer: Callable[[ScriptedServer, Message], Message | None]) -> ReplayOutcome:
    """What a replay finds that waits for an interrupt no longer than for the replies around it."""
    stream = (server := ScriptedServer(answer)).client_stream
    with server, Player(script, stream, patience=PATIENCE, beside=0.0) as player:
        return player.play()


@contextmanager
def memfd() -> Iterator[int]:
    fd = os.memfd_create("region")
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_script_ends_with_the_reply_of_the_record_that_it_is_wanted_up_to() -> None:
    """All of it is, where it has no such record."""
    script = Script.of([read(0, UP, 4), read(0, DOWN, 4)])
    first, second = cast(tuple[MessageRecord, MessageRecord], script.steps)
    answer = first.message.reply(bytes(4))
    reply = replace(first, number=second.number + 1, direction=Direction.TO_CLIENT, message=answer, pair=first.number)
    script = replace(script, steps=(first, second, reply))
    wanted = {first.number: 3, second.number: 2, reply.number: 3, reply.number + 1: 3}
    assert {record: len(script.up_to(record).steps) for record in wanted} == wanted


def test_one_that_does_not_answer_is_asked_on_if_it_ever_has() -> None:
    hello = request(Command.VERSION, encode_version(CURRENT, 0, Capabilities()))
    asked = Script.of([hello, read(0, UP, 4), read(0, DOWN, 4)])
    stream = (server := ScriptedServer(lambda *_: None)).client_stream
    with server, Player(asked, stream, patience=0.05, start=PATIENCE) as player:
        assert [each.what for each in player.play().differences] == [What.NO_REPLY] * 2
    ours, theirs = socket.socketpair()
    with theirs, Player(asked, Stream(ours), patience=0.05, start=0.05) as player:
        assert [each.what for each in player.play().differences] == [What.NO_REPLY]


def test_one_that_has_answered_is_given_as_much_patience_again() -> None:
    ours, theirs = socket.socketpair()
    answers = [True, *[False] * (SILENT - 1), True, *[False] * SILENT]
    *asked, last = cast(list[MessageRecord], Script.of([read(0, UP, 4)] * len(answers)).requests)
    with theirs, Player(Script.of([]), Stream(ours), patience=0.0) as player:
        player.outcome.replies[0] = read(0, UP, 4)
        player._wait = lambda *_: answers.pop(0)  # type: ignore[method-assign]
        for each in asked:
            player._await_reply(each)
        with pytest.raises(Ended):
            player._await_reply(last)


def test_a_reply_may_bring_as_many_descriptors_as_one_that_was_recorded() -> None:
    """Those of several system calls, each of which takes fewer."""

    def answer(server: ScriptedServer, message: Message) -> None:
        data = message.reply(b"data").encode()
        for part in (data[:5], data[5:]):
            socket.send_fds(server.stream.socket, [part], [fd] * 200)

    with memfd() as fd:
        outcome = played(Script.of([replace(HELLO), request(Command.GET_REGION_INFO)]), answer)
    assert outcome.same
    assert [reply.payload for reply in outcome.replies.values()][1:] == [b"data"]


class Started:
    """Of a server that was started: it agrees on a version, and answers nothing else."""

    fate = "it runs"

    def __init__(self, *_: object, **__: object) -> None:
        self._server = ScriptedServer(lambda *_: None)

    async def start(self, _: float) -> Stream:
        return self._server.client_stream

    async def ended(self, _: float) -> bool:
        return False

    def close(self) -> None:
        self._server.close()


def test_a_server_that_was_started_is_waited_for_as_long_as_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.interposer.replay.player.ServerProcess", Started)
    hello = request(Command.VERSION, encode_version(CURRENT, 0, Capabilities()))
    (silence,) = replay(Script.of([hello, read(0, UP, 4)]), "its command", patience=0.05).differences
    assert silence.what is What.NO_REPLY
    assert "0.05 s" in silence.found


def test_what_a_server_does_is_ignored_once_where_that_may_differ(tmp_path: Path) -> None:
    with Written(tmp_path / "trace") as trace:
        trace.ask(read(0, UP))
        trace.dma_read(0x1000, b"data")
    outcome = ReplayOutcome(script := load_script(trace.path))
    comparison = Comparison(script, Ignored(commands=frozenset({Command.DMA_READ.value})), None, outcome)
    for count, is_recorded in enumerate((True, False), 1):
        found = comparison.request(request(Command.DMA_READ, DMA_ACCESS.pack(0x1000, 4)))
        assert (found is not None) is is_recorded
        assert (outcome.ignored, outcome.differences) == (count, []), is_recorded
    asked = next(step for step in script.steps if isinstance(step, MessageRecord))
    comparison = Comparison(replace(script, compared=frozenset()), Ignored(), None, outcome)
    comparison.reply(asked, asked.message.error(EPERM))
    assert (outcome.ignored, outcome.differences) == (3, [])


def test_what_a_server_asks_that_nobody_recorded_has_no_record_but_one_that_it_came_after() -> None:
    outcome = ReplayOutcome(script := replace(Script.of([read(0, UP, 4)]), all_interrupts=True))
    comparison = Comparison(script, Ignored(), None, outcome)
    comparison.after = 7
    comparison.request(request(Command.DMA_READ, DMA_ACCESS.pack(0x1000, 4)))
    comparison.unasked(request(Command.REGION_READ).reply())
    comparison.interrupt_unexpected((IrqIndex.MSIX, 0), 1, 7)
    comparison.garbage("no message")
    assert [(each.record, each.after) for each in outcome.differences] == [(0, 7)] * 4


def test_memory_of_a_replay_is_what_was_written_wherever_its_pages_end() -> None:
    memory, known = SparseMemory(), bytearray(4 * PAGE)
    borders = [border + beside for border in range(0, 4 * PAGE, PAGE) for beside in (-3, -1, 0, 1)]
    for number, (start, size) in enumerate(itertools.product(borders[1:], (1, 2, 4, PAGE, PAGE + 2)), 1):
        start, data = max(0, start), bytes([number % 256]) * size
        if start + size > len(known):
            continue
        memory.write(start, data)
        known[start : start + size] = data
        for at in (0, start, max(0, start - 2)):
            room = len(known) - at
            assert memory.read(at, room) == known[at:], (start, size, at)


def test_a_file_is_not_taken_for_a_memfd_that_has_its_inode() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Player(Script.of([]), Stream(ours), patience=PATIENCE) as player:
        kinds = (FdKind.MEMFD, FdKind.FILE, FdKind.MEMFD)
        memory, file, again = (player._stand_in(FdInfo(kind, 4096, 7), []) for kind in kinds)
    assert memory == again != file
