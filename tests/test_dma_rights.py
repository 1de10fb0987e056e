"""Every way to client memory against every right, every mode, and memory that was used just before or was not."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from tests.cases import for_each
from vfio_user import ProtocolError
from vfio_user.device import Dma
from vfio_user.testing import RecordingLink, memory_file

READ, WRITE, FILE_IO = 1, 2, 8
PAGE = 4096
SIZE = 3 * PAGE
"""Of each of two regions, at the beginning of addresses: one that is added where it is to be taken away is in them."""
BASE = PAGE
ELSEWHERE = 1 << 40
AT = 0x123
"""No multiple of anything."""
COUNT = 4
NEW = b"new!"


@dataclass(frozen=True)
class Access:
    """A way to memory: what it is called with, whether it writes, and whether it is memory in place."""

    do: Callable[[Dma, int], object]
    writes: bool = False
    in_place: bool = False


def _read_into(dma: Dma, iova: int) -> bytes:
    buffer = bytearray(COUNT)
    dma.read_into(iova, buffer)
    return bytes(buffer)


def _views(dma: Dma, iova: int) -> bytes:
    with dma.views(iova, COUNT) as views:
        assert all(view.readonly for view in views)
        return b"".join(views)


def _write_views(dma: Dma, iova: int) -> None:
    with dma.views(iova, COUNT, write=True) as views:
        done = 0
        for view in views:
            view[:] = NEW[done : done + len(view)]
            done += len(view)


def _gather(dma: Dma, iova: int) -> bytes:
    return b"".join(dma.gather([(iova, 1), (iova + 1, COUNT - 1)]))


def _write_gathered(dma: Dma, iova: int) -> None:
    done = 0
    for view in dma.gather([(iova, 1), (iova + 1, COUNT - 1)], write=True):
        view[:] = NEW[done : done + len(view)]
        done += len(view)


ACCESSES = {
    "read": Access(lambda dma, iova: dma.read(iova, COUNT)),
    "read_into": Access(_read_into),
    "read_u32": Access(lambda dma, iova: dma.read_u32(iova).to_bytes(4, "little")),
    "views": Access(_views, in_place=True),
    "gather": Access(_gather, in_place=True),
    "write": Access(lambda dma, iova: dma.write(iova, NEW), writes=True),
    "write_u32": Access(lambda dma, iova: dma.write_u32(iova, int.from_bytes(NEW, "little")), writes=True),
    "writable views": Access(_write_views, writes=True, in_place=True),
    "writable gather": Access(_write_gathered, writes=True, in_place=True),
}
RIGHTS = {"none": 0, "r": READ, "w": WRITE, "rw": READ | WRITE}
MODES = ("mapped", "not sealed", "file", "message")
CONTENT = bytes(place % 251 for place in range(2 * SIZE))


class Memory:
    """Two neighbouring regions of one mode and right, and one far away that may be used for anything."""

    def __init__(self, mode: str, rights: int) -> None:
        self.content = CONTENT
        self.mode = mode
        self.file = self._file()
        self.client = RecordingLink(memory=bytearray(self.content), base=BASE)
        self.dma = Dma()
        self.dma.link = self.client
        for at in (0, SIZE):
            flags = rights | (FILE_IO if mode == "file" else 0)
            fd = None if mode == "message" else os.dup(self.file)
            self.dma.map(BASE + at, SIZE, flags, fd, at)
        self.dma.map(ELSEWHERE, PAGE, READ | WRITE, memory_file(PAGE))
        self.dma.start_log(PAGE)

    def _file(self) -> int:
        if self.mode != "not sealed":
            return memory_file(len(self.content), self.content)
        file = os.memfd_create("not sealed")
        os.write(file, self.content)
        return file

    def now(self) -> bytes:
        if self.mode == "message":
            return bytes(self.client.memory)
        return os.pread(self.file, 2 * SIZE, 0)

    def dirty(self) -> set[int]:
        """The pages that the log has."""
        bits = int.from_bytes(self.dma.take_dirty(BASE, 2 * SIZE, PAGE), "little")
        return {page for page in range(2 * SIZE // PAGE) if bits >> page & 1}

    def close(self) -> None:
        self.dma.unmap_all()
        os.close(self.file)


EVERY_MEMORY = {f"{mode}-{name}": (mode, rights) for mode in MODES for name, rights in RIGHTS.items()}
PLACES = {"inside": AT, "across": SIZE - 3, "to the border": SIZE - COUNT, "behind": SIZE}


@for_each(EVERY_MEMORY, PLACES)
def test_an_access_is_what_the_client_granted_or_eperm_and_marks_what_it_writes(kind: str, place: str) -> None:
    for name in ACCESSES:
        with contextlib.closing(Memory(*EVERY_MEMORY[kind])) as memory:
            _is_what_was_granted(memory, name, PLACES[place])


def _is_what_was_granted(memory: Memory, name: str, at: int) -> None:
    """First of all accesses, right behind itself, behind one of other memory, and where another has been refused."""
    access, dma, region = ACCESSES[name], memory.dma, memory.dma.regions[0]
    granted = region.writable if access.writes else region.readable
    pages = {at // PAGE, (at + COUNT - 1) // PAGE}
    attempts: list[Callable[[], object]] = [
        lambda: None,
        lambda: None,
        lambda: dma.write(ELSEWHERE, b"elsewhere"),
        lambda: _tried(lambda: dma.read(BASE + at, COUNT)),
        lambda: _tried(lambda: dma.write(BASE + at, memory.content[at : at + COUNT])),
    ]
    for before in attempts:
        before()
        memory.dirty()
        _put_back(memory)
        seen = memory.now()
        if not granted:
            with pytest.raises(ProtocolError) as refused:
                access.do(dma, BASE + at)
            assert refused.value.errno == errno.EPERM
        elif access.in_place and memory.mode in ("file", "message"):
            with pytest.raises(ProtocolError) as refused:
                access.do(dma, BASE + at)
            assert refused.value.errno == errno.EOPNOTSUPP
        elif access.writes:
            access.do(dma, BASE + at)
            assert memory.now() == seen[:at] + NEW + seen[at + COUNT :]
            assert memory.dirty() == pages
            continue
        else:
            assert access.do(dma, BASE + at) == memory.content[at : at + COUNT]
        assert memory.now() == seen
        assert memory.dirty() == set()


def _tried(access: Callable[[], object]) -> None:
    with contextlib.suppress(ProtocolError):
        access()


def _put_back(memory: Memory) -> None:
    memory.client.memory[:] = memory.content
    os.pwrite(memory.file, memory.content, 0)


@for_each(EVERY_MEMORY, [False, True])
def test_rights_are_asked_for_behind_a_range_of_no_bytes_too(kind: str, writes: bool) -> None:
    with contextlib.closing(Memory(*EVERY_MEMORY[kind])) as memory:
        _rights_are_asked_for(memory, writes)


def _rights_are_asked_for(memory: Memory, writes: bool) -> None:
    """A list of pages as a guest has it, with an entry of length 0 wherever it likes."""
    dma, region = memory.dma, memory.dma.regions[0]
    allowed = memory.mode in ("mapped", "not sealed") and (region.writable if writes else region.readable)
    for before in (BASE, ELSEWHERE, BASE + AT):
        _tried(lambda: dma.read(BASE + AT, 1))
        _tried(lambda: dma.write(BASE + AT, memory.content[AT : AT + 1]))
        _tried(partial(dma.read, before, 0))
        for empty in (ELSEWHERE, ELSEWHERE + PAGE, BASE + AT):
            extents = [(empty, 0), (BASE + AT, COUNT)]
            if allowed:
                found = dma.gather(extents, write=writes)
                assert [view.readonly for view in found] == [not writes] * len(found)
                assert b"".join(found) == memory.content[AT : AT + COUNT]
                del found
            else:
                with pytest.raises(ProtocolError):
                    dma.gather(extents, write=writes)


@for_each(MODES, ACCESSES)
def test_an_access_over_the_end_moves_nothing_of_what_is_there(mode: str, name: str) -> None:
    """Behind the last byte, from its last bytes on, and in front of the first; used before, or not."""
    memory = Memory(mode, READ | WRITE)
    try:
        for before in (lambda: None, lambda: memory.dma.read(BASE + SIZE, 1)):
            for iova in (BASE + 2 * SIZE, BASE + 2 * SIZE - 1, BASE - 1, BASE - COUNT):
                before()
                with pytest.raises(ProtocolError) as refused:
                    ACCESSES[name].do(memory.dma, iova)
                in_place_of_none = ACCESSES[name].in_place and mode in ("file", "message")
                assert refused.value.errno in (
                    (errno.EFAULT, errno.EOPNOTSUPP) if in_place_of_none else (errno.EFAULT,)
                )
        assert memory.now() == memory.content
    finally:
        memory.close()
