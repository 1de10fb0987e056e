"""What the guest does when a device is plugged in, here: with folders in place of its /sys, and no time that passes."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from vfio_user.harness.hotplug import memory_size, wait_for_device, wait_for_memory

ADDRESS = "0000:01:00.0"
NO_BAR = "0x0 0x0 0x0"
BAR = "0xfe000000 0xfe0fffff 0x40200"
MIB = 1 << 20

Event = Callable[[], object]


class Guest:
    """Its /sys/bus/pci/devices; what becomes of it, an event each time that there is news; and its kernel's log."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.devices = root / "sys/bus/pci/devices"
        self.devices.mkdir(parents=True)
        self.news: list[Event] = []
        self.log = ""
        self.now = 0.0
        self.memory = 64
        monkeypatch.setitem(sys.modules, "pathlib", SimpleNamespace(Path=lambda path: Path(f"{root}{path}")))
        monkeypatch.setattr(socket, "socket", lambda *_: self)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(klogctl=self.read_log))
        monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else self.memory * MIB // 4096)

    def plug(self, resources: list[str], config: bytes = bytes(64), driver: str = "", **numbers: int) -> Path:
        """A device as the kernel announces it: the files of its BARs come later (`give_bars`)."""
        function = self.devices / ADDRESS
        function.mkdir()
        (function / "resource").write_text("\n".join([*resources, *[NO_BAR] * (7 - len(resources))]))
        (function / "config").write_bytes(config)
        for name, value in ({"vendor": 0x1234, "device": 0x11E8, "class": 0xFF00} | numbers).items():
            (function / name).write_text(f"{value:#x}\n")
        if driver:
            (bound := self.devices.parent / "drivers" / driver).mkdir(parents=True)
            (function / "driver").symlink_to(bound)
        return function

    def read_log(self, _action: int, room: Any, size: int) -> int:
        data = self.log.encode()
        room.raw = data.ljust(size, b"\0")
        return len(data)

    # As a socket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def bind(self, _address: object) -> None:
        return

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0
        self.patience = seconds

    def recv(self, _size: int) -> bytes:
        if not self.news:
            self.now += self.patience
            raise TimeoutError
        self.news.pop(0)()
        return b"add@/devices"


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    return Guest(tmp_path, monkeypatch)


def chain(*links: tuple[int, int, int]) -> bytes:
    """Configuration space with capabilities: where each is, its id, and where the next is said to be."""
    config = bytearray(256)
    config[6] = 0x10
    config[0x34] = links[0][0]
    for at, identity, following in links:
        config[at : at + 2] = bytes((identity, following))
    return bytes(config)


def test_a_device_can_be_used_when_each_of_its_bars_has_its_file(guest: Guest) -> None:
    function = guest.plug([BAR, NO_BAR, BAR], driver="uio_pci_generic", device=0x11E9)
    seen: list[int] = []

    def give(index: int) -> Event:
        def appears() -> None:
            seen.append(index)
            (function / f"resource{index}").touch()

        return appears

    guest.news = [give(0), lambda: None, give(2)]
    found = wait_for_device("0000:01:??.?", 5)
    assert seen == [0, 2]
    assert found == {
        "address": ADDRESS,
        "vendor": 0x1234,
        "device": 0x11E9,
        "class": 0xFF00,
        "driver": "uio_pci_generic",
        "capabilities": [],
        "homeless": [],
    }


def test_what_never_can_be_used_is_told_with_what_there_was(guest: Guest) -> None:
    assert wait_for_device("0000:01:??.?", 5) == {"missing": "no device"}
    guest.plug([BAR])
    assert wait_for_device("0000:01:??.?", 5) == {"missing": ADDRESS}
    assert guest.now == pytest.approx(10)


def test_one_that_goes_away_while_it_is_looked_at_is_looked_for_again(guest: Guest) -> None:
    function = guest.plug([])
    (function / "config").rename(function / "gone")
    guest.news = [lambda: (function / "gone").rename(function / "config")]
    assert wait_for_device("0000:01:??.?", 5)["address"] == ADDRESS


def test_capabilities_are_those_of_the_chain_wherever_that_leads(guest: Guest) -> None:
    function = guest.plug([])
    for config, wanted in (
        (chain((0x40, 0x01, 0x53), (0x50, 0x11, 0)), [0x01, 0x11]),
        (chain((0xFC, 0x10, 0)), [0x10]),
        (chain((0x40, 0x05, 0x40)), [0x05] * 48),
        (chain((0x40, 0x05, 0))[:6] + bytes(250), []),
        (chain((0x40, 0x01, 0xFC))[:64], []),
    ):
        (function / "config").write_bytes(config)
        assert wait_for_device("0000:01:??.?", 5)["capabilities"] == wanted


FAILED = "[    2.1] pci 0000:01:00.0: BAR 0 [mem size 0x00100000]: failed to assign"
FOUND = "[    2.0] pci 0000:01:00.0: [1234:11e8] type 00 class 0xff0000 PCIe Endpoint"


def test_bars_without_an_address_are_those_that_the_kernel_said_so_of_last(guest: Guest) -> None:
    guest.plug([])
    can_not = "[    2.1] pci 0000:01:00.0: BAR 2 [io size 0x0020]: can't assign; no space"
    assigned = "[    2.2] pci 0000:01:00.0: BAR 0 [mem 0xfe000000-0xfe0fffff]: assigned"
    for lines, wanted in (
        ([], []),
        ([FOUND, FAILED, can_not], ["BAR 0 (mem size 0x00100000)", "BAR 2 (io size 0x0020)"]),
        ([FOUND, FAILED, assigned], []),
        ([FOUND, FAILED, FOUND], []),
        ([FOUND, FAILED.replace("01:00.0", "02:00.0")], []),
    ):
        guest.log = "\n".join(lines)
        assert wait_for_device("0000:01:??.?", 5)["homeless"] == wanted, lines


def test_memory_is_waited_for_until_there_is_enough_and_no_longer_than_was_said(guest: Guest) -> None:
    def grow() -> None:
        guest.memory += 32

    guest.news = [grow, lambda: None, grow]
    wait_for_memory(128 * MIB, 5)
    assert (memory_size(), guest.news) == (128 * MIB, [])
    with pytest.raises(TimeoutError):
        wait_for_memory(129 * MIB, 5)
    assert guest.now == pytest.approx(5)


def test_more_news_than_the_guest_can_hold_are_news_too(guest: Guest) -> None:
    """The kernel says ENOBUFS once then, of what it has dropped."""
    function = guest.plug([BAR])

    def overflows(then: Event) -> Event:
        def happens() -> None:
            then()
            raise OSError(errno.ENOBUFS, "No buffer space available")

        return happens

    guest.news = [overflows((function / "resource0").touch)]
    assert wait_for_device("0000:01:??.?", 5)["address"] == ADDRESS
    guest.news = [overflows(lambda: setattr(guest, "memory", 128))]
    wait_for_memory(128 * MIB, 5)
