"""What was posted, planned or begun when its owner ends: what runs is waited for, and nothing else runs."""

from __future__ import annotations

import errno
import os
import queue
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

import vfio_user.server
from tests.cases import for_each
from tests.device_kit import open_fds
from tests.session_kit import Prober
from userdev.process import Child
from userdev.serving import program
from userdev.serving.background import THREADS, Background
from userdev.serving.server import Server
from userdev.serving.worker import Worker
from userdev.transport import Stream, close_all, connect
from vfio_user.client import Client


class Held:
    """Work that runs until the test says so."""

    def __init__(self) -> None:
        self.runs, self.may_end = threading.Event(), threading.Event()
        self.ended = 0

    def __call__(self) -> int:
        self.runs.set()
        assert self.may_end.wait(10)
        self.ended += 1
        return self.ended


def closing(close: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=close, daemon=True)
    thread.start()
    return thread


def test_no_thread_of_ours_keeps_a_program_that_ends_and_has_closed_nothing(tmp_path: Path) -> None:
    before = {*threading.enumerate()}
    with ExitStack() as until:
        served = until.enter_context(vfio_user.server.Server(Prober(), str(tmp_path / "s")))
        until.enter_context(Client.connect(str(served.listener.address)))
        worker, background = Worker(lambda work: work()), Background[None](lambda: None, "beside")
        until.callback(worker.close)
        until.callback(background.close)
        worker.call_soon(lambda: None)
        background.submit(lambda: None, lambda _: None)
        until.callback(Child("child", ["sleep", "60"], log=tmp_path / "log").stop)
        begun = {thread.name: thread.daemon for thread in {*threading.enumerate()} - before}
    assert {"accept", "session", "vfio-user worker", "beside", "end of child"} <= begun.keys()
    assert all(begun.values()), begun


POSTS = {
    "posted": lambda worker, work: worker.call_soon(work),
    "planned": lambda worker, work: worker.call_later(0, work),
}


@for_each(POSTS, POSTS)
def test_a_worker_that_is_closed_ends_behind_what_it_is_at(before: str, meanwhile: str) -> None:
    descriptors = open_fds()
    held, done = Held(), list[str]()
    worker = Worker(lambda work: work())
    worker.call_soon(held)  # type: ignore[arg-type]
    assert held.runs.wait(5)
    POSTS[before](worker, lambda: done.append("before"))
    close = closing(worker.close)
    while not worker._ending:
        assert close.is_alive()
    POSTS[meanwhile](worker, lambda: done.append("meanwhile"))
    assert close.is_alive(), "it is waited for"
    held.may_end.set()
    close.join(5)
    assert (held.ended, done) == (1, [])
    POSTS[meanwhile](worker, lambda: done.append("behind"))
    assert (open_fds(), done) == (descriptors, [])
    assert worker._thread is not None
    assert not worker._thread.is_alive()


def test_a_worker_that_is_closed_looks_at_no_descriptor_any_more() -> None:
    descriptors = open_fds()
    held, seen = Held(), list[str]()
    worker, fd, late = Worker(lambda work: work()), os.eventfd(1), os.eventfd(1)
    worker.call_soon(held)  # type: ignore[arg-type]
    assert held.runs.wait(5)
    worker.watch(fd, lambda: seen.append("before"))
    close = closing(worker.close)
    while not worker._ending:
        assert close.is_alive()
    worker.watch(late, lambda: seen.append("meanwhile"))
    held.may_end.set()
    close.join(5)
    worker.watch(late, lambda: seen.append("behind"))
    for each in (fd, late):
        worker.unwatch(each)
        os.close(each)
    assert (open_fds(), seen) == (descriptors, [])


def test_threads_that_are_closed_do_what_waits_and_all_of_it_is_told() -> None:
    held, told = Held(), list[int | Exception]()
    wakes = threading.Semaphore(0)
    background = Background[int](wakes.release, "ending")
    for _ in range(2 * THREADS):
        background.submit(held, told.append)
    assert held.runs.wait(5)
    close = closing(background.close)
    assert told == []
    held.may_end.set()
    close.join(5)
    for _ in range(2 * THREADS):
        assert wakes.acquire(timeout=5)
    background.reap()
    assert sorted(told) == [*range(1, 2 * THREADS + 1)]  # type: ignore[type-var]
    assert background.outstanding == 0
    assert "ending" not in [thread.name for thread in threading.enumerate()]


def test_work_whose_end_is_told_is_not_outstanding_any_more_whatever_becomes_of_telling_it() -> None:
    """Who is told may look whether anything is left, begin more, or fail."""
    background = Background[int](lambda: None, "test")
    seen: list[int] = []

    def fail(_: int | Exception) -> None:
        seen.append(background.outstanding)
        raise KeyError("its owner's")

    background.submit(lambda: 1, fail)
    background.wait()
    with pytest.raises(KeyError):
        background.reap()
    assert (seen, background.outstanding) == ([0], 0)
    background.close()


def test_a_descriptor_that_is_watched_no_longer_wakes_nobody_though_another_has_its_file() -> None:
    """The kernel goes on for as long as anybody has the file, and a worker would turn for ever."""
    done = threading.Event()
    worker, fd = Worker(lambda work: work()), os.eventfd(1)
    kept = os.dup(fd)
    worker.watch(fd, done.set)
    assert done.wait(5)
    worker.unwatch(fd)
    assert worker._selector is not None
    assert fd not in {key.fd for key in worker._selector.get_map().values()}
    worker.close()
    for each in (fd, kept):
        os.close(each)


def test_a_program_that_has_ended_leaves_signals_to_who_had_them() -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        with program._Ending() as ending:
            ending.set()
            ending.wait()
        assert signal.set_wakeup_fd(before) == write
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    finally:
        signal.set_wakeup_fd(before)
        close_all([read, write])


def test_whoever_waits_for_threads_waits_for_what_they_have_not_begun() -> None:
    held, told = Held(), list[int | Exception]()
    background = Background[int](lambda: None, "test")
    for _ in range(THREADS + 1):
        background.submit(held, told.append)
    assert held.runs.wait(5)
    wait = closing(background.wait)
    held.may_end.set()
    wait.join(5)
    assert held.ended == THREADS + 1
    background.reap()
    assert len(told) == THREADS + 1
    background.close()


def test_threads_outlive_whoever_could_not_be_woken() -> None:
    """Who waits is not kept, what has ended is told, and there is a thread for what comes."""
    told: list[int | Exception] = []

    def wake() -> None:
        raise OSError(errno.EBADF, "its session is gone")

    background = Background[int](wake, "test")
    for number in range(2 * THREADS):
        background.submit(partial(int, number), told.append)
        wait = closing(background.wait)
        wait.join(5)
        assert not wait.is_alive(), number
        background.reap()
    end = closing(background.close)
    end.join(5)
    assert (told, end.is_alive()) == ([*range(2 * THREADS)], False)


class Staying:
    """A session that its client does not end."""

    def __init__(self, stream: Stream, _only: bool) -> None:
        self._stream = stream
        self._ended = threading.Event()
        self.stop = self._ended.set

    def run(self) -> None:
        assert self._ended.wait(10)
        self._stream.close()

    def free(self) -> bool:
        return False


def test_no_thread_of_a_server_keeps_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of those that wait for clients and serve one, nor the one that refuses another."""
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.0)
    before = set(threading.enumerate())
    refused: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    may_end = threading.Event()

    def refuse(stream: Stream) -> None:
        refused.put(threading.current_thread())
        assert may_end.wait(10)
        stream.close()

    path = str(tmp_path / "s")
    with Server(path, Staying, refuse):
        clients = [connect(path, timeout=10), connect(path, timeout=10)]
        refusing = refused.get(timeout=10)
        threads = set(threading.enumerate()) - before
        assert refusing in threads
        assert {thread.name: thread.daemon for thread in threads} == dict.fromkeys(
            ("accept", "session", refusing.name), True
        )
        may_end.set()
    refusing.join(10)
    for client in clients:
        client.close()


def test_a_server_that_is_closed_waits_for_the_session_that_is_just_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is served is given back behind that, and nothing may use it any more."""
    monkeypatch.setattr("userdev.serving.server.LOOK_SECONDS", 0.01)
    begins, stopped = threading.Event(), [threading.Semaphore(0), threading.Semaphore(0)]
    sessions: list[Told] = []

    class Told(Staying):
        """Ends with its client; the second when it was told so twice, by who begins it and by who waits for it."""

        def __init__(self, stream: Stream, only: bool) -> None:
            super().__init__(stream, only)
            self.number = len(sessions)
            sessions.append(self)
            self.stop = stopped[self.number].release
            self.has_ended = False
            if self.number:
                begins.set()
                assert all(stopped[0].acquire(timeout=10) for _ in range(2)), "the server waits for this thread"

        def run(self) -> None:
            assert not self.number or all(stopped[1].acquire(timeout=10) for _ in range(2))
            self._stream.close()
            self.has_ended = True

    path = str(tmp_path / "s")
    with Server(path, Told, Stream.close):
        clients = [connect(path, timeout=10), connect(path, timeout=10)]
        assert begins.wait(10)
    assert [session.has_ended for session in sessions] == [True, True]
    for client in clients:
        client.close()


def test_a_client_is_served_though_the_session_before_it_ends_only_once_it_was_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes a moment for that."""
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.0)
    begun = threading.Semaphore(0)
    refused = threading.Event()

    class Leaving(Staying):
        def run(self) -> None:
            begun.release()
            super().run()

        def free(self) -> bool:
            monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 10.0)
            threading.Timer(0.05, self.stop).start()
            return True

    def refuse(stream: Stream) -> None:
        stream.close()
        refused.set()
        begun.release()

    path = str(tmp_path / "s")
    with Server(path, Leaving, refuse):
        clients = [connect(path, timeout=10), connect(path, timeout=10)]
        for _ in clients:
            assert begun.acquire(timeout=10)
        assert not refused.is_set()
        for client in clients:
            client.close()
