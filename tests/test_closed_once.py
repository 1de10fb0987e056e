"""Whoever is closed again closes nothing: the numbers of its descriptors are somebody else's by then."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.device_kit import descriptors_left, open_fds
from tests.everything_device import Everything
from userdev.control.lines import LineReader
from userdev.descriptors import RESERVE, FdStore, duplicates
from userdev.process.owned import OwnedDescriptor
from userdev.trace.writer import TraceWriter
from userdev.transport import Framer, Listener, Stream, close_all
from vfio_user.client.eventfd import EventFd
from vfio_user.client.memory import GuestMemory
from vfio_user.device.irq_wiring import IrqInfo, IrqLines
from vfio_user.harness.memory_file import MemoryFile
from vfio_user.migration.memory import Memfd
from vfio_user.testing import memory_file
from vfio_user.wire import Message
from vhost_user.frontend import memory as vhost_memory

Close = Callable[[], object]


def a_file() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def half_a_line(_: Path) -> Close:
    reader = LineReader(100)
    reader.feed(b"half", [a_file(), a_file()])
    return reader.close


def half_a_message(_: Path) -> Close:
    framer = Framer(Message)
    framer.feed(bytes(3), [a_file(), a_file()])
    return framer.close


def kept_descriptors(_: Path) -> Close:
    store, given = FdStore(), a_file()
    store.keep(given)
    os.close(given)
    return store.close


def vectors(_: Path) -> Close:
    lines = IrqLines(IrqInfo(0, 2, 0))
    lines.wire(0, os.eventfd(0))
    lines.wire(1, os.eventfd(0))
    return lines.cut_all


def one_end(_: Path) -> Close:
    here, there = socket.socketpair()
    there.close()
    return Stream(here).close


OWNERS: dict[str, Callable[[Path], Close]] = {
    "an owned descriptor": lambda _: OwnedDescriptor(a_file()).close,
    "half a line of a control socket": half_a_line,
    "half a message": half_a_message,
    "kept descriptors": kept_descriptors,
    "a trace": lambda folder: TraceWriter(folder / "trace", "vfio-user", {}).close,
    "a connection": one_end,
    "a listener": lambda folder: Listener(str(folder / "s")).close,
    "an interrupt's vectors": vectors,
    "a file in memory": lambda _: Memfd("tried", 4096).close,
    "a client's memory": lambda _: GuestMemory(4096).close,
    "a client's eventfd": lambda _: EventFd().close,
    "a front-end's memory": lambda _: vhost_memory.GuestMemory(0x10000).close,
    "a front-end's dirty log": lambda _: vhost_memory.DirtyPages(64).close,
    "a device": lambda _: Everything().close,
}


@for_each(OWNERS)
def test_what_is_closed_again_closes_nothing_of_others(owner: str, tmp_path: Path) -> None:
    before = open_fds()
    close = OWNERS[owner](tmp_path)
    owned = open_fds() - before
    assert owned
    close()
    assert open_fds() == before
    others: set[int] = set()
    while not owned <= {str(fd) for fd in others}:
        others.add(a_file())
    try:
        close()
        assert {str(fd) for fd in others} <= open_fds()
    finally:
        for fd in others:
            os.close(fd)


def test_a_file_is_kept_once_for_each_way_of_access_and_everything_else_singly(tmp_path: Path) -> None:
    """Who may only read has no descriptor to write by, and the other way round."""
    (tmp_path / "file").write_bytes(b"data")
    ways = (os.O_RDONLY, os.O_RDWR, os.O_WRONLY)
    given = [os.open(tmp_path / "file", way) for way in ways for _ in range(2)]
    store, eventfd = FdStore(), os.eventfd(0)
    kept = [store.keep(fd) for fd in given]
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in kept] == [way for way in ways for _ in range(2)]
    assert len(store) == len(set(kept)) == len(ways)
    others = [store.keep(eventfd) for _ in range(2)]
    assert len(store) == len(ways) + len(set(others)) == len(ways) + 2
    for fd in (*kept, *others):
        store.drop(fd)
    assert len(store) == 0
    close_all([*given, eventfd])


TOO_LARGE = 1 << 62
"""Bytes: a file may have them, and nobody can map or write it."""
UNMADE: dict[str, Callable[[], object]] = {
    "a client's memory that cannot be mapped": lambda: GuestMemory(TOO_LARGE),
    "a client's memory of no size": lambda: GuestMemory(-1),
    "a client's memory that is empty": lambda: GuestMemory(0),
    "a guest's memory of no size": lambda: MemoryFile(-1),
    "a front-end's memory that cannot be mapped": lambda: vhost_memory.GuestMemory(TOO_LARGE),
    "a test's memory of no size": lambda: memory_file(-1),
}


def test_memory_that_cannot_be_made_leaves_nothing_open() -> None:
    before = open_fds()
    for case, make in UNMADE.items():
        with pytest.raises((OSError, ValueError)):
            make()
        assert open_fds() == before, case


def test_of_many_duplicates_there_are_all_or_none() -> None:
    fd, before = os.eventfd(0), open_fds()
    for room in range(RESERVE, RESERVE + 4):
        with descriptors_left(room), suppress(OSError):
            close_all(duplicates([fd] * 3))
        assert open_fds() == before | {str(fd)}, room
    os.close(fd)
