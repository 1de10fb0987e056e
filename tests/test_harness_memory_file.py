"""A guest's memory as a file: what is kept of it is what comes back, and nobody can have another's access fail."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.descriptors import fd_count
from vfio_user.harness.machine import Machine, MachineError
from vfio_user.harness.memory_file import MemoryFile

MIB = 1 << 20


def read(memory: MemoryFile) -> bytes:
    return os.pread(memory.fd, memory.size, 0)


def test_what_was_kept_comes_back_at_its_places(tmp_path: Path) -> None:
    content = {0: b"first", 0x4FFF: b"over a border", 0x80000: bytes(4096), 2 * MIB - 4: b"last"}
    with closing(MemoryFile(2)) as made:
        for at, data in content.items():
            os.pwrite(made.fd, data, at)
        made.keep(tmp_path / "memory")
        wanted = read(made)
    with closing(MemoryFile(2, tmp_path / "memory")) as restored:
        restored.await_filled()
        assert read(restored) == wanted


def test_zeros_take_no_room(tmp_path: Path) -> None:
    with closing(MemoryFile(8)) as made:
        os.pwrite(made.fd, bytes(4 * MIB), 0)
        os.pwrite(made.fd, b"something", 5 * MIB)
        made.keep(tmp_path / "memory")
    found = (tmp_path / "memory").stat()
    assert found.st_size == 8 * MIB
    assert found.st_blocks * 512 <= MIB


@for_each([MIB - 1, MIB + 1])
def test_whoever_maps_it_cannot_make_it_shorter_or_longer(size: int) -> None:
    with closing(MemoryFile(1)) as made, pytest.raises(PermissionError):
        os.ftruncate(made.fd, size)


@for_each(["none", "a folder"])
def test_content_that_cannot_be_read_is_said_where_it_is_waited_for(content: str, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    with closing(MemoryFile(1, tmp_path / content)) as made, pytest.raises(OSError, match=content):
        made.await_filled()


def test_a_machine_of_such_a_memory_could_not_be_restored(tmp_path: Path) -> None:
    """It is the checkpoint that is bad, and made anew."""
    waiting = Machine.__new__(Machine)
    waiting._memory = MemoryFile(1, tmp_path / "none")
    waiting._set_up_migration = lambda **_: None  # type: ignore[method-assign]
    with pytest.raises(MachineError, match="memory could not be read"):
        waiting.load(tmp_path / "state")
    waiting._memory.close()


def test_it_is_whole_however_little_one_system_call_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(MemoryFile(1)) as made:
        os.pwrite(made.fd, content := os.urandom(3 * 4096), 8192)
        made.keep(tmp_path / "memory")
    sendfile = os.sendfile
    monkeypatch.setattr(os, "sendfile", lambda to, source, at, count: sendfile(to, source, at, min(count, 5000)))
    with closing(MemoryFile(1, tmp_path / "memory")) as restored:
        restored.await_filled()
        assert os.pread(restored.fd, len(content), 8192) == content


def test_a_file_that_became_shorter_meanwhile_is_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory").write_bytes(b"x" * MIB)
    monkeypatch.setattr(os, "sendfile", lambda *_: 0)
    with closing(MemoryFile(1, tmp_path / "memory")) as restored, pytest.raises(OSError, match="shorter"):
        restored.await_filled()


def test_its_descriptor_is_closed_when_nobody_writes_to_it_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be another file's then."""
    (tmp_path / "memory").write_bytes(b"x" * MIB)
    closed = threading.Event()
    sendfile = os.sendfile

    def slow(to: int, source: int, at: int, count: int) -> int:
        assert not closed.wait(0.05), "it was closed meanwhile"
        return sendfile(to, source, at, count)

    monkeypatch.setattr(os, "sendfile", slow)
    restored = MemoryFile(1, tmp_path / "memory")
    restored.close()
    closed.set()
    restored.await_filled()


def test_closing_leaves_nothing_open_also_while_it_is_filled(tmp_path: Path) -> None:
    with closing(MemoryFile(4)) as made:
        os.pwrite(made.fd, b"x" * (4 * MIB), 0)
        made.keep(tmp_path / "memory")
    before, threads = fd_count(), threading.active_count()
    made = MemoryFile(4, tmp_path / "memory")
    made.close()
    made.close()
    assert fd_count() == before
    assert threading.active_count() <= threads + 1
