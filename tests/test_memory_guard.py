"""A file that shrinks in the moment of an access is survived, and any other SIGBUS is what it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from userdev.errors import ProtocolError
from userdev.memory.files import MemoryFiles
from userdev.memory.guard import is_damaged
from vhost_user.memory import FileMapping

ROOT = Path(__file__).parent.parent
PAGE = 4096

BEGIN = """
import mmap, os, threading, zlib
from userdev.memory import guard

def shrunk(size=1 << 20):
    fd = os.memfd_create("shrinks")
    os.ftruncate(fd, size)
    mapped = mmap.mmap(fd, size)
    return fd, mapped
"""

SURVIVED = """
fd, mapped = shrunk()
guard.guard(mapped)
view = memoryview(mapped)
os.ftruncate(fd, 0)
view[5000] = 7
assert view[5000] == 7
assert zlib.crc32(view[8192:])  # in C, without Python's lock
threads = [threading.Thread(target=lambda: [view[at] for at in range(0, 1 << 20, 4096)]) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os.ftruncate(fd, 1 << 20)
assert guard.is_damaged(mapped)
fd, other = shrunk()
guard.guard(other)
assert not guard.is_damaged(other)
print("survived")
"""

ANOTHER = """
fd, mapped = shrunk()
guard.guard(mapped)
fd, other = shrunk()
os.ftruncate(fd, 0)
print("so far", flush=True)
other[0]
"""

CLOSED = """
fd, mapped = shrunk()
guard.guard(mapped)
mapped.close()  # and is kept
fd, guarded = shrunk()
guard.guard(guarded)
os.ftruncate(fd, 0)
guarded[0]
assert guard.is_damaged(guarded)
assert not guard.is_damaged(mapped)
guarded.close()
fd, other = shrunk()
os.ftruncate(fd, 0)
print("so far", flush=True)
other[0]
"""
"""What is mapped where another was before: the kernel gives the same place again."""

NO_MORE = """
fd, mapped = shrunk()
guard.guard(mapped)
del mapped
assert not guard._ranges
print("so far", flush=True)
os.kill(os.getpid(), 7)
"""

DISPLACED = """
import faulthandler
fd, mapped = shrunk()
guard.guard(mapped)
faulthandler.enable()  # takes the handler's place
fd, other = shrunk()
guard.guard(other)
os.ftruncate(fd, 0)
other[0]
print("survived", flush=True)
"""

DISPLACED_AND_ANOTHER = (
    DISPLACED
    + """
fd, another = shrunk()
os.ftruncate(fd, 0)
another[0]
"""
)
"""faulthandler tells where, and gives the signal back to who was there before."""


@for_each_row(
    [
        (SURVIVED, "survived", 0),
        (ANOTHER, "so far", -7),
        (CLOSED, "so far", -7),
        (NO_MORE, "so far", -7),
        (DISPLACED, "survived", 0),
        (DISPLACED_AND_ANOTHER, "survived", -7),
    ],
    ids=[
        "of a guarded file",
        "of another file",
        "where a closed one was",
        "by a signal that somebody sends",
        "where another handler came after",
        "of another file where another handler came after",
    ],
)
def test_a_sigbus_is_survived_where_a_guarded_file_has_shrunk(program: str, says: str, status: int) -> None:
    command = [sys.executable, "-c", BEGIN + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == (says, status), done.stderr


@for_each([True, False], ids=["to write", "to read"])
def test_an_access_behind_the_end_of_a_file_that_has_just_shrunk_is_survived(writable: bool) -> None:
    files, fd = MemoryFiles(), os.memfd_create("not sealed", os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 * PAGE)
    os.pwrite(fd, b"there", PAGE)
    file = files.take(fd, writable, 0, 2 * PAGE)
    assert bytes(file.view[PAGE : PAGE + 5]) == b"there"
    assert not is_damaged(file.map)
    os.ftruncate(fd, PAGE)
    assert bytes(file.view[PAGE : PAGE + 5]) == bytes(5)
    assert is_damaged(file.map)
    with pytest.raises(ProtocolError) as refused:
        file.check(2 * PAGE)
    assert refused.value.errno == errno.EFAULT
    assert all(f"{size:#x}" in str(refused.value) for size in (PAGE, 2 * PAGE))
    os.ftruncate(fd, 2 * PAGE)
    with pytest.raises(ProtocolError):
        file.check(2 * PAGE)
    files.give_back(file)
    assert len(files) == 0
    os.close(fd)


@for_each([(1 << 63, PAGE), (0, 1 << 63), (-PAGE, PAGE)])
def test_what_no_mapping_can_have_is_the_peers_mistake(place: tuple[int, int]) -> None:
    """Unlike a file's, a device's size is nothing that could be looked at before."""
    files, fd = MemoryFiles(), os.open("/dev/zero", os.O_RDWR)
    with pytest.raises(ProtocolError) as refused:
        files.take(fd, True, *place)
    assert refused.value.errno == errno.EINVAL
    assert len(files) == 0
    os.close(fd)


def mapped(fd: int) -> object:
    return MemoryFiles().take(fd, True, 0, 2 * PAGE)


def mapped_alone(fd: int) -> object:
    return FileMapping(fd, 0, 2 * PAGE)


@for_each([mapped, mapped_alone])
def test_a_file_that_shrinks_between_a_look_and_its_mapping_is_refused(
    take: Callable[[int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, look = os.memfd_create("shrinks", os.MFD_CLOEXEC), os.fstat
    os.ftruncate(fd, 2 * PAGE)

    def shrinks(number: int) -> os.stat_result:
        status = look(number)
        os.ftruncate(fd, PAGE)
        return status

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", shrinks)
        with pytest.raises(ProtocolError) as refused:
            take(fd)
    assert refused.value.errno == errno.EINVAL
    os.close(fd)


def test_a_file_that_has_grown_is_mapped_once_whoever_leaves_first() -> None:
    """Who had it before keeps the old mapping, and takes that along: new users share the new one."""
    files, fd = MemoryFiles(), os.memfd_create("grows", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE)
    old = files.take(fd, True, 0, PAGE)
    os.ftruncate(fd, 2 * PAGE)
    new = files.take(fd, True, PAGE, PAGE)
    files.give_back(old)
    assert files.take(fd, True, 0, PAGE) is new
    assert len(files) == 1
    for _ in range(2):
        files.give_back(new)
    assert len(files) == 0
    os.close(fd)
