"""Every structure of every dialect, as data: a named tuple for its fields and a `Layout` for its bytes.

A structure's name is its command's; the suffix `V6` marks the draft's where dialects differ. Fields are named as in the
specification, but for `index` and `count`, which a tuple already has: those say what they index or count. Offsets are
those in the message less the 16 bytes of the header. What follows the fixed part (data, an array, capabilities) is
the layout's tail.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from userdev.errors import ProtocolError

R = TypeVar("R", bound=tuple[Any, ...])


class Layout(Generic[R]):
    """The bytes of one structure: fixed fields, then an optional tail."""

    def __init__(self, record: type[R], format: str) -> None:
        self.record = record
        self.struct = struct.Struct("<" + format)
        self.size = self.struct.size
        self.name = record.__name__

    def pack(self, *values: int, tail: bytes = b"") -> bytes:
        """The bytes of the structure with these field values, in order, and its tail.

        Raises:
            struct.error: a value does not fit its field; values come from our own code.
        """
        return self.struct.pack(*values) + tail

    def unpack(self, payload: bytes | memoryview, offset: int = 0) -> R:
        """The fields at `offset` of `payload`; the tail is `payload[offset + self.size:]`.

        Raises:
            ProtocolError: (EINVAL) the payload is too short.
        """
        if len(payload) - offset < self.size:
            raise ProtocolError(
                f"{self.name} needs {self.size} bytes and has {max(0, len(payload) - offset)}", errno.EINVAL
            )
        return self.record(*self.struct.unpack_from(payload, offset))

    def unpack_all(self, payload: bytes | memoryview, offset: int = 0) -> Iterator[R]:
        """The structures that fill the rest of `payload`.

        Raises:
            ProtocolError: (EINVAL) the rest is not a whole number of them.
        """
        if (len(payload) - offset) % self.size:
            raise ProtocolError(f"{len(payload) - offset} bytes are no whole number of {self.name}", errno.EINVAL)
        for values in self.struct.iter_unpack(payload[offset:]):
            yield self.record(*values)

    def __repr__(self) -> str:
        return f"<Layout {self.name} {self.size} bytes>"


# VERSION


class Version(NamedTuple):
    """Followed by JSON and a NUL; the draft prints the JSON's offset as 22, which nobody uses (it is 20)."""

    major: int
    minor: int


VERSION = Layout(Version, "HH")


# DMA_MAP, DMA_UNMAP


class DmaMap(NamedTuple):
    argsz: int
    flags: int
    offset: int
    addr: int
    size: int


class DmaEntryV6(NamedTuple):
    """One entry of the table that DMA_MAP and DMA_UNMAP carry in the draft."""

    address: int
    size: int
    offset: int
    protections: int
    flags: int


class DmaUnmap(NamedTuple):
    argsz: int
    flags: int
    addr: int
    size: int


class Bitmap(NamedTuple):
    """Followed by `size` bytes of bitmap, one bit per page of `pgsize`, in little-endian 64-bit words."""

    pgsize: int
    size: int


class BitmapV6(NamedTuple):
    pgsize: int
    size: int
    data: int


DMA_MAP = Layout(DmaMap, "IIQQQ")
DMA_ENTRY_V6 = Layout(DmaEntryV6, "QQQII")
DMA_UNMAP = Layout(DmaUnmap, "IIQQ")
BITMAP = Layout(Bitmap, "QQ")
BITMAP_V6 = Layout(BitmapV6, "QQQ")


# GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS


class DeviceInfo(NamedTuple):
    argsz: int
    flags: int
    num_regions: int
    num_irqs: int


class RegionInfo(NamedTuple):
    """Followed by capabilities at `cap_offset`, counted from the start of this structure."""

    argsz: int
    flags: int
    region: int
    cap_offset: int
    size: int
    offset: int


class CapabilityHeader(NamedTuple):
    id: int
    version: int
    next: int


class SparseMmap(NamedTuple):
    """Followed by `nr_areas` areas."""

    nr_areas: int
    reserved: int


class SparseArea(NamedTuple):
    offset: int
    size: int


class RegionType(NamedTuple):
    type: int
    subtype: int


class RegionIoFds(NamedTuple):
    """Followed by `nr_entries` sub-regions."""

    argsz: int
    flags: int
    region: int
    nr_entries: int


class IoFd(NamedTuple):
    """One slot of the union: an ioeventfd (shadow or not), or an ioregionfd whose user_data is `shadow_offset`."""

    gpa_offset: int
    size: int
    fd_index: int
    type: int
    flags: int
    shadow_mem_fd_index: int
    shadow_offset: int
    datamatch: int


DEVICE_INFO = Layout(DeviceInfo, "IIII")
REGION_INFO = Layout(RegionInfo, "IIIIQQ")
CAPABILITY_HEADER = Layout(CapabilityHeader, "HHI")
SPARSE_MMAP = Layout(SparseMmap, "II")
SPARSE_AREA = Layout(SparseArea, "QQ")
REGION_TYPE = Layout(RegionType, "II")
REGION_IO_FDS = Layout(RegionIoFds, "IIII")
IO_FD = Layout(IoFd, "QQIIIIQQ")


# interrupts


class IrqInfo(NamedTuple):
    argsz: int
    flags: int
    irq: int
    nr_vectors: int


class IrqSet(NamedTuple):
    """Followed by `nr_vectors` bytes where DATA_BOOL is set."""

    argsz: int
    flags: int
    irq: int
    start: int
    nr_vectors: int


class VmInterrupt(NamedTuple):
    """Relative to an index that the message does not carry: the interrupt type that is enabled."""

    subindex: int


IRQ_INFO = Layout(IrqInfo, "IIII")
IRQ_SET = Layout(IrqSet, "IIIII")
VM_INTERRUPT = Layout(VmInterrupt, "I")


# region and DMA access


class RegionAccess(NamedTuple):
    """Followed by `length` bytes in a write and in a read's reply."""

    offset: int
    region: int
    length: int


class WriteMulti(NamedTuple):
    """Followed by `nr_writes` entries."""

    nr_writes: int


class WriteMultiEntry(NamedTuple):
    offset: int
    region: int
    length: int
    data: bytes


class DmaAccess(NamedTuple):
    """Followed by `length` bytes in a write and in a read's reply."""

    address: int
    length: int


REGION_ACCESS = Layout(RegionAccess, "QII")
WRITE_MULTI = Layout(WriteMulti, "Q")
WRITE_MULTI_ENTRY = Layout(WriteMultiEntry, "QII8s")
DMA_ACCESS = Layout(DmaAccess, "QQ")
DMA_ACCESS_32 = Layout(DmaAccess, "QI")


# dirty pages, features, migration data


class DirtyPages(NamedTuple):
    argsz: int
    flags: int


class DirtyRange(NamedTuple):
    """GET_BITMAP of the region-migration dialect; its reply is followed by the bitmap."""

    iova: int
    size: int
    pgsize: int
    bitmap_size: int


class DirtyRangeV6(NamedTuple):
    iova: int
    size: int
    pgsize: int
    bitmap_size: int
    data: int


class Feature(NamedTuple):
    """Followed by the feature's own structure."""

    argsz: int
    flags: int


class MigrationFlags(NamedTuple):
    flags: int


class DeviceState(NamedTuple):
    state: int
    data_fd: int


class LoggingControl(NamedTuple):
    """Followed by `num_ranges` ranges."""

    page_size: int
    num_ranges: int
    reserved: int


class LoggingRange(NamedTuple):
    iova: int
    length: int


class LoggingReport(NamedTuple):
    """The reply is followed by the bitmap."""

    iova: int
    length: int
    page_size: int


class MigrationData(NamedTuple):
    """Followed by `size` bytes in a write and in a read's reply."""

    argsz: int
    size: int


class MigrationRegion(NamedTuple):
    """The registers at the start of the v1 migration region (linux/vfio.h, vfio_device_migration_info)."""

    device_state: int
    reserved: int
    pending_bytes: int
    data_offset: int
    data_size: int


DIRTY_PAGES = Layout(DirtyPages, "II")
DIRTY_RANGE = Layout(DirtyRange, "QQQQ")
DIRTY_RANGE_V6 = Layout(DirtyRangeV6, "QQQQQ")
FEATURE = Layout(Feature, "II")
MIGRATION_FLAGS = Layout(MigrationFlags, "Q")
DEVICE_STATE = Layout(DeviceState, "II")
LOGGING_CONTROL = Layout(LoggingControl, "QII")
LOGGING_RANGE = Layout(LoggingRange, "QQ")
LOGGING_REPORT = Layout(LoggingReport, "QQQ")
MIGRATION_DATA = Layout(MigrationData, "II")
MIGRATION_REGION = Layout(MigrationRegion, "IIQQQ")
