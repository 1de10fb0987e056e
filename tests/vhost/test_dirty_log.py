"""The log of pages that a back-end writes: every page of a write is marked, and nothing beside the log is touched."""

from __future__ import annotations

import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from tests.test_vhost_memory import memfd
from userdev.errors import ProtocolError
from vhost_user.memory import DirtyLog
from vhost_user.wire.payloads import Log


def log_of(fd: int, size: int = 16384, offset: int = 0) -> DirtyLog:
    return DirtyLog(Log(size, offset), fd)


def test_a_log_reaches_to_its_last_byte_and_no_further() -> None:
    with memfd(4096) as fd:
        log = log_of(fd, 1)
        log.mark(7 * 4096, 4096)
        for address, length in ((8 * 4096 - 1, 2), (8 * 4096, 1)):
            with pytest.raises(ProtocolError):
                log.mark(address, length)
        assert os.pread(fd, 2, 0) == b"\xff\0"
        log.close()


@given(st.integers(0, 16384 * 8 * 4096 - 1), st.integers(1, 1 << 20))
def test_every_page_that_was_written_is_marked(address: int, length: int) -> None:
    length = min(length, 16384 * 8 * 4096 - address)
    with memfd(16384) as fd:
        log = log_of(fd)
        log.mark(address, length)
        bits = int.from_bytes(os.pread(fd, 16384, 0), "little")
        log.close()
    first, last = address >> 12, address + length - 1 >> 12
    wanted = (1 << last + 1) - (1 << first)
    assert bits & wanted == wanted
    assert bits.bit_count() <= last - first + 1 + 14


def test_a_mark_takes_nothing_away_and_is_stored_again_where_it_was_taken() -> None:
    with memfd(16384) as fd:
        log = log_of(fd)
        os.pwrite(fd, b"\x80", 0)  # another device's
        log.mark(0, 1)
        assert os.pread(fd, 1, 0)[0] & 0x81 == 0x81
        os.pwrite(fd, b"\0", 0)  # QEMU has seen it
        log.mark(0, 1)
        assert os.pread(fd, 1, 0)[0] & 1
        log.close()


def test_a_log_begins_where_it_says_and_ends_there_too() -> None:
    with memfd(0x3000) as fd:
        log = log_of(fd, 0x100, 0x1010)
        log.mark(0xFF << 15, 1)
        log.mark(0, 0)
        assert os.pread(fd, 0x3000, 0) == bytes(0x110F) + b"\xff" + bytes(0x3000 - 0x1110)
        with pytest.raises(ProtocolError):
            log.mark(0x100 << 15, 1)
        with pytest.raises(ProtocolError):
            log.mark((0x100 << 15) - 1, 2)
        log.close()


@for_each_row([(0, 0), (0x3001, 0), (0x1000, 0x2001), (1 << 63, 0), (1, (1 << 64) - 1)])
def test_a_log_beyond_its_file_is_refused(size: int, offset: int) -> None:
    with memfd(0x3000) as fd, pytest.raises(ProtocolError):
        log_of(fd, size, offset)


@for_each((0, mmap.PAGESIZE, 0x10))
def test_a_log_that_shrinks_is_noticed(offset: int) -> None:
    """By a page, while it is as long as the log would be from the file's beginning."""
    with memfd(0x3000, sealed=False) as fd:
        log = log_of(fd, 0x3000 - offset, offset)
        log.check()
        os.ftruncate(fd, 0x2000)
        with pytest.raises(ProtocolError):
            log.check()
        log.close()
