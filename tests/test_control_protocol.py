"""The control socket's protocol, as an interposer and as a device program speak it: one envelope, the same bounds."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.interposed import interposed_edu
from userdev.control import ControlClient, ControlError, LineReader
from userdev.control.envelope import announced
from userdev.control.lines import MAX_FDS
from userdev.errors import UserError
from userdev.interposer.control import server as interposer_control
from userdev.transport import close_all
from userdev_servers import control as device_control
from userdev_servers.gpio import Gpio
from vfio_user.interposer.interposer import Interposer, Setup
from vfio_user.testing import write_register


class Served(NamedTuple):
    """A program with a control socket."""

    path: Path
    good: str
    """A command that it does, without parameters."""
    max_line: int
    max_controllers: int
    again: Callable[[], object]
    """Begin a second program with the same socket."""


@contextmanager
def device(folder: Path) -> Iterator[Served]:
    path = folder / "control"
    card = Gpio(control=str(path))
    try:
        bounds = device_control.MAX_LINE, device_control.MAX_CONTROLLERS
        yield Served(path, "get", *bounds, lambda: Gpio(control=str(path)))
    finally:
        card.close()


@contextmanager
def interposer(folder: Path) -> Iterator[Served]:
    with interposed_edu(folder):
        path = folder / "control"
        setup = Setup(listen=str(folder / "other"), connect=str(folder / "edu"), control=str(path))
        bounds = interposer_control.MAX_LINE, interposer_control.MAX_CONNECTIONS
        yield Served(path, "status", *bounds, lambda: Interposer(setup))


@pytest.fixture(params=[device, interposer], ids=["device", "interposer"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with request.param(tmp_path) as found:
        yield found


class Lines:
    """A connection that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self._input = self.socket.makefile("rb")

    def ask(self, line: bytes) -> dict[str, Any] | None:
        self.socket.sendall(line + b"\n")
        return self.next()

    def next(self) -> dict[str, Any] | None:
        """The next line; None at the end."""
        line = self._input.readline()
        return json.loads(line) if line else None

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._input.close()
        self.socket.close()


def is_served(served: Served) -> bool:
    with ControlClient(served.path) as client:
        return isinstance(client.call(served.good), dict)


def test_the_socket_is_its_users_alone_and_is_not_taken_from_a_living_program(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600
    with pytest.raises(UserError, match="in use"):
        served.again()
    assert is_served(served)


def test_a_good_command_is_answered_with_its_result_and_its_id(served: Served) -> None:
    with Lines(served.path) as lines:
        answer = lines.ask(json.dumps({"command": served.good, "id": [7, "x"]}).encode())
    assert answer is not None
    assert answer.keys() == {"ok", "result", "id"}
    assert (answer["ok"], answer["id"]) == (True, [7, "x"])


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 60_000,
        b'{"command":' + b"[" * 3000,
        b"null",
        b"\xff\xff",
        b"{",
        b"{}",
        b'{"command": 1}',
        b'{"command": "x"}',
    ],
    ids=["nested", "a nested command", "null", "no text", "unfinished", "nameless", "a number", "unknown"],
)
def test_what_is_no_command_is_refused_in_words_and_the_connection_goes_on(served: Served, line: bytes) -> None:
    with Lines(served.path) as lines:
        answer = lines.ask(line)
        assert answer is not None
        assert answer["ok"] is False
        assert answer["error"]["what"]
        assert (lines.ask(json.dumps({"command": served.good}).encode()) or {})["ok"]


WORDS = {
    "bytes that are no text": (b"\xff\xff", "no UTF-8"),
    "another encoding": ('{"command": "status"}'.encode("utf-16"), "no UTF-8"),
    "an id of many digits": (b'{"command": "x", "id": ' + b"9" * 5000 + b"}", "5000 digits"),
    "a negative one": (b'{"command": "x", "id": -' + b"9" * 5000 + b"}", "5001 digits"),
    "a number that there is not": (b'{"command": "x", "id": NaN}', "'NaN' is no number"),
    "one that is too large": (b'{"command": "x", "id": 1e999}', "'1e999' is no number"),
    "no JSON": (b'{"command": }', "a command is one line of JSON, and this is none"),
    "too many levels": (b"[" * 60_000, "and this is none"),
}


@pytest.mark.parametrize(("line", "words"), WORDS.values(), ids=WORDS)
def test_what_is_wrong_with_a_line_is_said_in_a_sentence_of_ours(served: Served, line: bytes, words: str) -> None:
    with Lines(served.path) as lines:
        answer = lines.ask(line)
        assert answer is not None
        assert words in answer["error"]["what"]
        for pythons in ("int string conversion", "codec", "set_int_max_str_digits", "(char ", "Error"):
            assert pythons not in answer["error"]["what"]


def test_a_refusal_has_the_id_of_its_command(served: Served) -> None:
    with Lines(served.path) as lines:
        assert (lines.ask(b'{"command": "no such", "id": 8}') or {})["id"] == 8


def test_an_unknown_command_is_told_which_there_are(served: Served) -> None:
    with ControlClient(served.path) as client, pytest.raises(ControlError) as refused:
        client.call("no such")
    assert served.good in refused.value.hint


def test_commands_that_are_sent_ahead_are_answered_in_their_order(served: Served) -> None:
    with Lines(served.path) as lines:
        sent = [{"command": served.good if number % 2 else "no such", "id": number} for number in range(20)]
        lines.socket.sendall(b"".join(json.dumps(command).encode() + b"\n" for command in sent))
        answers = [lines.next() or {} for _ in sent]
    assert [(answer["id"], answer["ok"]) for answer in answers] == [(number, bool(number % 2)) for number in range(20)]


def test_a_line_without_end_is_refused_and_the_connection_ends(served: Served) -> None:
    with Lines(served.path) as lines:
        piece = b"x" * min(served.max_line, 1 << 20)
        for _ in range(served.max_line // len(piece)):
            lines.socket.sendall(piece)
        lines.socket.sendall(b"x")
        assert "bytes" in (lines.next() or {})["error"]["what"]
        assert lines.next() is None
    assert is_served(served)


def test_bytes_that_follow_a_command_are_not_taken_for_commands(served: Served) -> None:
    behind = json.dumps({"command": served.good}).encode() + b"\n"
    with Lines(served.path) as lines:
        answer = lines.ask(json.dumps({"command": served.good, "raw": len(behind)}).encode() + b"\n" + behind[:-1])
        assert answer is not None
        assert answer["ok"] is False
        assert (lines.ask(behind[:-1]) or {})["ok"]


def test_descriptors_that_nobody_wants_are_refused_and_closed(served: Served) -> None:
    read, write = os.pipe()
    with Lines(served.path) as lines, open(read, "rb") as reading:
        line = json.dumps({"command": served.good}).encode() + b"\n"
        socket.send_fds(lines.socket, [line], [write])
        os.close(write)
        assert (lines.next() or {})["ok"] is False
        assert reading.read() == b""  # the end: nobody has the other side any more


def test_one_controller_too_many_is_told_so(served: Served) -> None:
    with ExitStack() as controllers:
        for _ in range(served.max_controllers):
            controller = controllers.enter_context(Lines(served.path))
            assert (controller.ask(json.dumps({"command": served.good}).encode()) or {})["ok"]
        with Lines(served.path) as one_more:
            assert "connected already" in (one_more.next() or {})["error"]["what"]
            assert one_more.next() is None


def test_a_client_is_told_when_the_program_goes(tmp_path: Path) -> None:
    with device(tmp_path) as served:
        client = ControlClient(served.path)
    with client, pytest.raises(ControlError, match="gone"):
        client.call("get")


def test_events_come_between_answers_and_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "control"
    card = Gpio(control=str(path))
    with ControlClient(path) as client:
        assert client.call("watch") == {"watching": True}
        write_register(card, 2, 0, 1, 1)
        answers = [client.post("get") for _ in range(3)]
        write_register(card, 2, 0, 1, 3)
        assert [answer.result().keys() >= {"outputs"} for answer in answers] == [True] * 3
        assert [client.next_event()["outputs"] for _ in range(2)] == [1, 3]
    card.close()


def test_there_is_a_sentence_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no control socket"):
        ControlClient(tmp_path / "nothing")


def test_descriptors_are_of_the_line_whose_bytes_they_came_beside() -> None:
    """Of a line that came in pieces with any of these; of several that came at once with the last."""
    beside = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    text = b'{"command": "a"}\n{"command": "b"}\n{"command": "c"}\n'
    ends = [end + 1 for end, byte in enumerate(text) if byte == 10]
    for first in range(1, len(text)):
        for second in range(first + 1, len(text) + 1):
            reader, found = LineReader(1 << 10), []
            for piece, fd in zip((text[:first], text[first:second], text[second:]), beside, strict=True):
                if piece:
                    found += [list(line.fds) for line in reader.feed(piece, [fd])]
            wanted: list[list[int]] = [[], [], []]
            for upto, since, fd in ((first, 0, beside[0]), (second, first, beside[1]), (len(text), second, beside[2])):
                if upto > since:  # the line that the piece ends in, or with
                    wanted[next(number for number, end in enumerate(ends) if end >= upto)].append(fd)
            assert found == wanted, (first, second)
    close_all(beside)


def test_a_line_with_more_descriptors_than_may_come_is_refused_without_them() -> None:
    for count in (MAX_FDS, MAX_FDS + 1):
        beside = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        reader = LineReader(1 << 10)
        first, second = reader.feed(b'{"command": "a"}\n{"command": "b"}\n', beside)
        assert (first.text, first.fds, first.refusal) == (b'{"command": "a"}', [], "")
        assert second.fds == (beside if count <= MAX_FDS else [])
        assert second.refusal == ("" if count <= MAX_FDS else f"{count} descriptors came with one command")
        close_all(second.fds)
        assert not any(Path(f"/proc/self/fd/{fd}").exists() for fd in beside), "they are closed"


def test_so_many_bytes_follow_a_command_as_it_says_and_none_where_it_says_no_number() -> None:
    for said, count in ((b"5", 5), (b"0", 0), (b"-1", 0), (b"true", 0), (b"1.5", 0), (b'"5"', 0), (b"null", 0)):
        assert announced(b'{"command": "x", "raw": %s}' % said) == count, said
    for line in (b'{"command": "raw"}', b'["raw"]', b'{"raw"', b"raw"):
        assert announced(line) == 0, line
