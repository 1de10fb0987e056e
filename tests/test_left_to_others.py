"""What is open and what runs when its program starts another, or ends: no child has it, and no thread keeps the end."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.cases import for_each
from tests.device_kit import open_fds
from tests.everything_device import Everything
from tests.test_closed_once import OWNERS
from userdev.descriptors import duplicate
from userdev.process import Child, ProcessEnd, Watch
from userdev.process.spawning import _Nursery
from userdev.serving.background import Background
from userdev.serving.worker import Worker
from userdev.transport import Stream, close_all
from userdev_servers.control import ControlSocket
from vfio_user.client import Client
from vfio_user.server import Server


def test_who_is_woken_finds_what_has_ended() -> None:
    """It may look at once, and is not woken again."""
    woken, looked, told = SimpleQueue[None](), threading.Event(), list[object]()

    def wake() -> None:
        woken.put(None)
        assert looked.wait(10)

    background: Background[int] = Background(wake, name="beside")
    background.submit(lambda: 7, told.append)
    woken.get(timeout=10)
    background.reap()
    looked.set()
    background.close()
    assert told == [7]


Begin = Callable[[Path, ExitStack], object]


def a_child(folder: Path, held: ExitStack) -> None:
    child = Child("sleeper", ["sleep", "60"], log=folder / "log")
    held.callback(child.stop)
    held.enter_context(ProcessEnd(child.pid))


def a_nursery(folder: Path, held: ExitStack) -> None:
    program = _Nursery().do(lambda: subprocess.Popen(["true"]))
    held.callback(program.wait)


def a_worker(folder: Path, held: ExitStack) -> None:
    worker = Worker(lambda work: work())
    worker.call_soon(lambda: None)
    held.callback(worker.close)


def work_beside(folder: Path, held: ExitStack) -> None:
    background: Background[None] = Background(lambda: None, name="beside")
    background.submit(lambda: None, lambda outcome: None)
    held.callback(background.close)


def a_server(folder: Path, held: ExitStack) -> None:
    device = Everything()
    held.callback(device.close)
    held.enter_context(Server(device, str(folder / "s")))
    held.enter_context(Client.connect(str(folder / "s"))).device_info()


def a_control_socket(folder: Path, held: ExitStack) -> None:
    device = Everything()
    held.callback(device.close)
    control = ControlSocket(folder / "control", device, {})
    held.callback(control.close)
    stream = held.enter_context(socket.socket(socket.AF_UNIX))
    stream.connect(str(folder / "control"))
    stream.sendall(b"{}\n")
    assert stream.recv(1)


RUNNING: dict[str, Begin] = {
    "a child": a_child,
    "what starts programs": a_nursery,
    "a worker": a_worker,
    "work beside a session": work_beside,
    "a server": a_server,
    "a control socket": a_control_socket,
}


@for_each(RUNNING)
def test_no_thread_keeps_its_program_from_ending(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    with ExitStack() as held:
        RUNNING[what](tmp_path, held)
        assert begun
        assert [thread.name for thread in begun if not thread.daemon] == []


def received(folder: Path, held: ExitStack) -> None:
    here, there = (Stream(end) for end in socket.socketpair())
    held.callback(here.close)
    held.callback(there.close)
    there.send(b"x", [0])
    _, fds = here.receive(memoryview(bytearray(1)))
    held.callback(close_all, fds)


OPENED: dict[str, Begin] = {
    **{name: lambda folder, held, make=make: held.callback(make(folder)) for name, make in OWNERS.items()},  # type: ignore[misc]
    **RUNNING,
    "one more for the same file": lambda folder, held: held.callback(os.close, duplicate(0)),
    "what came through a socket": received,
    "a folder that is watched": lambda folder, held: held.enter_context(Watch(folder)),
}


@for_each(OPENED)
def test_no_child_has_what_was_opened(what: str, tmp_path: Path) -> None:
    before = open_fds()
    with ExitStack() as held:
        OPENED[what](tmp_path, held)
        assert [fd for fd in open_fds() - before if os.get_inheritable(int(fd))] == []
