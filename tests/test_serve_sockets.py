"""The socket of `serve`, of either protocol: private, taken over from the dead, and from nobody else; who connects."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vhost_frontend import FrontEnd
from userdev.errors import UserError
from userdev.serving import program
from userdev.transport import Stream, dialing
from vhost_user.frontend import Disconnected

SERVE = {
    "vfio-user": (sys.executable, "-P", "-m", "vfio_user", "serve", "edu"),
    "vhost-user": (sys.executable, "-P", "-m", "vhost_user", "serve", "rng"),
}
EACH = pytest.mark.parametrize("command", SERVE.values(), ids=SERVE)
VHOST = SERVE["vhost-user"]
SECONDS = 30


@contextmanager
def running(*command: str, umask: int = -1) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, umask=umask)
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def said(program: subprocess.Popen[str]) -> str:
    """The first line, which a program says when it can be connected to, or why it cannot."""
    assert program.stderr is not None
    return program.stderr.readline()


def refused(*command: str, fds: tuple[int, ...] = ()) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, pass_fds=fds)
    assert done.returncode == 2, done.stderr
    assert "internal" not in done.stderr
    return done.stderr


@EACH
@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@pytest.mark.usefixtures("plain_starts")
def test_a_socket_is_its_owners_whatever_the_umask_is(command: tuple[str, ...], umask: int, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(*command, "--socket-path", str(path), umask=umask) as program:
        assert "listening" in said(program)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        program.send_signal(signal.SIGTERM)
        assert program.wait(SECONDS) == 0
    assert not path.exists()


@EACH
def test_a_dead_servers_socket_is_taken_over(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(*command, "--socket-path", str(path)) as program:
        assert "listening" in said(program)
        program.kill()
        program.wait(SECONDS)
    assert path.exists()
    with running(*command, "--socket-path", str(path)) as program:
        assert "listening" in said(program)
        program.send_signal(signal.SIGTERM)
        assert program.wait(SECONDS) == 0
    assert not path.exists()


@EACH
def test_a_living_servers_socket_is_not(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(*command, "--socket-path", str(path)) as program:
        assert "listening" in said(program)
        assert str(path) in refused(*command, "--socket-path", str(path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    (tmp_path / "data").write_text("precious")
    assert "data" in refused(*command, "--socket-path", str(tmp_path / "data"))
    assert (tmp_path / "data").read_text() == "precious"


@EACH
def test_a_descriptor_that_is_no_socket_is_refused_in_words(command: tuple[str, ...], tmp_path: Path) -> None:
    assert "descriptor 77" in refused(*command, "--fd", "77")
    with open(tmp_path / "file", "w") as file:
        assert f"descriptor {file.fileno()}" in refused(*command, "--fd", str(file.fileno()), fds=(file.fileno(),))


def test_a_connection_is_no_socket_that_front_ends_come_to() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = refused(*VHOST, "--fd", str(theirs.fileno()), fds=(theirs.fileno(),))
    assert "has to be a socket that listens" in words
    assert "--client" in words


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(SECONDS)
        yield listener


def served(listener: socket.socket) -> None:
    """A front-end that listens, and is served by who connects."""
    with FrontEnd(Stream(listener.accept()[0])) as front_end:
        front_end.negotiate()
        front_end.share_memory()
        ring = front_end.queue()
        ring.start()
        assert len(ring.exchange(64).data) == 64


def test_it_connects_to_where_the_front_end_listens_and_again_when_that_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(*VHOST, "--socket-path", str(path), "--client") as program:
        assert "connects to" in said(program)
        with listening(path) as listener:  # it was there before
            served(listener)
            served(listener)
        path.unlink()
        with listening(path) as listener:
            served(listener)
        program.send_signal(signal.SIGTERM)
        assert program.wait(SECONDS) == 0
    assert path.exists(), "it is the front-end's"


def test_a_front_end_that_does_not_come_is_waited_for_with_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "s"
    client = ("--socket-path", str(path), "--client")
    assert str(path) in refused(*VHOST, *client, "--reconnect", "0.2")
    with listening(path) as listener, running(*VHOST, *client, "--reconnect", "0.2") as program:
        connection = listener.accept()[0]
        listener.close()
        connection.close()
        assert program.wait(SECONDS) == 0, "it has served"


def test_sigterm_ends_one_that_waits_for_its_front_end(tmp_path: Path) -> None:
    with running(*VHOST, "--socket-path", str(tmp_path / "s"), "--client", "--reconnect", "1000") as program:
        assert "connects to" in said(program)
        program.send_signal(signal.SIGTERM)
        assert program.wait(SECONDS) == 0


def test_a_front_end_that_hangs_up_at_once_keeps_no_processor_busy(tmp_path: Path) -> None:
    """The second comes when the first has ended at the earliest, however late that is seen here; then there are two."""
    with listening(tmp_path / "s") as listener, running(*VHOST, "--socket-path", str(tmp_path / "s"), "--client"):
        ends = []
        for _ in range(4):
            connection = listener.accept()[0]
            ends.append(os.times().elapsed)
            connection.close()
        assert ends[-1] - ends[0] >= 0.15


def test_there_is_a_pause_between_two_tries_however_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited, ends = [0.0], list[float](), [UserError("nobody listens"), UserError("nobody listens"), None, None]

    def wait(seconds: float) -> bool:
        waited.append(round(seconds, 6))
        clock[0] += seconds
        return False

    def connect(*_: object, **__: object) -> str:
        if (error := ends.pop(0)) is not None:
            raise error
        return "a connection"

    monkeypatch.setattr(dialing, "monotonic", lambda: clock[0])
    monkeypatch.setattr(dialing, "connect", connect)
    dialer: Any = dialing.Dialer("unix:/nowhere", 1000)
    dialer._ended = SimpleNamespace(wait=wait)
    assert [dialer.dial(), dialer.dial()] == ["a connection"] * 2
    assert waited == [0, *[dialing.RETRY_SECONDS] * 3]


def test_a_program_whose_server_has_served_nobody_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.faulthandler, "dump_traceback_later", lambda *_, **__: None)  # type: ignore[attr-defined]

    def make(ended: Callable[[], None]) -> Any:
        ended()
        return nullcontext(SimpleNamespace(failure=failure))

    failure: UserError | None = None
    program.run(make)
    failure = UserError("nobody has listened")
    with pytest.raises(UserError, match="nobody has listened"):
        program.run(make)


def test_only_a_path_can_be_connected_to(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as listener:
        words = refused(*VHOST, "--fd", str(listener.fileno()), "--client", fds=(listener.fileno(),))
    assert "unix:PATH" in words


def test_a_front_end_that_is_hung_up_on_finds_the_next(tmp_path: Path) -> None:
    """What was refused ends the connection, and we connect again."""
    with listening(tmp_path / "s") as listener, running(*VHOST, "--socket-path", str(tmp_path / "s"), "--client"):
        with FrontEnd(Stream(listener.accept()[0])) as front_end:
            front_end.send_bytes(b"\xff" * 12)
            with pytest.raises(Disconnected):
                front_end.receive()
        served(listener)
