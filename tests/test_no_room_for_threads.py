"""A thread that the system has no room for is asked for again: whoever comes next may be luckier."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each
from tests.device_kit import open_fds
from tests.session_kit import Prober
from userdev.process import Child, spawning
from userdev.serving.background import Background
from userdev.serving.worker import Worker
from vfio_user.client import Client, Disconnected
from vfio_user.server import Server

NO_ROOM = "can't start new thread"
LONG = 10.0


@contextmanager
def no_room_for(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads of that name do not start inside."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError(NO_ROOM)
        start(thread)

    with monkeypatch.context() as inside:
        inside.setattr(threading.Thread, "start", fail)
        yield


def test_the_next_client_is_served_after_one_for_whom_there_was_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(Prober(), str(tmp_path / "s")) as server:
        address = str(server.listener.address)
        with no_room_for("session", monkeypatch), pytest.raises(Disconnected):
            Client.connect(address)
        with Client.connect(address) as client:
            assert client.device_info().num_regions


def test_a_server_of_one_connection_ends_where_there_is_no_thread_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    ended = threading.Event()
    with here, no_room_for("session", monkeypatch), Server(Prober(), f"fd:{there.detach()}", ended=ended.set):
        assert ended.wait(LONG)


def test_a_worker_does_what_is_asked_of_it_later_with_what_it_could_not_do_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    both = threading.Event()
    worker = Worker(lambda work: work())
    before = open_fds()
    with no_room_for("vfio-user worker", monkeypatch), pytest.raises(RuntimeError, match=NO_ROOM):
        worker.call_soon(lambda: done.append("first"))
    assert open_fds() == before
    worker.call_soon(lambda: done.append("second"))
    worker.call_soon(both.set)
    assert both.wait(LONG)
    worker.close()
    assert done == ["first", "second"]


def test_a_program_is_started_once_there_is_a_thread_that_starts_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    nursery = spawning._Nursery()
    command = ["true"]
    with no_room_for("nursery", monkeypatch), pytest.raises(RuntimeError, match=NO_ROOM):
        nursery.do(lambda: subprocess.Popen(command))
    assert nursery.do(lambda: subprocess.Popen(command)).wait(LONG) == 0


def test_a_child_whose_end_nobody_could_wait_for_is_not_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[subprocess.Popen[bytes]] = []

    def noted(*arguments: Any, **more: Any) -> subprocess.Popen[bytes]:
        spawned.append(spawning.spawn(*arguments, **more))
        return spawned[-1]

    monkeypatch.setattr("userdev.process.child.spawn", noted)
    before = open_fds()
    with no_room_for("end of sleeper", monkeypatch), pytest.raises(RuntimeError, match=NO_ROOM):
        Child("sleeper", ["sleep", "60"], log=tmp_path / "log")
    assert spawned[0].returncode == -signal.SIGKILL
    assert open_fds() == before


@for_each([0, 1])
def test_work_off_the_serving_thread_is_refused_whole_or_done_by_the_threads_there_are(
    threads_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = threading.Semaphore(0)
    background = Background[int](woken.release, "disk")
    done: list[int | Exception] = []
    hold = threading.Event()
    for _ in range(threads_before):
        background.submit(lambda: int(hold.wait(LONG)), done.append)
    refused = nullcontext() if threads_before else pytest.raises(RuntimeError, match=NO_ROOM)
    with no_room_for("disk", monkeypatch), refused:
        background.submit(lambda: 2, done.append)
    hold.set()
    background.wait()
    background.reap()
    assert done == [1, 2][: 2 * threads_before]
    assert not background.outstanding
    background.submit(lambda: 3, done.append)
    background.wait()
    background.reap()
    background.close()
    assert done[-1] == 3
