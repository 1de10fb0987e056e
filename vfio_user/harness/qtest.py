"""QTest: memory, I/O ports and PCI config space of a machine from outside, without its guest.

It works on a running and on a paused machine (`-qtest` beside any accelerator), and so reads and writes a device's
registers where the guest cannot. Protocol: QEMU's system/qtest.c, one line asked and one answered.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from userdev.errors import UserError
from userdev.process import Deadline

# PCI configuration mechanism 1: the address goes to one port, the data through another.
_CONFIG_ADDRESS = 0xCF8
_CONFIG_DATA = 0xCFC

_IN = MappingProxyType({1: "inb", 2: "inw", 4: "inl"})
_OUT = MappingProxyType({1: "outb", 2: "outw", 4: "outl"})

_MOST_POSTED = 200  # few enough for the sockets' buffers, which nobody reads meanwhile

_CLASS_BRIDGE = b"\x04\x06"
_HEADER_CLASS = 0x0A
_HEADER_SECONDARY_BUS = 0x19


class QTestError(UserError):
    """QEMU refused a QTest command, or is gone."""


@dataclass(frozen=True, order=True)
class PciAddress:
    """Bus, device and function of a PCI function."""

    bus: int
    device: int
    function: int = 0

    def __str__(self) -> str:
        return f"{self.bus:02x}:{self.device:02x}.{self.function}"

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """Parse "00:1f.2", or with a domain as the guest's sysfs writes it."""
        bus, _, rest = text[-7:].partition(":")
        device, _, function = rest.partition(".")
        return cls(int(bus, 16), int(device, 16), int(function, 16))


class QTest:
    """The connection. Addresses are guest-physical, values unsigned, widths in bytes.

    What came too late, or behind a refusal, is nobody's answer: lines and answers are counted, as they have no numbers.
    """

    def __init__(self, connection: socket.socket, *, limit: float = 30.0) -> None:
        self._connection = connection
        self._limit = limit
        self._shared: Deadline | None = None
        self._buffer = b""
        self._posting = False
        self._posted: list[tuple[int, str]] = []  # sent, and nobody has waited for them yet
        self._sent = self._heard = 0
        self._cut_off = False
        """A line may have been sent in part."""

    def close(self) -> None:
        """Close the socket; QEMU stops serving QTest, and the machine goes on."""
        self._connection.close()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Let all that is asked in the block have these seconds together."""
        self._shared = Deadline(seconds)
        try:
            yield
        finally:
            self._shared = None

    @contextmanager
    def posted(self) -> Iterator[None]:
        """Send the writes in the block without waiting for each; the next read, or the block's end, hears of all."""
        self._posting = True
        try:
            yield
            self._hear_of_posted()
        finally:
            self._posting = False
            self._posted.clear()

    def readb(self, address: int) -> int:
        """Read 8 bits of memory."""
        return self._ask(f"readb {address:#x}")

    def readw(self, address: int) -> int:
        """Read 16 bits of memory, in the machine's byte order."""
        return self._ask(f"readw {address:#x}")

    def readl(self, address: int) -> int:
        """Read 32 bits of memory, in the machine's byte order."""
        return self._ask(f"readl {address:#x}")

    def readq(self, address: int) -> int:
        """Read 64 bits of memory, in the machine's byte order."""
        return self._ask(f"readq {address:#x}")

    def writeb(self, address: int, value: int) -> None:
        """Write 8 bits of memory."""
        self._ask(f"writeb {address:#x} {value:#x}")

    def writew(self, address: int, value: int) -> None:
        """Write 16 bits of memory, in the machine's byte order."""
        self._ask(f"writew {address:#x} {value:#x}")

    def writel(self, address: int, value: int) -> None:
        """Write 32 bits of memory, in the machine's byte order."""
        self._ask(f"writel {address:#x} {value:#x}")

    def writeq(self, address: int, value: int) -> None:
        """Write 64 bits of memory, in the machine's byte order."""
        self._ask(f"writeq {address:#x} {value:#x}")

    def inb(self, port: int) -> int:
        """Read 8 bits of an I/O port."""
        return self._ask(f"inb {port:#x}")

    def inw(self, port: int) -> int:
        """Read 16 bits of an I/O port."""
        return self._ask(f"inw {port:#x}")

    def inl(self, port: int) -> int:
        """Read 32 bits of an I/O port."""
        return self._ask(f"inl {port:#x}")

    def outb(self, port: int, value: int) -> None:
        """Write 8 bits to an I/O port."""
        self._ask(f"outb {port:#x} {value:#x}")

    def outw(self, port: int, value: int) -> None:
        """Write 16 bits to an I/O port."""
        self._ask(f"outw {port:#x} {value:#x}")

    def outl(self, port: int, value: int) -> None:
        """Write 32 bits to an I/O port."""
        self._ask(f"outl {port:#x} {value:#x}")

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of guest memory."""
        return bytes.fromhex(self._line(f"read {address:#x} {size:#x}").removeprefix("0x")) if size else b""

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory; QEMU marks its pages dirty."""
        if data:
            self._line(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def config_read(self, function: PciAddress, offset: int, width: int = 4) -> int:
        """A register of a function's config space (its first 256 bytes); all-ones when no function is there.

        On a running machine this races with the guest's own use of the two ports: pause it first.
        """
        self._select(function, offset)
        return self._ask(f"{_IN[width]} {_CONFIG_DATA + offset % 4:#x}")

    def config_write(self, function: PciAddress, offset: int, value: int, width: int = 4) -> None:
        """Write a register of a function's config space; see `config_read`."""
        self._select(function, offset)
        self._ask(f"{_OUT[width]} {_CONFIG_DATA + offset % 4:#x} {value:#x}")

    def config_space(self, function: PciAddress, known: bytes = bytes(256), registers: Iterable[int] = ()) -> bytes:
        """The first 256 bytes of a function's config space; with `registers` (offsets of 4 bytes each) those are read
        alone, and the others are as in `known`.
        """
        space = bytearray(known)
        offsets = list(registers or range(0, 256, 4))
        lines = [line for offset in offsets for line in (self._selection(function, offset), f"inl {_CONFIG_DATA:#x}")]
        for offset, answer in zip(offsets, self.ask_all(lines)[1::2], strict=True):
            space[offset : offset + 4] = int(answer, 16).to_bytes(4, "little")
        return bytes(space)

    def secondary_bus(self, port: PciAddress) -> int:
        """The number that the guest's firmware or kernel gave to the bus behind a bridge or root port.

        Raises:
            QTestError: `port` is not a bridge or its bus has no number yet.
        """
        header = self.config_space(port, registers=(_HEADER_CLASS & ~3, _HEADER_SECONDARY_BUS & ~3))
        if header[_HEADER_CLASS : _HEADER_CLASS + 2] != _CLASS_BRIDGE:
            raise QTestError(f"there is no PCI bridge at {port}")
        bus = header[_HEADER_SECONDARY_BUS]
        if bus == 0:
            raise QTestError(f"the bus behind {port} has no number yet: the firmware has not run")
        return bus

    def functions(self, bus: int = 0) -> Iterator[PciAddress]:
        """The functions that answer on a bus."""
        for device in range(32):
            for function in range(8):
                address = PciAddress(bus, device, function)
                if self.config_read(address, 0, 2) != 0xFFFF:
                    yield address
                elif function == 0:
                    break

    def ask_all(self, lines: Sequence[str]) -> list[str]:
        """Send lines of QTest's protocol at once, and return what follows OK in the answer to each."""
        found: list[str] = []
        for at in range(0, len(lines), _MOST_POSTED):
            some = lines[at : at + _MOST_POSTED]
            deadline = self._shared or Deadline(self._limit)
            self._hear_of_posted()
            numbers = self._send(some, deadline)
            found += [self._answer(number, line, deadline) for number, line in zip(numbers, some, strict=True)]
        return found

    def _select(self, function: PciAddress, offset: int) -> None:
        self._line(self._selection(function, offset))

    @staticmethod
    def _selection(function: PciAddress, offset: int) -> str:
        """The line that makes the data port a register of config space."""
        if not 0 <= offset < 256:
            raise QTestError(f"offset {offset:#x} is outside the 256 bytes that ports 0xcf8 and 0xcfc reach")
        where = function.bus << 16 | function.device << 11 | function.function << 8
        return f"outl {_CONFIG_ADDRESS:#x} {1 << 31 | where | offset & 0xFC:#x}"

    def _ask(self, line: str) -> int:
        answer = self._line(line)
        return int(answer, 16) if answer else 0

    def _line(self, line: str) -> str:
        """Send a line and return what follows OK in the answer."""
        deadline = self._shared or Deadline(self._limit)
        (number,) = self._send([line], deadline)
        if self._posting and line.startswith(("out", "write")) and len(self._posted) < _MOST_POSTED:
            self._posted.append((number, line))
            return ""
        self._hear_of_posted()
        return self._answer(number, line, deadline)

    def _send(self, lines: Sequence[str], deadline: Deadline) -> range:
        """Send lines; their numbers."""
        if self._cut_off:
            raise QTestError("a line was sent to QTest in part, and QEMU would take the next for the rest of it")
        self._cut_off = True
        with _said_of(lines[0]):
            self._connection.settimeout(deadline.remaining or 0.001)
            self._connection.sendall("\n".join(lines).encode() + b"\n")
        self._cut_off = False
        first, self._sent = self._sent + 1, self._sent + len(lines)
        return range(first, self._sent + 1)

    def _hear_of_posted(self) -> None:
        posted, self._posted = self._posted, []
        for number, line in posted:
            self._answer(number, line, self._shared or Deadline(self._limit))

    def _answer(self, number: int, line: str, deadline: Deadline) -> str:
        while True:
            with _said_of(line):
                status, _, value = self._receive_line(deadline).partition(" ")
            if status == "IRQ":  # lines of an interrupt controller that somebody intercepts
                continue
            self._heard += 1
            if self._heard < number:  # of a line whose answer nobody waits for any more
                continue
            if status == "OK":
                return value.strip()
            raise QTestError(f"QTest refused {line.split()[0]!r}: {status} {value}")

    def _receive_line(self, deadline: Deadline) -> str:
        while b"\n" not in self._buffer:
            self._connection.settimeout(deadline.remaining or 0.001)
            chunk = self._connection.recv(65536)
            if not chunk:
                raise ConnectionResetError("QEMU is gone")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")


@contextmanager
def _said_of(line: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise QTestError(f"no answer to QTest's {line.split()[0]!r}: {error or 'QEMU is gone'}") from error
