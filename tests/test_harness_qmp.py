"""QMP behind a synchronous face: against a small QMP server on the other end of a socket pair."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each_row
from userdev.errors import UserError
from userdev.process import Deadline
from vfio_user.harness.qmp import ARRIVED, MOST, EventLog, Qmp, QmpError, QmpLost, QmpTimeout, matches

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}, "capabilities": ["oob"]}}

Answer = Callable[[dict[str, Any]], list[dict[str, Any]]]


@for_each_row(
    [
        ({}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"b": 2}, False),
        ({"a": {"b": {}}}, {"a": {"b": {"c": 3}, "d": 4}}, True),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, False),
        ({"a": {"b": 1}}, {"a": 1}, False),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2, "c": 3}]}, True),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ("text", "text", True),
    ]
)
def test_a_pattern_matches_what_has_at_least_what_it_asks_for(pattern: object, value: object, expected: bool) -> None:
    assert matches(pattern, value) is expected


class FakeQemu:
    """Answers QMP: a dictionary of what each command returns, and events to send before the answer."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.answers: dict[str, Answer] = {"qmp_capabilities": lambda _: [{"return": {}}]}
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        self.theirs.sendall(json.dumps(message).encode() + b"\r\n")

    def die(self) -> None:
        self.theirs.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End what is left of the conversation; the thread hears of it before its socket is closed under it."""
        self.die()
        self.ours.close()
        if self._thread.ident is not None:
            self._thread.join(10)
        self.theirs.close()

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):  # whoever is gone need not have heard everything
            self.send(GREETING)
            for command in self._commands():
                for message in self.answers[command["execute"]](command.get("arguments", {})):
                    its_own = "event" in message or "id" not in command
                    self.send(message if its_own else {**message, "id": command["id"]})

    def _commands(self) -> Iterator[dict[str, Any]]:
        """Objects one after the other, with nothing between them that says where one ends."""
        text, decoder = "", json.JSONDecoder()
        while data := self.theirs.recv(65536):
            text += data.decode()
            with contextlib.suppress(ValueError):
                while text:
                    command, end = decoder.raw_decode(text)
                    text = text[end:].lstrip()
                    yield command


def event(name: str, **data: object) -> dict[str, Any]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    fake = FakeQemu()
    yield fake
    fake.close()


@pytest.fixture
def qmp(qemu: FakeQemu, tmp_path: Path) -> Iterator[Qmp]:
    qemu.start()
    connection = Qmp(qemu.ours, log=tmp_path / "qmp.log", limit=10)
    yield connection
    connection.close()


def test_a_command_returns_what_qemu_returns(qemu: FakeQemu, qmp: Qmp) -> None:
    qemu.answers["migrate"] = lambda arguments: [{"return": arguments}]
    assert qmp.command("migrate", uri="file:x", exit_on_error=False) == {"uri": "file:x", "exit-on-error": False}
    assert qmp.greeting["version"] == GREETING["QMP"]["version"]


def test_a_refusal_says_which_command_and_why(qemu: FakeQemu, qmp: Qmp) -> None:
    qemu.answers["device_add"] = lambda _: [{"error": {"class": "GenericError", "desc": "no such bus"}}]
    with pytest.raises(QmpError, match=r"device_add.*no such bus") as caught:
        qmp.command("device_add", driver="edu")
    assert (caught.value.kind, caught.value.description) == ("GenericError", "no such bus")


def test_an_event_that_comes_before_the_answer_is_not_lost(qemu: FakeQemu, qmp: Qmp) -> None:
    qemu.answers["stop"] = lambda _: [event("STOP"), {"return": {}}]
    began = time.monotonic()
    qmp.command("stop")
    ended = time.monotonic()
    assert (stopped := qmp.wait_event("STOP", 10))["event"] == "STOP"
    assert began <= stopped[ARRIVED] <= ended, "by this process's clock, whatever QEMU's says"


def test_a_wait_takes_the_event_that_matches_and_leaves_the_others(qemu: FakeQemu, qmp: Qmp) -> None:
    qemu.answers["migrate"] = lambda _: [
        event("MIGRATION", status="setup"),
        {"return": {}},
        event("MIGRATION", status="active"),
        event("MIGRATION", status="completed"),
    ]
    qmp.command("migrate", uri="x")
    assert qmp.wait_event("MIGRATION", 10, {"status": "completed"})
    assert [qmp.wait_event("MIGRATION", 10)["data"]["status"] for _ in range(2)] == ["setup", "active"]


def test_a_wait_for_an_event_has_a_deadline(qmp: Qmp) -> None:
    with pytest.raises(QmpTimeout, match="SHUTDOWN"):
        qmp.wait_event("SHUTDOWN", 0.05)


def test_a_command_that_is_not_answered_has_a_deadline(qemu: FakeQemu, qmp: Qmp) -> None:
    qemu.answers["stop"] = lambda _: []
    with pytest.raises(QmpTimeout, match="stop"):
        qmp.command("stop", 0.05)


def test_a_command_is_given_up_at_once_when_it_can_never_be_answered(qemu: FakeQemu, qmp: Qmp) -> None:
    qemu.answers["device_add"] = lambda _: []

    def look() -> None:
        raise UserError("its server has ended")

    with pytest.raises(UserError, match="its server has ended"):
        qmp.execute("device_add", {}, 3600.0, unless=look)


def test_qemu_may_die_without_a_word_of_asyncio(
    qemu: FakeQemu, qmp: Qmp, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)

    def die(_: dict[str, Any]) -> list[dict[str, Any]]:
        qemu.die()
        return []

    qemu.answers["quit"] = die
    with pytest.raises(QmpLost):
        qmp.command("quit", 10)
    with pytest.raises(QmpLost):
        qmp.wait_event("SHUTDOWN", 10)
    with pytest.raises(QmpLost):
        qmp.command("query-status", 10)
    qmp.close()
    assert not [record for record in caplog.records if record.name == "asyncio" or record.levelno > logging.INFO]
    assert capfd.readouterr().err == ""


def test_no_greeting_is_a_lost_qemu(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(QmpLost):
        Qmp(ours, log=tmp_path / "qmp.log", limit=10)


def test_everything_said_is_in_the_log(qemu: FakeQemu, qmp: Qmp, tmp_path: Path) -> None:
    qemu.answers["stop"] = lambda _: [event("STOP"), {"return": {}}]
    qmp.command("stop")
    lines = [line.split(" ", 2)[1:] for line in (tmp_path / "qmp.log").read_text().splitlines()]
    assert [(arrow, next(iter(json.loads(body)))) for arrow, body in lines] == [
        ("->", "execute"),
        ("<-", "event"),
        ("<-", "return"),
    ]


def test_a_waiter_wakes_up_for_an_event_of_another_thread() -> None:
    log = EventLog()
    threading.Timer(0.02, log.put, [event("RESUME")]).start()
    assert log.take("RESUME", {}, Deadline(10))["event"] == "RESUME"


def test_who_looks_on_takes_an_event_from_nobody() -> None:
    log = EventLog()
    log.put({"event": "BEFORE"})
    branch = log.branch()
    log.put({"event": "STOP"})
    assert [each.take("STOP", {}, Deadline(0))["event"] for each in (log, branch)] == ["STOP", "STOP"]
    log.close("QEMU is gone")
    with pytest.raises(QmpLost):
        branch.take("BEFORE", {}, Deadline(0))


def test_forgetting_leaves_events_of_other_names() -> None:
    log = EventLog()
    log.put(event("STOP"))
    log.put(event("RESUME"))
    log.forget("STOP")
    assert log.take("RESUME", {}, Deadline(1))
    with pytest.raises(QmpTimeout):
        log.take("STOP", {}, Deadline(0.01))


def test_all_that_came_so_far_is_forgotten_where_no_name_is_said_and_what_comes_then_is_not() -> None:
    log = EventLog()
    for name in ("STOP", "RESUME", "STOP"):
        log.put(event(name))
    log.forget()
    log.put(event("RESET"))
    for name in ("STOP", "RESUME"):
        with pytest.raises(QmpTimeout, match="what came instead: RESET"):
            log.take(name, {}, Deadline(0.0))
    assert log.take("RESET", {}, Deadline(1))


def test_who_begins_to_look_on_when_nothing_can_come_any_more_is_told_so_at_once() -> None:
    log = EventLog()
    before = log.branch()
    log.close("QEMU is gone")
    for looks_on in (log, before, log.branch()):
        assert looks_on.await_end(0.0)
        with pytest.raises(QmpLost, match="QEMU is gone"):
            looks_on.take("STOP", {}, Deadline(60))


def test_so_many_events_are_kept_and_of_more_the_oldest_of_the_most_frequent_goes() -> None:
    for count, kept in ((MOST - 2, True), (MOST - 1, True), (MOST, False)):
        log = EventLog()
        log.put(event("STOP"))
        for number in range(count):
            log.put({**event("RTC_CHANGE"), "data": {"offset": number}})
        assert log.take("STOP", {}, Deadline(1)), "the one is kept"
        first = log.take("RTC_CHANGE", {}, Deadline(1))
        assert (first["data"]["offset"] == 0) is kept, count


def test_who_waits_in_vain_is_told_what_came_last() -> None:
    log = EventLog()
    for number in range(20):
        log.put({"event": f"EVENT_{number}_"})
    with pytest.raises(QmpTimeout) as failure:
        log.take("STOP", {}, Deadline(0))
    assert "EVENT_19_" in str(failure.value)
    assert "EVENT_0_" not in str(failure.value)
