"""A conversation with a program goes on behind an answer that failed, or says again that it cannot.

An answer that comes too late, in halves, or behind one that was refused is never taken for that of another question.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from tests.cases import for_each
from userdev.control import ControlClient, ControlError
from userdev.transport import Listener
from vfio_user.harness.qtest import QTest, QTestError

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


@for_each([post_two, fail_in_between, out_of_time, ask_two], [b"", b"OK\n", b"FAIL\nOK 0x5\n", b"OK 0x4\nFAIL\n"])
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
