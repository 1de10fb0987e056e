"""A guest's agent that says what it should not: one error, in time, and the guest's other commands go on."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from vfio_user.harness import agent
from vfio_user.harness.agent import AgentGuest
from vfio_user.harness.guest import GuestFailure, GuestLost

Request = dict[str, Any]
GOOD = {"exit_code": 0, "stdout": {"bytes": "b2s="}, "stderr": {"bytes": ""}, "seconds": 0.1, "timed_out": False}


class Liar:
    """The other end of the port: what it sends for a request is `say`'s choice."""

    def __init__(self) -> None:
        self.host, self._port = socket.socketpair()
        self.say: Callable[[Request], bytes] = lambda request: answered(request, ok=GOOD)
        self.heard: list[Request] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def hang_up(self) -> None:
        self._port.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._thread.join(10)  # the guest has hung up
        self._port.close()

    def _serve(self) -> None:
        try:
            with self._port.makefile("rb") as lines:
                for line in lines:
                    if line.strip():
                        self.heard.append(json.loads(line))
                        self._port.sendall(self.say(self.heard[-1]))
        except OSError:
            return


def answered(request: Request, **body: Any) -> bytes:
    return json.dumps({"session": request["session"], "id": request["id"], **body}).encode() + b"\n"


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.close()


@pytest.fixture
def guest(liar: Liar) -> Iterator[AgentGuest]:
    made = AgentGuest(liar.host, patience=0.2)
    yield made
    made.close()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ok": []},
        {"ok": None},
        {"ok": 7},
        {"error": {"a": 1}},
        {"ok": {}},
        {"ok": {**GOOD, "exit_code": "0"}},
        {"ok": {**GOOD, "stdout": "text"}},
        {"ok": {**GOOD, "seconds": None}},
        {"ok": {key: value for key, value in GOOD.items() if key != "timed_out"}},
    ],
    ids=str,
)
def test_an_answer_that_is_none_fails_the_command(liar: Liar, guest: AgentGuest, body: dict[str, Any]) -> None:
    liar.say = lambda request: answered(request, **body)
    with pytest.raises(GuestFailure):
        guest.run("true")
    liar.say = lambda request: answered(request, ok=GOOD)
    assert guest.run("true").stdout == "ok"


@pytest.mark.parametrize(
    "noise",
    [
        b"[" * 100_000,
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"session": {"bytes": 5}}',
        b'{"session": SESSION, "id": [1]}',
        b'{"session": SESSION, "id": {"a": 1}}',
        b'{"session": SESSION, "id": 99999999}',
        b'{"session": SESSION, "id": -1}',
        b'{"session": SESSION, "id": ' + b"9" * 5000 + b"}",
        b'{"session": SESSION}',
    ],
    ids=lambda noise: noise[:40].decode(errors="replace"),
)
def test_a_line_that_answers_nothing_is_passed_over(liar: Liar, guest: AgentGuest, noise: bytes) -> None:
    def say(request: Request) -> bytes:
        return noise.replace(b"SESSION", json.dumps(request["session"]).encode()) + b"\n" + answered(request, ok=GOOD)

    liar.say = say
    assert guest.run("true").stdout == "ok"
    guest.run("true")
    assert liar.heard[-1]["done"] == [liar.heard[-2]["id"]], "nothing else is to be forgotten by the guest"


def test_a_line_without_an_end_is_not_kept(liar: Liar, guest: AgentGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MAX_LINE", 1 << 20)
    liar.say = lambda request: b"x" * (2 << 20)
    with pytest.raises(GuestLost, match="no answer"):
        guest.run("true")


def test_a_file_without_an_end_is_not_kept(liar: Liar, guest: AgentGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MAX_FILE", 1 << 10)
    liar.say = lambda request: answered(request, ok={"data": {"bytes": "eHh4" * 100}})
    with pytest.raises(GuestFailure, match="no end"):
        guest.get("/dev/zero")


@pytest.mark.parametrize("piece", ["text", None, {"bytes": "eHh4" * (100 << 10)}], ids=["text", "end", "too much"])
def test_what_is_no_piece_of_a_file_is_refused(liar: Liar, guest: AgentGuest, piece: Any) -> None:
    liar.say = lambda request: answered(request, ok={"data": piece})
    if piece is None:
        assert guest.get("/etc/passwd") == b""
    else:
        with pytest.raises(GuestFailure):
            guest.get("/etc/passwd")


@pytest.mark.parametrize("came", ["[", "7", "{}", '{"error": "x"}', '{"error": 1, "traceback": 2}', "[" * 100_000])
def test_what_a_function_cannot_have_come_to_is_a_failure(liar: Liar, guest: AgentGuest, came: str) -> None:
    liar.say = lambda request: answered(request, ok={**GOOD, "result": came})
    with pytest.raises(GuestFailure, match="function"):
        guest.call(function)


def function() -> int:
    return 1


def test_threads_that_ask_at_once_each_have_their_own_answer(liar: Liar, guest: AgentGuest) -> None:
    """Also where the guest answers in another order: each second answer is held until the next."""
    held: list[bytes] = []

    def say(request: Request) -> bytes:
        held.append(answered(request, ok={**GOOD, "exit_code": int(request["command"][1])}))
        if len(held) < 2:
            return b""
        return b"".join(held.pop() for _ in range(2))

    liar.say = say
    found: dict[int, int] = {}

    def ask(number: int) -> None:
        found[number] = guest.run(["exit", str(number)], timeout=30).exit_code

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: number for number in range(20)}


def test_what_is_asked_while_the_host_changes_is_asked_behind_what_another_host_left(
    liar: Liar, guest: AgentGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may be half a line, to which a request would be the rest: the agent would never see it."""
    host, port = socket.socketpair()
    shut = agent._shut

    def ask_and_shut(connection: socket.socket, reader: threading.Thread) -> None:
        asked.append(guest._ask("hello"))
        shut(connection, reader)

    asked: list[Any] = []
    monkeypatch.setattr(agent, "_shut", ask_and_shut)
    guest.attach(host)
    port.settimeout(5)
    with port.makefile("rb") as lines:
        assert lines.readline().endswith(b"\n")  # ends a half line
        while not (line := lines.readline()).strip():
            pass
    assert json.loads(line)["do"] == "hello"
    port.sendall(answered(json.loads(line), ok={}))
    assert asked[0].result(5)["ok"] == {}
    monkeypatch.undo()
    port.close()


def test_an_answer_of_the_session_before_is_for_nobody(liar: Liar, guest: AgentGuest) -> None:
    """The numbers of requests go on, and what a guest says late, or twice, is of what it was asked then."""
    liar.say = lambda request: (
        answered({**request, "session": "another"}, ok={**GOOD, "exit_code": 1}) + answered(request, ok=GOOD)
    )
    assert guest.run("true").exit_code == 0
    before = liar.heard[-1]["session"]
    guest.renew()
    liar.say = lambda request: (
        answered({**request, "session": before}, ok={**GOOD, "exit_code": 1}) + answered(request, ok=GOOD)
    )
    assert guest.run("true").exit_code == 0


def test_a_guest_whose_connection_broke_is_reached_over_another(liar: Liar, guest: AgentGuest) -> None:
    liar.hang_up()
    with pytest.raises(GuestLost):
        guest.run("true")
    other = Liar()
    guest.attach(other.host)
    assert guest.run("true").ok
    guest.close()
    other.close()


def test_who_asks_while_answers_are_given_up_is_told_so_and_waits_for_none(
    liar: Liar, guest: AgentGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has begun to ask before: the guest may be gone that it meant."""
    monkeypatch.setattr(guest, "_check", lambda _seconds: guest.give_up("it was reset"))
    asked = guest._ask("hello")
    assert asked.done()
    with pytest.raises(GuestLost, match="given up"):
        asked.result()


def test_a_file_is_written_piece_by_piece_and_has_its_mode_with_the_last(
    liar: Liar, guest: AgentGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without anything in it too; read back it may have as many bytes as are fetched, and not one more."""
    monkeypatch.setattr(agent, "_PIECE", 10)
    monkeypatch.setattr(agent, "MAX_FILE", 30)
    liar.say = lambda request: answered(request, ok={})
    for size, pieces in {0: 1, 9: 1, 10: 1, 11: 2, 30: 3}.items():
        liar.heard.clear()
        guest.put(bytes(size), "/there", mode=0o755)
        assert [(each["offset"], each["mode"]) for each in liar.heard] == [
            (10 * number, 0o755 if number == pieces - 1 else None) for number in range(pieces)
        ], size
    for size in (30, 31):
        content = bytes(size)

        def say(request: Request, content: bytes = content) -> bytes:
            piece = content[request["offset"] : request["offset"] + request["size"]]
            return answered(request, ok={"data": {"bytes": base64.b64encode(piece).decode()}})

        liar.say = say
        with pytest.raises(GuestFailure, match="has more than") if size > 30 else nullcontext():
            assert guest.get("/there") == content


def test_an_answer_that_came_is_forgotten_there_and_told_so_once(liar: Liar, guest: AgentGuest) -> None:
    for _ in range(4):
        guest.run("true")
    assert [each["done"] for each in liar.heard] == [[], [1], [2], [3]]
