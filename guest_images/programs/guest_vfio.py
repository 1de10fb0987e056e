"""Drive a PCI device from a guest's user space: by VFIO where the guest has an IOMMU, by UIO and sysfs where not.

    with open_device(find_device("1234:11e8")) as device:
        bar = device.bar(0)
        [interrupt] = device.interrupts(INTX)
        memory = device.dma_memory(8192)

=========  ==================  ==========================  ===============  =============================
access     BARs, config space  interrupts                  DMA              what opening does to a device
=========  ==================  ==========================  ===============  =============================
`vfio`     the vfio-pci fd     INTx, MSI, MSI-X, eventfds  through IOMMU    resets it where it can
`uio`      sysfs               INTx by uio_pci_generic     physical pages   nothing
`sysfs`    sysfs               none                        physical pages   nothing
=========  ==================  ==========================  ===============  =============================

Facts: include/uapi/linux/vfio.h and Documentation/driver-api/vfio.rst of the Linux kernel. Runs in the guest as root,
with the standard library alone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from guest_pci import (
    BUS_MASTER,
    INTX,
    MEMORY_DECODE,
    MSI,
    MSIX,
    PAGE,
    Bar,
    ConfigSpace,
    DeviceError,
    DmaMemory,
    Interrupt,
    PciFunction,
    SysfsDevice,
    UioDevice,
    address_of,
    open_node,
)

# _IO(';', 100 + n)
_SET_IOMMU, _GROUP_GET_STATUS, _GROUP_SET_CONTAINER, _GROUP_GET_DEVICE_FD = 0x3B66, 0x3B67, 0x3B68, 0x3B6A
_GET_INFO, _GET_REGION_INFO, _GET_IRQ_INFO, _SET_IRQS, _RESET = 0x3B6B, 0x3B6C, 0x3B6D, 0x3B6E, 0x3B6F
_MAP_DMA = 0x3B71

_TYPE1V2_IOMMU = 3
DRIVERS = ("vfio-pci", "vfio_iommu_type1")
_GROUP_VIABLE = 1
_DEVICE_HAS_RESET = 1
_REGION_MMAP = 4
_CONFIG_REGION = 7
_IRQ_INDEX = {INTX: 0, MSI: 1, MSIX: 2}
_DATA_NONE, _DATA_EVENTFD, _MASK, _UNMASK, _TRIGGER = 1, 4, 8, 16, 32
_DMA_READ_WRITE = 3
_MAP_HUGETLB = 0x40000

_LOWEST_IOVA = 16 << 20  # low, for devices that reach few address bits; not 0, which is too easily right by accident


class VfioInterrupt(Interrupt):
    """One vector, counted by an eventfd."""

    def __init__(self, device: VfioDevice, kind: str) -> None:
        super().__init__(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._device = device
        self._kind = kind

    def take(self) -> int:
        return os.eventfd_read(self.fd)

    def mask(self) -> None:
        self._device.set_irqs(self._kind, _DATA_NONE | _MASK)

    def unmask(self) -> None:
        self._device.set_irqs(self._kind, _DATA_NONE | _UNMASK)


class VfioDevice:
    """A device in a VFIO container of its own, behind the guest's IOMMU."""

    access = "vfio"

    def __init__(self, function: PciFunction) -> None:
        self.function = function
        group = function.iommu_group
        if group is None:
            raise DeviceError("the guest has no IOMMU, so there is no VFIO: use uio")
        function.bind("vfio-pci", *DRIVERS)
        self._container = os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
        self._group = open_node(Path(f"/dev/vfio/{group}"))
        _argsz, flags = struct.unpack("II", _ioctl(self._group, _GROUP_GET_STATUS, struct.pack("II", 8, 0)))
        if not flags & _GROUP_VIABLE:
            raise DeviceError(f"another driver has a device of IOMMU group {group}")
        fcntl.ioctl(self._group, _GROUP_SET_CONTAINER, struct.pack("i", self._container))
        fcntl.ioctl(self._container, _SET_IOMMU, _TYPE1V2_IOMMU)
        self._fd: int = fcntl.ioctl(self._group, _GROUP_GET_DEVICE_FD, bytearray(f"{function.slot}\0".encode()))
        _size, offset, _flags = self._region(_CONFIG_REGION)
        self.config = ConfigSpace(self._fd, offset)
        self.config.change_command(set_bits=MEMORY_DECODE | BUS_MASTER)
        self._next_address = _LOWEST_IOVA
        self._interrupts: list[VfioInterrupt] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the device back; the kernel ends its DMA and interrupts, and resets it where it can."""
        for fd in (*(interrupt.fd for interrupt in self._interrupts), self._fd, self._group, self._container):
            os.close(fd)

    def bar(self, index: int) -> Bar:
        size, offset, flags = self._region(index)
        mapping = mmap.mmap(self._fd, size, offset=offset) if flags & _REGION_MMAP else None
        return Bar(size, mapping, self._fd, offset)

    def interrupts(self, kind: str) -> Sequence[Interrupt]:
        """One object per vector of `kind`, enabled: as many as the device has, or fewer when the kernel has fewer."""
        _argsz, _flags, _index, count = struct.unpack(
            "4I", _ioctl(self._fd, _GET_IRQ_INFO, struct.pack("4I", 16, 0, _IRQ_INDEX[kind], 0))
        )
        if not count:
            raise DeviceError(f"the device has no interrupts of the kind {kind}")
        found = [VfioInterrupt(self, kind) for _ in range(count)]
        self._interrupts += found
        granted = self.set_irqs(kind, _DATA_EVENTFD | _TRIGGER, [interrupt.fd for interrupt in found])
        if granted:  # not done, but so many would do
            found = found[:granted]
            self.set_irqs(kind, _DATA_EVENTFD | _TRIGGER, [interrupt.fd for interrupt in found])
        return found

    def disable_interrupts(self, kind: str) -> None:
        fcntl.ioctl(self._fd, _SET_IRQS, struct.pack("5I", 20, _DATA_NONE | _TRIGGER, _IRQ_INDEX[kind], 0, 0))

    def set_irqs(self, kind: str, flags: int, eventfds: list[int] | None = None) -> int:
        """VFIO_DEVICE_SET_IRQS for the first vectors of `kind`, one per eventfd (one without any)."""
        fds = eventfds or []
        size = 20 + 4 * len(fds)
        request = struct.pack(f"5I{len(fds)}i", size, flags, _IRQ_INDEX[kind], 0, len(fds) or 1, *fds)
        done: int = fcntl.ioctl(self._fd, _SET_IRQS, bytearray(request))
        return done

    def dma_memory(self, size: int, *, address_bits: int = 64, huge: bool = False) -> DmaMemory:
        """`size` bytes of memory, mapped for the device at the next free low address.

        `huge` takes huge pages, which the kernel must have set aside: the device's side then sees 2 MiB maps.
        """
        size_mapped = -(-size // PAGE) * PAGE
        mapping = mmap.mmap(-1, size_mapped, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | (_MAP_HUGETLB if huge else 0))
        address = self._next_address
        if address + size_mapped > 1 << address_bits:
            raise DeviceError(f"no {size} bytes are left below {address_bits} address bits")
        self.map_dma(mapping, address)
        self._next_address += size_mapped + PAGE  # the gap makes an access past the end a fault
        return DmaMemory(mapping, address, 0, size)

    def map_dma(self, mapping: mmap.mmap, address: int) -> None:
        """Let the device read and write `mapping` at its address (IOVA) `address`."""
        where = address_of(mapping)
        fcntl.ioctl(self._container, _MAP_DMA, struct.pack("IIQQQ", 32, _DMA_READ_WRITE, where, address, len(mapping)))

    @property
    def can_reset(self) -> bool:
        info = _ioctl(self._fd, _GET_INFO, struct.pack("6I", 24, 0, 0, 0, 0, 0))
        return bool(struct.unpack("6I", info)[1] & _DEVICE_HAS_RESET)

    def reset(self) -> None:
        fcntl.ioctl(self._fd, _RESET)
        self.config.change_command(set_bits=MEMORY_DECODE | BUS_MASTER)

    def _region(self, index: int) -> tuple[int, int, int]:
        """Size, offset in the device's file, and flags of a region."""
        info = _ioctl(self._fd, _GET_REGION_INFO, struct.pack("IIIIQQ", 32, 0, index, 0, 0, 0))
        _argsz, flags, _index, _capabilities, size, offset = struct.unpack("IIIIQQ", info)
        return size, offset, flags


Device = VfioDevice | UioDevice | SysfsDevice
ACCESS: dict[str, Callable[[PciFunction], Device]] = {
    "vfio": VfioDevice,
    "uio": UioDevice,
    "sysfs": SysfsDevice,
}


def open_device(function: PciFunction, access: str = "auto") -> Device:
    """The device, by the way called `access`; `auto` is vfio where the guest has an IOMMU, else uio."""
    if access == "auto":
        access = "uio" if function.iommu_group is None else "vfio"
    return ACCESS[access](function)


def _ioctl(fd: int, request: int, argument: bytes) -> bytes:
    """An ioctl on a structure; returns the structure as the kernel left it."""
    buffer = bytearray(argument)
    fcntl.ioctl(fd, request, buffer)
    return bytes(buffer)
