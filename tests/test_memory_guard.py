"""A file that shrinks in the moment of an access is survived, and any other SIGBUS is what it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

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

NO_MORE = """
fd, mapped = shrunk()
guard.guard(mapped)
del mapped
assert not guard._ranges
print("so far", flush=True)
os.kill(os.getpid(), 7)
"""


@pytest.mark.parametrize(
    ("program", "says", "status"),
    [(SURVIVED, "survived", 0), (ANOTHER, "so far", -7), (NO_MORE, "so far", -7)],
    ids=["of a guarded file", "of another file", "by a signal that somebody sends"],
)
def test_a_sigbus_is_survived_where_a_guarded_file_has_shrunk(program: str, says: str, status: int) -> None:
    command = [sys.executable, "-c", BEGIN + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == (says, status), done.stderr
