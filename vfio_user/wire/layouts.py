"""Every structure of every dialect, as data: a named tuple for its fields and a `Layout` for its bytes.

A structure's name is its command's; the suffix `V6` marks the draft's where dialects differ. Fields are named as in the
specification, but for `index` and `count`, which a tuple already has: those say what they index or count. Offsets are
those in the message less the 16 bytes of the header. What follows the fixed part (data, an array, capabilities) is
the layout's tail.
"""

from __future__ import annotations

from typing import NamedTuple

from userdev.layout import Layout

# VERSION


class VfioUserVersion(NamedTuple):
    """The fixed part, followed by JSON and a NUL; the draft prints the JSON's offset as 22; it is 20."""

    major: int
    minor: int


VERSION = Layout(VfioUserVersion, "HH")


# DMA_MAP, DMA_UNMAP


class VfioUserDmaMap(NamedTuple):
    """struct vfio_user_dma_map; a descriptor beside it is the memory's, from `offset` on."""

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


class VfioUserDmaUnmap(NamedTuple):
    """struct vfio_user_dma_unmap; with GET_DIRTY_BITMAP a `VfioBitmap` follows, and the bits in the reply."""

    argsz: int
    flags: int
    addr: int
    size: int


class VfioBitmap(NamedTuple):
    """The fixed part, followed by `size` bytes of bitmap, a bit per page of `pgsize`, in little-endian 64-bit words."""

    pgsize: int
    size: int


class VfioBitmapV6(NamedTuple):
    """The draft's bitmap: as `VfioBitmap`, with a pointer that means nothing between processes."""

    pgsize: int
    size: int
    data: int


DMA_MAP = Layout(VfioUserDmaMap, "IIQQQ")
DMA_ENTRY_V6 = Layout(DmaEntryV6, "QQQII")
DMA_UNMAP = Layout(VfioUserDmaUnmap, "IIQQ")
BITMAP = Layout(VfioBitmap, "QQ")
BITMAP_V6 = Layout(VfioBitmapV6, "QQQ")


# GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS


class VfioDeviceInfo(NamedTuple):
    """struct vfio_device_info (linux/vfio.h), with a header's argsz."""

    argsz: int
    flags: int
    num_regions: int
    num_irqs: int


class VfioRegionInfo(NamedTuple):
    """The fixed part, followed by capabilities at `cap_offset`, counted from the start of this structure."""

    argsz: int
    flags: int
    region: int
    cap_offset: int
    size: int
    offset: int


class VfioInfoCapHeader(NamedTuple):
    """struct vfio_info_cap_header; `next` counts from the start of the structure that has the chain, 0 ends it."""

    id: int
    version: int
    next: int


class VfioRegionInfoCapSparseMmap(NamedTuple):
    """The fixed part, followed by `nr_areas` areas."""

    nr_areas: int
    reserved: int


class VfioRegionSparseMmapArea(NamedTuple):
    """struct vfio_region_sparse_mmap_area: a piece of a region, in bytes, that the client may map."""

    offset: int
    size: int


class VfioRegionInfoCapType(NamedTuple):
    """struct vfio_region_info_cap_type: what a device-specific region is for."""

    type: int
    subtype: int


class VfioUserRegionIoFds(NamedTuple):
    """The fixed part, followed by `nr_entries` sub-regions."""

    argsz: int
    flags: int
    region: int
    nr_entries: int


class VfioUserSubRegion(NamedTuple):
    """One slot of the union: an ioeventfd (shadow or not), or an ioregionfd whose user_data is `shadow_offset`."""

    gpa_offset: int
    size: int
    fd_index: int
    type: int
    flags: int
    shadow_mem_fd_index: int
    shadow_offset: int
    datamatch: int


DEVICE_INFO = Layout(VfioDeviceInfo, "IIII")
REGION_INFO = Layout(VfioRegionInfo, "IIIIQQ")
CAPABILITY_HEADER = Layout(VfioInfoCapHeader, "HHI")
SPARSE_MMAP = Layout(VfioRegionInfoCapSparseMmap, "II")
SPARSE_AREA = Layout(VfioRegionSparseMmapArea, "QQ")
REGION_TYPE = Layout(VfioRegionInfoCapType, "II")
REGION_IO_FDS = Layout(VfioUserRegionIoFds, "IIII")
IO_FD = Layout(VfioUserSubRegion, "QQIIIIQQ")


# interrupts


class VfioIrqInfo(NamedTuple):
    """struct vfio_irq_info; `nr_vectors` is its `count`."""

    argsz: int
    flags: int
    irq: int
    nr_vectors: int


class VfioIrqSet(NamedTuple):
    """The fixed part, followed by `nr_vectors` bytes where DATA_BOOL is set."""

    argsz: int
    flags: int
    irq: int
    start: int
    nr_vectors: int


class VfioUserVmInterrupt(NamedTuple):
    """Relative to an index that the message does not carry: the interrupt type that is enabled."""

    subindex: int


IRQ_INFO = Layout(VfioIrqInfo, "IIII")
IRQ_SET = Layout(VfioIrqSet, "IIIII")
VM_INTERRUPT = Layout(VfioUserVmInterrupt, "I")


# region and DMA access


class VfioUserRegionAccess(NamedTuple):
    """The fixed part, followed by `length` bytes in a write and in a read's reply."""

    offset: int
    region: int
    length: int


class VfioUserWriteMulti(NamedTuple):
    """The fixed part, followed by `nr_writes` entries."""

    nr_writes: int


class VfioUserWrite(NamedTuple):
    """One write of REGION_WRITE_MULTI: `length` bytes of `data`, at most 8."""

    offset: int
    region: int
    length: int
    data: bytes


class VfioUserDmaAccess(NamedTuple):
    """The fixed part, followed by `length` bytes in a write and in a read's reply."""

    address: int
    length: int


REGION_ACCESS = Layout(VfioUserRegionAccess, "QII")
WRITE_MULTI = Layout(VfioUserWriteMulti, "Q")
WRITE_MULTI_ENTRY = Layout(VfioUserWrite, "QII8s")
DMA_ACCESS = Layout(VfioUserDmaAccess, "QQ")
DMA_ACCESS_32 = Layout(VfioUserDmaAccess, "QI")


# dirty pages, features, migration data


class VfioUserDirtyPages(NamedTuple):
    """struct vfio_user_dirty_pages: what is to be done with the dirty log."""

    argsz: int
    flags: int


class VfioUserBitmapRange(NamedTuple):
    """GET_BITMAP of the region-migration dialect; its reply is followed by the bitmap."""

    iova: int
    size: int
    pgsize: int
    bitmap_size: int


class VfioUserBitmapRangeV6(NamedTuple):
    """The draft's range of GET_BITMAP: as `VfioUserBitmapRange`, with a pointer."""

    iova: int
    size: int
    pgsize: int
    bitmap_size: int
    data: int


class VfioDeviceFeature(NamedTuple):
    """The fixed part, followed by the feature's own structure."""

    argsz: int
    flags: int


class VfioDeviceFeatureMigration(NamedTuple):
    """struct vfio_device_feature_migration: `MigrationSupport` bits."""

    flags: int


class VfioDeviceFeatureMigState(NamedTuple):
    """struct vfio_device_feature_mig_state; `data_fd` is -1, as data travels in messages."""

    state: int
    data_fd: int


class VfioDeviceFeatureDmaLoggingControl(NamedTuple):
    """The fixed part, followed by `num_ranges` ranges."""

    page_size: int
    num_ranges: int
    reserved: int


class VfioDeviceFeatureDmaLoggingRange(NamedTuple):
    """struct vfio_device_feature_dma_logging_range, in bytes of IOVA."""

    iova: int
    length: int


class VfioDeviceFeatureDmaLoggingReport(NamedTuple):
    """The reply is followed by the bitmap."""

    iova: int
    length: int
    page_size: int


class VfioUserMigData(NamedTuple):
    """The fixed part, followed by `size` bytes in a write and in a read's reply."""

    argsz: int
    size: int


class VfioDeviceMigrationInfo(NamedTuple):
    """The registers at the start of the v1 migration region (linux/vfio.h, vfio_device_migration_info)."""

    device_state: int
    reserved: int
    pending_bytes: int
    data_offset: int
    data_size: int


DIRTY_PAGES = Layout(VfioUserDirtyPages, "II")
DIRTY_RANGE = Layout(VfioUserBitmapRange, "QQQQ")
DIRTY_RANGE_V6 = Layout(VfioUserBitmapRangeV6, "QQQQQ")
FEATURE = Layout(VfioDeviceFeature, "II")
MIGRATION_FLAGS = Layout(VfioDeviceFeatureMigration, "Q")
DEVICE_STATE = Layout(VfioDeviceFeatureMigState, "II")
LOGGING_CONTROL = Layout(VfioDeviceFeatureDmaLoggingControl, "QII")
LOGGING_RANGE = Layout(VfioDeviceFeatureDmaLoggingRange, "QQ")
LOGGING_REPORT = Layout(VfioDeviceFeatureDmaLoggingReport, "QQQ")
MIGRATION_DATA = Layout(VfioUserMigData, "II")
MIGRATION_REGION = Layout(VfioDeviceMigrationInfo, "IIQQQ")
