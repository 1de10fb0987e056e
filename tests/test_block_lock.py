"""Images are locked as QEMU does, so that nobody else writes them meanwhile, and it is told who has them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack, unpack

import pytest

from userdev.errors import UserError
from userdev_servers.block.backing import Backing
from userdev_servers.block.images import open_images
from userdev_servers.block.lock import InUse

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@contextmanager
def opened(text: object) -> Iterator[Backing]:
    (backing,) = open_images(str(text), 512)
    try:
        yield backing
    finally:
        backing.close()


def locked_bytes(path: Path) -> set[int]:
    """Which bytes of a file somebody has locked, as fcntl tells who would lock them alone."""
    with path.open("rb") as file:
        found = set()
        for byte in range(400):
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            if unpack("hhqqi4x", answer)[0] == fcntl.F_RDLCK:
                found.add(byte)
    return found


def test_the_bytes_are_those_that_qemu_locks(disk: Path) -> None:
    """From 100 on what is done: consistent read, write, resize; from 200 on what others may not: write, resize."""
    ours = {300}
    with opened(disk):
        assert locked_bytes(disk) - ours == {100, 101, 103, 201, 203}
    assert not locked_bytes(disk)
    with opened(f"{disk}:ro"):
        assert locked_bytes(disk) - ours == {100, 201, 203}


def test_an_image_is_written_by_one_and_read_by_any_number(disk: Path) -> None:
    with opened(f"{disk}:ro") as first, opened(f"{disk}:ro") as second:
        assert first.lock.held
        assert second.lock.held
        with opened(disk) as writer:
            assert not writer.lock.held
            with pytest.raises(InUse):
                writer.take_over()
    with opened(disk) as writer, opened(f"{disk}:ro") as reader:
        assert writer.lock.held
        assert not reader.lock.held


def test_an_image_that_is_handed_over_can_be_taken_over(disk: Path) -> None:
    with opened(disk) as source, opened(disk) as target:
        source.hand_over()
        target.take_over()
        with pytest.raises(InUse):
            source.take_over()
        target.hand_over()
        source.take_over()
        assert source.lock.held


@pytest.mark.parametrize("byte", [101, 203, 300])
def test_a_lock_that_cannot_be_had_whole_is_not_held_in_part(disk: Path, byte: int) -> None:
    with opened(disk) as backing:
        backing.hand_over()
        with disk.open("r+b") as stranger:
            fcntl.fcntl(stranger, fcntl.F_OFD_SETLK, pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            with pytest.raises(OSError, match="unavailable"):
                backing.take_over()
            assert not locked_bytes(disk)
        backing.take_over()
        assert backing.lock.held


@pytest.mark.parametrize("read_only", [False, True])
def test_who_asked_in_vain_keeps_nobody_away(disk: Path, read_only: bool) -> None:
    """Nor is anything of its question left: what it does, what it forbids, that it hands over."""
    with opened(disk) as holder:
        held = locked_bytes(disk)
        with opened(f"{disk}:ro" if read_only else disk) as other:
            for _ in range(2):
                with pytest.raises(InUse):
                    other.take_over()
            assert locked_bytes(disk) == held
            holder.hand_over()
            with opened(disk) as third:
                assert third.lock.held


QEMU = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for byte in (100, 101, 103, 201, 203):  # those of a writer
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_program(disk: Path) -> Iterator[int]:
    """A process that has locked the image as QEMU does; its number."""
    process = subprocess.Popen(
        [sys.executable, "-c", QEMU, str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process.pid
    finally:
        process.communicate()


def test_what_another_program_writes_is_refused_by_its_name(disk: Path) -> None:
    for image in (disk, f"{disk}:ro"):
        with another_program(disk) as number, pytest.raises(UserError) as refused:
            open_images(str(image), 512)
        assert f"process {number}" in str(refused.value)
        assert str(disk) in str(refused.value)
    with opened(disk) as backing:
        assert backing.lock.held


def test_what_another_server_has_is_opened_for_a_migration_only_and_that_is_said(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(disk):
        assert not caplog.records
        with opened(disk) as second:
            assert not second.lock.held
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "this process itself" in caplog.text


@pytest.mark.parametrize("how", ["the same path", "another name", "one of them read-only"])
def test_one_server_does_not_write_an_image_twice(disk: Path, how: str) -> None:
    second = {
        "the same path": str(disk),
        "another name": str(disk.with_name("link.img")),
        "one of them read-only": f"{disk}:ro",
    }[how]
    disk.with_name("link.img").hardlink_to(disk)
    with pytest.raises(UserError, match="twice"):
        open_images(f"{disk},{second}", 512)
    with opened(disk):
        pass


def test_one_server_may_show_an_image_twice_that_it_only_reads(disk: Path) -> None:
    for backing in open_images(f"{disk}:ro,{disk}:ro", 512):
        assert backing.lock.held
        backing.close()


def test_where_there_are_no_locks_an_image_is_used_without_and_that_is_said(
    disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> bytes:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with opened(disk) as backing:
        assert not backing.lock.possible
        backing.take_over()
    assert len(caplog.records) == 1
