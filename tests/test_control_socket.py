"""The control socket of a device: private, never taken away, and never a reason for the device to wait."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.cases import for_each
from tests.device_kit import descriptors_left
from userdev.control import ControlClient
from userdev.errors import UserError
from userdev_servers import control
from userdev_servers.control import MAX_LINE, ControlSocket
from userdev_servers.gpio import Gpio
from vfio_user.testing import write_register


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def device(path: Path) -> Iterator[Gpio]:
    device = Gpio(control=str(path))
    yield device
    device.close()


class Controller:
    """A connection that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")

    def send(self, line: bytes) -> None:
        self.socket.sendall(line + b"\n")

    def next(self) -> dict[str, Any] | None:
        """The next line; None at the end."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def ask_without_reading(self) -> None:
        """Until the device hangs up."""
        with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
            self._ask_on()

    def _ask_on(self) -> None:
        while True:
            self.send(b'{"command": "get"}')

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_answered(path: Path) -> bool:
    with ControlClient(path) as controller:
        return "outputs" in controller.call("get")


def test_it_is_private_and_gone_at_the_end(path: Path) -> None:
    device = Gpio(control=str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    device.close()
    assert not path.exists()


def test_it_is_not_taken_from_a_living_device(device: Gpio, path: Path) -> None:
    with pytest.raises(UserError, match="in use"):
        Gpio(control=str(path))
    with ControlClient(path) as controller:
        assert controller.call("set", inputs=5)["inputs"] == device.inputs == 5


def test_one_that_a_dead_device_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    device = Gpio(control=str(path))
    assert is_answered(path)
    device.close()


def test_a_controller_that_asks_and_never_reads_is_hung_up_on(device: Gpio, path: Path) -> None:
    with Controller(path) as deaf:
        deaf.ask_without_reading()
        write_register(device, 2, 0, 1, 0x55)
        assert is_answered(path)


def test_a_controller_that_watches_and_never_reads_is_hung_up_on(device: Gpio, path: Path) -> None:
    with Controller(path) as deaf:
        deaf.send(b'{"command": "watch"}')
        assert deaf.next() == {"ok": True, "result": {"watching": True}}
        write_register(device, 2, 0, 1, 0x55)
        assert (deaf.next() or {})["event"]["outputs"] == 0x55, "it does watch, and reads no more from here on"
        for value in range(20_000):
            write_register(device, 2, 0, 1, value & 0xFF)
        assert is_answered(path)
        events = 0
        while deaf.next() is not None:
            events += 1
        assert events < 20_000, "what was kept for it may have been dropped before any of it was sent"


def test_one_that_reads_nothing_for_long_is_let_go(device: Gpio, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "UNREAD_SECONDS", 0.2)
    monkeypatch.setattr(control, "MAX_UNREAD", 1 << 30)
    with Controller(path) as deaf:
        deaf.ask_without_reading()
    assert is_answered(path)


def test_a_device_closes_whoever_is_connected(path: Path) -> None:
    device = Gpio(control=str(path))
    with Controller(path) as deaf, Controller(path) as idle:
        deaf.ask_without_reading()
        closing = threading.Thread(target=device.close, daemon=True)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
        assert idle.next() is None


def test_a_watcher_that_reads_has_all_events_in_order(device: Gpio, path: Path) -> None:
    with Controller(path) as watcher:
        watcher.send(b'{"command": "watch"}')
        assert watcher.next() == {"ok": True, "result": {"watching": True}}
        values = [value & 0xFF for value in range(1, 2000)]
        for value in values:
            write_register(device, 2, 0, 1, value)
            assert (watcher.next() or {})["event"]["outputs"] == value


@pytest.mark.parametrize(
    "line",
    [b"[" * 60_000, b'{"command":' + b"[" * 3000, b"null", b"\xff\xff", b'{"command": ' + b"9" * 5000 + b"}"],
    ids=["nested", "a nested command", "null", "no text", "a number of 5000 digits"],
)
def test_what_is_no_request_is_answered_and_the_connection_goes_on(device: Gpio, path: Path, line: bytes) -> None:
    with Controller(path) as controller:
        controller.send(line)
        answer = controller.next()
        assert answer is not None
        assert answer.keys() == {"ok", "error"}
        controller.send(b'{"command": "get"}')
        assert (controller.next() or {})["ok"]


def test_a_line_without_end_is_refused_in_words(device: Gpio, path: Path) -> None:
    with Controller(path) as controller:
        controller.socket.sendall(b"x" * (control.MAX_LINE + 1))
        assert "bytes" in (controller.next() or {})["error"]["what"]
        assert controller.next() is None


@for_each((b'{"command": "get"', b'{"command": "get"}\n', b'{"command": "watch"}\n{', b"x" * (MAX_LINE + 1)))
def test_descriptors_that_come_with_whatever_a_controller_says_are_closed(said: bytes) -> None:
    def held() -> int:
        names = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return sum("memfd:beside" in name for name in names)

    with TemporaryDirectory() as folder:
        path, fd = Path(folder) / "control", os.memfd_create("beside")
        device = Gpio(control=str(path))
        with Controller(path) as controller:
            socket.send_fds(controller.socket, [said], [fd, fd])
            controller.socket.shutdown(socket.SHUT_WR)
            while controller.next() is not None:
                pass
            assert held() == 1
        device.close()
        os.close(fd)


def test_a_name_that_is_no_command_is_not_repeated_whole(device: Gpio, path: Path) -> None:
    with Controller(path) as controller:
        controller.send(json.dumps({"command": "x" * 10_000}).encode())
        assert len(str((controller.next() or {})["error"])) < 300


def test_so_many_controllers_and_no_more(device: Gpio, path: Path) -> None:
    idle = []
    for _ in range(control.MAX_CONTROLLERS):
        idle.append(Controller(path))
        idle[-1].send(b'{"command": "get"}')
        assert idle[-1].next()
    with Controller(path) as one_more:
        assert "connected already" in (one_more.next() or {})["error"]["what"]
        assert one_more.next() is None
    for each in idle:
        each.close()
    end = time.monotonic() + 60
    while not _is_taken(path):
        assert time.monotonic() < end


def _is_taken(path: Path) -> bool:
    try:
        return is_answered(path)
    except (UserError, OSError):
        return False


def test_a_device_without_threads_turns_controllers_away_and_listens_on(
    device: Gpio, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", start)
        for _ in range(control.MAX_CONTROLLERS + 1):
            with Controller(path) as turned_away:
                assert turned_away.next() is None
    with ControlClient(path) as served:
        assert served.call("get")


def test_a_device_without_descriptors_turns_controllers_away_and_listens_on(device: Gpio, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unlucky:
        unlucky.settimeout(60)
        with descriptors_left(0):
            unlucky.connect(str(path))
            assert unlucky.recv(1) == b""
    assert is_answered(path)


def test_a_defect_of_a_command_is_answered(path: Path) -> None:
    def fails(device: Gpio, request: object) -> dict[str, object]:
        raise RuntimeError("a defect")

    device = Gpio()
    server = ControlSocket(path, device, {"fail": fails})
    with ControlClient(path) as controller, pytest.raises(UserError, match="a defect"):
        controller.call("fail")
    server.close()
    device.close()


def test_a_program_removes_it_when_it_ends(tmp_path: Path, path: Path) -> None:
    arguments = ["serve", "gpio", "--socket-path", str(tmp_path / "s"), "--control", str(path)]
    with subprocess.Popen([sys.executable, "-m", "vfio_user", *arguments], stderr=subprocess.PIPE) as program:
        assert program.stderr is not None
        program.stderr.readline()
        with Controller(path) as connected:
            connected.send(b'{"command": "get"}')
            assert connected.next() is not None  # it has taken the connection, which would else be reset
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0
            assert connected.next() is None
    assert not path.exists()
