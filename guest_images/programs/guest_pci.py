"""Drive a PCI device from a guest's user space without an IOMMU: sysfs, and UIO for interrupts.

What every way to a device shares is here too: finding and binding it, its BARs, its config space. guest_vfio.py has the
way through an IOMMU, and `open_device`, which chooses.

Facts: driver-api/uio-howto.rst, PCI/sysfs-pci.rst and admin-guide/mm/pagemap.rst in Documentation/ of the Linux kernel.
Runs in the guest as root, with the standard library alone.
"""

from __future__ import annotations

import abc
import ctypes
import errno
import mmap
import os
import select
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

SYSFS = Path("/sys/bus/pci")
DRIVERS = ("uio_pci_generic",)
PAGE = mmap.PAGESIZE
INTX, MSI, MSIX = "intx", "msi", "msix"

_COMMAND, _STATUS, _CAPABILITIES, _INTERRUPT_PIN = 0x04, 0x06, 0x34, 0x3D
MEMORY_DECODE, BUS_MASTER, INTX_DISABLE = 0x2, 0x4, 0x400  # bits of the command register
_STATUS_INTX, _STATUS_CAPABILITIES = 0x8, 0x10
CAPABILITY_NAMES = {0x01: "pm", 0x05: MSI, 0x09: "vendor", 0x10: "express", 0x11: MSIX}

_NODE_DEADLINE = 5.0  # seconds


# -- finding and binding ---------------------------------------------------------------------------------------------


class DeviceError(Exception):
    """The device, or the guest's kernel, did not do what it should."""


class PciFunction:
    """A PCI function as sysfs shows it. `slot` is "0000:01:00.0"."""

    def __init__(self, slot: str) -> None:
        self.slot = slot
        self.path = SYSFS / "devices" / slot
        if not self.path.exists():
            raise DeviceError(f"there is no PCI device at {slot}")

    def number(self, attribute: str) -> int:
        """A number such as `vendor`, `device`, `class`, `subsystem_vendor` or `revision`."""
        return int((self.path / attribute).read_text(), 0)

    @property
    def ids(self) -> str:
        return f"{self.number('vendor'):04x}:{self.number('device'):04x}"

    @property
    def driver(self) -> str:
        """The driver that has it; "" when none has."""
        link = self.path / "driver"
        return link.resolve().name if link.exists() else ""

    @property
    def iommu_group(self) -> int | None:
        link = self.path / "iommu_group"
        return int(link.resolve().name) if link.exists() else None

    def bar_size(self, index: int) -> int:
        """Bytes of a BAR; 0 when there is none."""
        first, last, _flags = (
            int(word, 16) for word in (self.path / "resource").read_text().split("\n")[index].split()
        )
        return last - first + 1 if last else 0

    def bind(self, driver: str, *modules: str) -> None:
        """Give the function to `driver`, whose `modules` are loaded first where the kernel lacks it."""
        if self.driver == driver:
            return
        if not (SYSFS / "drivers" / driver).exists():
            load_modules(*modules)
        if self.driver:
            (self.path / "driver/unbind").write_text(self.slot)
        (self.path / "driver_override").write_text(driver)
        (SYSFS / "drivers_probe").write_text(self.slot)
        if self.driver != driver:
            raise DeviceError(f"{driver} did not take {self.slot}: dmesg may say why")


def find_devices(ids: str) -> list[PciFunction]:
    """All functions with `ids`, "1234:11e8", by slot."""
    functions = (PciFunction(path.name) for path in sorted((SYSFS / "devices").iterdir()))
    return [function for function in functions if function.ids == ids]


def find_device(ids: str, slot: str = "") -> PciFunction:
    """The function at `slot`, or the only one with `ids`."""
    if slot:
        function = PciFunction(slot if slot.count(":") == 2 else f"0000:{slot}")
        if function.ids != ids:
            raise DeviceError(f"the device at {slot} is {function.ids}, not {ids}")
        return function
    found = find_devices(ids)
    if len(found) != 1:
        where = f": at {', '.join(function.slot for function in found)}; choose one" if found else ""
        raise DeviceError(f"there are {len(found)} devices {ids}{where}")
    return found[0]


def load_modules(*names: str) -> None:
    """Load kernel modules with all that they need."""
    if names and os.spawnvp(os.P_WAIT, "modprobe", ["modprobe", "-a", *names]) != 0:
        raise DeviceError(f"modprobe {' '.join(names)} failed")


# -- what a device is made of ----------------------------------------------------------------------------------------


class Bar:
    """A BAR's memory. Every access is one load or store of 1, 2, 4 or 8 bytes, as wide as asked for.

    `mapping` is the BAR's mmap; where the kernel allows none, accesses are reads and writes of `fd` at `offset`.
    """

    def __init__(self, size: int, mapping: mmap.mmap | None = None, fd: int = -1, offset: int = 0) -> None:
        self.size = size
        self._fd = fd
        self._offset = offset
        self._mapping = mapping
        whole = memoryview(mapping) if mapping is not None else None
        self._views = {width: whole.cast(code) for width, code in _CODES.items()} if whole is not None else {}

    def read(self, offset: int, width: int = 4) -> int:
        self._check(offset, width)
        if self._views:
            return self._views[width][offset // width]
        data = os.pread(self._fd, width, self._offset + offset)
        return int.from_bytes(data, "little")

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self._check(offset, width)
        if self._views:
            self._views[width][offset // width] = value
        else:
            os.pwrite(self._fd, value.to_bytes(width, "little"), self._offset + offset)

    def _check(self, offset: int, width: int) -> None:
        if width not in _CODES or offset % width or not 0 <= offset <= self.size - width:
            raise ValueError(f"no access of {width} bytes at {offset:#x} of a BAR of {self.size:#x} bytes")


# The struct module's codes by width: a memoryview cast to one makes one access of that width
_CODES: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class ConfigSpace:
    """A function's configuration space, little-endian fields at offsets."""

    def __init__(self, fd: int, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset

    def read(self, offset: int, width: int = 4) -> int:
        return int.from_bytes(os.pread(self._fd, width, self._offset + offset), "little")

    def write(self, offset: int, value: int, width: int = 4) -> None:
        os.pwrite(self._fd, value.to_bytes(width, "little"), self._offset + offset)

    def change_command(self, *, set_bits: int = 0, clear: int = 0) -> None:
        self.write(_COMMAND, self.read(_COMMAND, 2) & ~clear | set_bits, 2)

    @property
    def intx_pending(self) -> bool:
        """Whether the function holds its interrupt line active: bit 3 of the status register."""
        return bool(self.read(_STATUS, 2) & _STATUS_INTX)

    def capabilities(self) -> dict[str, int]:
        """Offsets of the capabilities by name ("msi", "msix", "express", ...; a number in hex for others)."""
        found: dict[str, int] = {}
        pointer = self.read(_CAPABILITIES, 1) if self.read(_STATUS, 2) & _STATUS_CAPABILITIES else 0
        while pointer and pointer not in found.values():
            identity = self.read(pointer, 1)
            found[CAPABILITY_NAMES.get(identity, f"{identity:#04x}")] = pointer
            pointer = self.read(pointer + 1, 1) & ~3
        return found

    def vectors(self) -> dict[str, int]:
        """How many interrupts of each kind the function offers."""
        offered = {INTX: 1} if self.read(_INTERRUPT_PIN, 1) else {}
        capabilities = self.capabilities()
        if MSI in capabilities:
            offered[MSI] = 1 << (self.read(capabilities[MSI] + 2, 2) >> 1 & 7)
        if MSIX in capabilities:
            offered[MSIX] = (self.read(capabilities[MSIX] + 2, 2) & 0x7FF) + 1
        return offered


class Interrupt(abc.ABC):
    """One vector. `fd` becomes readable when it comes; `total` counts what `wait` has told of."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.total = 0

    def wait(self, timeout: float) -> int:
        """How often it came since the last call; waits `timeout` seconds for the first. 0 when none came."""
        if not select.select([self.fd], [], [], timeout)[0]:
            return 0
        count = self.take()
        self.total += count
        return count

    @abc.abstractmethod
    def take(self) -> int:
        """How often it came since the last call, when it did."""

    @abc.abstractmethod
    def mask(self) -> None:
        """Hold it back. Only INTx can be; and it is, by the kernel, whenever it comes."""

    @abc.abstractmethod
    def unmask(self) -> None:
        """Let it through again; a line that is still active makes it come at once."""


class UioInterrupt(Interrupt):
    """INTx by uio_pci_generic, which masks it in the command register whenever it comes."""

    def __init__(self, fd: int, config: ConfigSpace) -> None:
        super().__init__(fd)
        self._config = config
        self._seen: int | None = None

    def start(self) -> None:
        """Count from now: the device's file counts since the driver took the device."""
        if self.wait(0):
            self.total = 0
        self.unmask()

    def take(self) -> int:
        events = int.from_bytes(os.read(self.fd, 4), "little")
        count = events - self._seen if self._seen is not None else 1
        self._seen = events
        return count

    def mask(self) -> None:
        self._config.change_command(set_bits=INTX_DISABLE)

    def unmask(self) -> None:
        self._config.change_command(clear=INTX_DISABLE)


class DmaMemory:
    """Zeroed memory that the device reaches at `address` and the program at `bytes`."""

    def __init__(self, mapping: mmap.mmap, address: int, start: int, size: int) -> None:
        self.address = address
        self.size = size
        self.bytes = memoryview(mapping)[start : start + size]


# -- the ways without an IOMMU ---------------------------------------------------------------------------------------


class SysfsDevice:
    """A device without a driver: BARs and config space as sysfs gives them."""

    access = "sysfs"

    def __init__(self, function: PciFunction) -> None:
        self.function = function
        self._fd = os.open(function.path / "config", os.O_RDWR | os.O_CLOEXEC)
        self.config = ConfigSpace(self._fd)
        self.config.change_command(set_bits=MEMORY_DECODE | BUS_MASTER)
        self._physical: list[mmap.mmap] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def bar(self, index: int) -> Bar:
        size = self.function.bar_size(index)
        fd = os.open(self.function.path / f"resource{index}", os.O_RDWR | os.O_CLOEXEC)
        try:
            return Bar(size, mmap.mmap(fd, size))
        finally:
            os.close(fd)

    def interrupts(self, kind: str) -> Sequence[Interrupt]:
        """One object per vector of `kind`, enabled. Raises DeviceError where this way has none."""
        raise DeviceError(f"{self.access} brings no interrupts of the kind {kind}")

    def dma_memory(self, size: int, *, address_bits: int = 64) -> DmaMemory:
        """`size` bytes of memory that the device reaches below 2**`address_bits`, in one piece: physical pages.

        The kernel gives what pages it likes. Those that do not do are kept meanwhile, so that the next are others.
        """
        wanted = -(-size // PAGE)
        step = max(16 << 20, 4 * size)
        misfits: list[mmap.mmap] = []
        try:
            while not misfits or _available_memory() > step + _SPARED:
                mapping = mmap.mmap(-1, step, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
                frames = _page_frames(mapping)
                if (first := _piece(frames, wanted, (1 << address_bits) // PAGE)) is not None:
                    self._physical.append(mapping)
                    return DmaMemory(mapping, frames[first] * PAGE, first * PAGE, size)
                misfits.append(mapping)
        finally:
            for mapping in misfits:
                mapping.close()
        raise DeviceError(f"no {size} bytes in one piece below {address_bits} address bits: memory is scattered")

    def reset(self) -> None:
        """Reset the function by the best way that the kernel knows."""
        (self.function.path / "reset").write_text("1")
        self.config.change_command(set_bits=MEMORY_DECODE | BUS_MASTER)


class UioDevice(SysfsDevice):
    """A device with uio_pci_generic as its driver, for INTx."""

    access = "uio"

    def __init__(self, function: PciFunction) -> None:
        function.bind("uio_pci_generic", *DRIVERS)
        super().__init__(function)
        [node] = (function.path / "uio").iterdir()
        self._uio = open_node(Path("/dev") / node.name)

    def close(self) -> None:
        os.close(self._uio)
        super().close()

    def interrupts(self, kind: str) -> Sequence[Interrupt]:
        if kind != INTX:
            raise DeviceError(f"uio has INTx alone, not {kind}; for that the guest needs an IOMMU")
        interrupt = UioInterrupt(self._uio, self.config)
        interrupt.start()
        return [interrupt]


# -- the kernel's small print -----------------------------------------------------------------------------------------


def open_node(path: Path) -> int:
    """Open a device node that may be a moment old: it can exist before its driver answers (ENXIO)."""
    deadline = time.monotonic() + _NODE_DEADLINE
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DeviceError(f"{path} is in use by another program") from error
            if error.errno not in (errno.ENXIO, errno.ENOENT, errno.ENODEV) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def address_of(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


_SPARED = 32 << 20
"""Bytes that are left to others in a search for memory."""


def _piece(frames: Sequence[int], wanted: int, limit: int) -> int | None:
    """Where the first `wanted` frames begin that follow each other, all below `limit`; a frame 0 is none."""
    run = 0
    for index, frame in enumerate(frames):
        follows = run and frame == frames[index - 1] + 1
        run = (run + 1 if follows else 1) if 0 < frame < limit else 0
        if run == wanted:
            return index - wanted + 1
    return None


def _available_memory() -> int:
    """Bytes that programs can have, as the kernel sees it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _page_frames(mapping: mmap.mmap) -> list[int]:
    """The number of the physical page behind each page of `mapping`; 0 where there is none."""
    count = len(mapping) // PAGE
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(address_of(mapping) // PAGE * 8)
        entries = struct.unpack(f"{count}Q", pagemap.read(8 * count))
    return [entry & (1 << 55) - 1 if entry >> 63 else 0 for entry in entries]
