"""Controllers that do not mean well: too many, too much, deaf, or gone; nobody else notices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from select import select

import pytest

from tests.interposed import Interposed, interposed_edu
from userdev.control import ControlError
from userdev.control.lines import MAX_FDS, ControlLine, LineReader
from userdev.errors import UserError
from userdev.interposer.control.server import MAX_CONNECTIONS, MAX_LINE
from userdev.transport import close_all
from vfio_user.interposer.control.client import InterposerControl
from vfio_user.interposer.interposer import Interposer, Setup

LIVENESS = 0x04
SECRET = "correct horse battery staple"


@pytest.fixture
def edu(tmp_path: Path) -> Iterator[Interposed]:
    with interposed_edu(tmp_path) as interposed:
        yield interposed


@contextmanager
def connected(edu: Interposed) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(60)
        control.connect(str(edu.folder / "control"))
        yield control


def answer(control: socket.socket) -> dict[str, object]:
    with control.makefile("rb") as answers:
        line = answers.readline()
    assert line
    found: dict[str, object] = json.loads(line)
    return found


def assert_served(edu: Interposed) -> None:
    """Another controller, and the client, are served."""
    with InterposerControl(edu.folder / "control", timeout=60) as other:
        other.call("status")


def until_there_is_room(edu: Interposed) -> None:
    """Controllers that have gone are counted until the interposer has noticed, of which it tells nobody."""
    end = time.monotonic() + 60
    while True:
        with suppress(ControlError):
            return assert_served(edu)
        assert time.monotonic() < end


def test_a_controller_that_does_not_read_holds_up_nobody(edu: Interposed) -> None:
    memory = edu.ram()
    edu.client().dma_map(0, memory)
    ask = b'{"command": "memory_read", "iova": 0, "size": 1048576}\n'
    with connected(edu) as deaf:
        deaf.sendall(ask * 100)
        assert_served(edu)
        answers = deaf.makefile("rb")
        assert [json.loads(answers.readline())["ok"] for _ in range(100)] == [True] * 100


def test_a_controller_that_leaves_an_answer_unread_has_gone_as_any_other(edu: Interposed) -> None:
    """Its connection is reset, which is no end of a stream."""
    with connected(edu) as hasty:
        hasty.sendall(b'{"command": "status"}\n')
        assert select([hasty], [], [], 60)[0]
    assert_served(edu)


def test_what_a_controller_sends_ahead_is_bounded(edu: Interposed) -> None:
    """One that sends and never reads is not read on: its own socket fills up, and no memory of ours."""
    with connected(edu) as deaf:
        deaf.settimeout(0.5)
        line = b'{"command": "status", "id": "' + b"x" * 100_000 + b'"}\n'
        with pytest.raises(TimeoutError):
            deaf.sendall(line * (2 * MAX_LINE // len(line)))
        assert_served(edu)


def test_a_controller_too_many_is_told_so(edu: Interposed) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(InterposerControl(edu.folder / "control")).call("status")
        with connected(edu) as one_more:
            assert not answer(one_more)["ok"]
            assert one_more.recv(1) == b""
    until_there_is_room(edu)


def test_the_control_socket_is_private_and_no_other_interposer_takes_it(edu: Interposed) -> None:
    path = edu.folder / "control"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="control"):
        Interposer(Setup(listen=str(edu.folder / "other"), connect=str(edu.folder / "edu"), control=str(path)))
    assert_served(edu)


def test_more_bytes_than_may_follow_are_refused_and_not_waited_for(edu: Interposed) -> None:
    with connected(edu) as control:
        control.sendall(b'{"command": "status"}\n{"command": "mig_data_write", "raw": 99999999999999999999}\n')
        answers = control.makefile("rb")
        assert [json.loads(answers.readline())["ok"] for _ in range(2)] == [True, False]
        assert not answers.readline()
    assert_served(edu)


def test_commands_of_a_controller_that_has_gone_are_run_and_cost_nothing_more(edu: Interposed) -> None:
    """The end of its connection is reported again and again: whoever listened to that would not sleep any more."""
    edu.client()
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1

    edu.interposer.loop.at_end_of_turn(count)
    with connected(edu) as hasty:
        hasty.sendall(
            b'{"command": "request", "name": "DMA_READ", "towards": "to-client", "timeout": 0.5}\n{"command": "hold"}\n'
        )
    with InterposerControl(edu.folder / "control") as other:
        with pytest.raises(ControlError):  # as long as the other's, and begun after it
            other.call("request", name="DMA_READ", towards="to-client", timeout=1)
        assert other.session_status()["holding"]
    assert turns < 100


def test_what_a_file_holds_is_not_in_the_error(edu: Interposed, tmp_path: Path) -> None:
    """Whoever may use the socket may not be one who may read the file."""
    (tmp_path / "secret").write_text(f"{SECRET}:\n  rules: *{SECRET.split()[0]}\n")
    (tmp_path / "other").write_text(f"{SECRET}: 1\nrules: [{{act: {SECRET}}}]\n")
    (tmp_path / "bytes").write_bytes(b"\xff" + SECRET.encode())
    for name in ("secret", "other", "bytes"):
        with pytest.raises(ControlError) as refused:
            edu.control().call("faults", file=str(tmp_path / name))
        assert name in str(refused.value)
        assert not any(word in str(refused.value) for word in SECRET.split())


@pytest.mark.parametrize("command", ["faults", "mig_data_write", "mig_data_read"])
def test_a_pipe_is_not_waited_for(edu: Interposed, tmp_path: Path, command: str) -> None:
    edu.client()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ControlError):
        edu.control().call(command, file=str(tmp_path / "pipe"))
    if command != "faults":
        read, write = os.pipe()
        with pytest.raises(ControlError):
            edu.control().call(command, fd=True, fds=[read if command == "mig_data_write" else write])
        close_all([read, write])
    assert_served(edu)


# lines


def test_descriptors_of_one_command_are_bounded() -> None:
    reader = LineReader(MAX_LINE)
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(MAX_FDS + 1)]
    [line] = reader.feed(b'{"command": "status"}\n', fds)
    assert line.refusal
    assert not line.fds
    assert all(is_closed(fd) for fd in fds)


def test_a_command_that_never_ends_is_refused_with_what_came_beside_it() -> None:
    reader = LineReader(MAX_LINE)
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(MAX_FDS + 1)]
    lines = list[ControlLine]()
    for fd in fds:
        lines += reader.feed(b" ", [fd])
    assert [bool(line.refusal) for line in lines] == [True]
    assert reader.refused
    assert all(is_closed(fd) for fd in fds)


def is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def test_an_interposer_starts_without_what_only_commands_need() -> None:
    """A client waits 5 s for a server that comes back, and pydantic and YAML take longer to load than all the rest."""
    program = "import sys, userdev.interposer.control.server, vfio_user.interposer.interposer; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "yaml"} & {*loaded}
