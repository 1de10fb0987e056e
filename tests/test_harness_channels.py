"""The serial console and QTest, with a thread or a socket pair in QEMU's place."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import for_each_row
from vfio_user.harness import console as console_module
from vfio_user.harness import log as log_module
from vfio_user.harness.console import Console, ConsoleError
from vfio_user.harness.machine import UP
from vfio_user.harness.qtest import PciAddress, QTest, QTestError


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[Console, socket.socket]]:
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "console.log")
    yield console, theirs
    theirs.close()
    console.close()


def test_the_console_finds_what_came_before_and_what_comes_later(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    guest.sendall(b"[    0.1] early\r\nREA")
    console.wait_for("early", 10)
    threading.Timer(0.02, guest.sendall, [b"DY\r\n"]).start()
    assert console.wait_for(rb"(?m)^READY\b", 10)[0] == b"READY"


def test_a_guest_that_never_stops_talking_is_not_kept_whole(
    line: tuple[Console, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "MAX_KEPT", 10_000)
    console, guest = line
    guest.sendall(b"the beginning\n")
    console.wait_for("the beginning", 10)
    for _ in range(100):
        guest.sendall(b"and so on, " * 100)
    guest.sendall(b"\nmeanwhile\n")
    console.wait_for("meanwhile", 10)
    position = console.position
    assert position > 110_000
    guest.sendall(b"\nthe end\n")
    assert console.wait_for("the end", 10, since=position)[0] == b"the end"
    assert len(console.text) < 30_000
    assert console.text.endswith("the end\n")
    with pytest.raises(ConsoleError):
        console.wait_for("the beginning", 0.01)


def test_a_line_without_an_end_is_several_in_the_log_with_times(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    for _ in range(30):
        guest.sendall(b"x" * 10_000)
    guest.sendall(b"\nthe end\n")
    console.wait_for("the end", 10)
    lines = console.timed_log.read_text().splitlines()
    assert max(map(len, lines)) < 200_000
    assert sum(line.count("x") for line in lines) == 300_000


def test_a_long_log_keeps_its_beginning_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("MAX_SIZE", 10_000), ("KEPT_BEGINNING", 1_000), ("KEPT_END", 2_000)):
        monkeypatch.setattr(log_module, name, size)
    log = log_module.LogFile(tmp_path / "log")
    log.write(b"the beginning\n")
    for number in range(5_000):
        log.write(b"%d and so on\n" % number)
    log.close()
    text = (tmp_path / "log").read_text()
    assert len(text) < 11_000
    assert text.startswith("the beginning\n")
    assert text.endswith("4999 and so on\n")
    assert "bytes are not kept]" in text
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_each_line_is_kept_with_its_time(line: tuple[Console, socket.socket]) -> None:
    """At the end also the one in which the guest has stopped: that is what it said last."""
    console, guest = line
    before = time.time()
    for part in (b"one\r\ntw", b"o\n", b"three"):
        guest.sendall(part)
    console.wait_for("three", 10)
    for lines in (("one", "two"), ("one", "two", "three")):
        moments, texts = zip(*(text.split(" ", 1) for text in console.timed_log.read_text().splitlines()), strict=True)
        assert texts == lines
        assert [float(moment) for moment in moments] == sorted(map(float, moments))
        assert before - 1 <= float(moments[0]) <= float(moments[-1]) <= time.time()
        console.close()


def test_a_wait_can_begin_after_what_was_seen(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    guest.sendall(b"READY\n")
    console.wait_for("READY", 10)
    with pytest.raises(ConsoleError):
        console.wait_for("READY", 0.02, since=console.position)
    began = console.position
    guest.sendall(b"READY again\n")
    assert console.wait_for("READY", 10, since=began)


@for_each_row(
    [
        (b"[    4.2] random: crng init done\r\nREADY\r\n", b"READY\r"),
        (b"guest:~# \x1b[6nREADY\r\n", b"READY\r"),  # a reset took the terminal away from a shell
        (b"NOT READY: no SSH server within 10 s\r\n", b"NOT READY: no SSH server within 10 s\r\n"),
        (b"NOT READY", None),  # the rest is still to come
        (b"[    2.4] Initramfs unpacking failed: write error\r\n", b"Initramfs unpacking failed: write error\r\n"),
    ]
)
def test_a_guest_is_up_when_it_says_so_wherever_in_the_line(console: bytes, found: bytes | None) -> None:
    assert (said[0] if (said := UP.search(console)) else None) == found


def test_a_wait_that_fails_shows_the_last_lines(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    guest.sendall(b"VFS: Unable to mount root fs\n")
    console.wait_for("root fs", 10)
    with pytest.raises(ConsoleError) as caught:
        console.wait_for("READY", 0.02)
    assert "Unable to mount" in caught.value.evidence
    guest.close()
    with pytest.raises(ConsoleError, match="ended"):
        console.wait_for("READY", 10)


def test_everything_is_in_the_log_and_typing_reaches_the_guest(
    line: tuple[Console, socket.socket], tmp_path: Path
) -> None:
    console, guest = line
    console.send(b"ls\n")
    assert guest.recv(10) == b"ls\n"
    guest.sendall(b"\xff\xfe bytes")
    console.wait_for(b"bytes", 10)
    assert (tmp_path / "console.log").read_bytes() == b"\xff\xfe bytes"
    assert "bytes" in console.text


class FakeMachine:
    """QTest over a machine with 64 KiB of ports and config space of a bridge at 00:10.0 and a device behind it."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.memory = bytearray(4096)
        self.address = 0
        self.config = {PciAddress(0, 0x10): bytearray(256), PciAddress(1, 0): bytearray(256)}
        self.config[PciAddress(0, 0x10)][:0x20] = (
            bytes.fromhex("361b0c00 00000000 00000406 00000100").ljust(0x18, b"\0") + b"\x00\x01\x01\x00"
        ).ljust(0x20, b"\0")
        self.config[PciAddress(1, 0)][:4] = bytes.fromhex("3412e811")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self.theirs.makefile() as lines:
            for line in lines:
                self.theirs.sendall(f"IRQ raise 3\nOK{self._do(line.split())}\n".encode())

    def _do(self, words: list[str]) -> str:
        verb, first = words[0], int(words[1], 16)
        if verb == "outl" and first == 0xCF8:
            self.address = int(words[2], 16)
            return ""
        if verb == "read":
            space, offset = self._target(verb, first)
            return " 0x" + space[offset : offset + int(words[2], 16)].hex()
        if verb == "write":
            space, offset = self._target(verb, first)
            space[offset : offset + int(words[2], 16)] = bytes.fromhex(words[3][2:])
            return ""
        width = {"b": 1, "w": 2, "l": 4, "q": 8}[verb[-1]]
        space, offset = self._target(verb, first)
        if verb.startswith(("out", "write")):
            space[offset : offset + width] = int(words[2], 16).to_bytes(width, "little")
            return ""
        return f" {int.from_bytes(space[offset : offset + width], 'little'):#x}"

    def _target(self, verb: str, first: int) -> tuple[bytearray, int]:
        if verb.startswith(("read", "write")):
            return self.memory, first
        where = PciAddress(self.address >> 16 & 0xFF, self.address >> 11 & 0x1F, self.address >> 8 & 7)
        return self.config.get(where, bytearray(b"\xff" * 256)), (self.address & 0xFC) + first - 0xCFC


@pytest.fixture
def machine() -> Iterator[FakeMachine]:
    made = FakeMachine()
    yield made
    made.ours.close()
    made.theirs.close()


@pytest.fixture
def qtest(machine: FakeMachine) -> QTest:
    return QTest(machine.ours)


def test_memory_is_read_and_written_in_every_width(qtest: QTest) -> None:
    qtest.writeq(0x100, 0x1122334455667788)
    assert qtest.readl(0x100) == 0x55667788
    assert qtest.readw(0x106) == 0x1122
    qtest.writeb(0x107, 0xFF)
    assert qtest.readq(0x100) == 0xFF22334455667788
    qtest.write(0x200, b"pattern")
    assert qtest.read(0x200, 7) == b"pattern"


def test_lines_that_are_asked_at_once_are_answered_in_their_order(qtest: QTest) -> None:
    """More of them than sockets have to keep."""
    qtest.write(0x100, bytes(index % 251 for index in range(1000)))
    with qtest.posted():
        qtest.writeb(0x102, 0xAA)
        answers = qtest.ask_all([f"readb {0x100 + index:#x}" for index in range(1000)])
    assert [int(answer, 16) for answer in answers] == [0, 1, 0xAA, *(index % 251 for index in range(3, 1000))]


def test_config_space_is_reached_on_buses_behind_root_ports(qtest: QTest) -> None:
    bus = qtest.secondary_bus(PciAddress.parse("0000:00:10.0"))
    device = PciAddress(bus, 0)
    assert qtest.config_read(device, 0) == 0x11E81234
    assert qtest.config_read(device, 2, 2) == 0x11E8
    qtest.config_write(device, 5, 0xAB, 1)
    assert qtest.config_space(device)[4:6] == b"\0\xab"


def test_functions_are_those_that_answer(qtest: QTest) -> None:
    assert list(qtest.functions()) == [PciAddress(0, 0x10)]


def test_what_is_not_a_bridge_has_no_bus_behind_it(qtest: QTest) -> None:
    with pytest.raises(QTestError):
        qtest.secondary_bus(PciAddress(1, 0))
    with pytest.raises(QTestError):
        qtest.config_read(PciAddress(1, 0), 256)


def test_a_machine_that_is_gone_is_a_sentence(machine: FakeMachine, qtest: QTest) -> None:
    machine.theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(QTestError, match="readl"):
        qtest.readl(0)


def test_a_line_of_the_log_with_times_has_nothing_of_how_the_guest_ends_it(
    line: tuple[Console, socket.socket], tmp_path: Path
) -> None:
    console, guest = line
    guest.sendall(b"one\r\ntwo\nthr\ree\r\nend")
    console.wait_for("end", 10)
    lines = console.timed_log.read_bytes().split(b"\n")
    assert [line.partition(b" ")[2] for line in lines] == [b"one", b"two", b"thr\ree", b""]
