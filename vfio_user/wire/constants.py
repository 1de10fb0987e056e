"""The numbers inside structures: flag bits, indexes and states, as named in linux/vfio.h and the specification."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class DmaFlags(IntFlag):
    """DMA_MAP of `current` and `region-migration`; MMAP and FILE_IO are libvfio-user's extension."""

    READ = 1
    WRITE = 2
    MMAP = 4
    FILE_IO = 8


class DmaFlagsV6(IntFlag):
    """DMA_MAP of the draft; protections are PROT_READ (1) and PROT_WRITE (2) in a field of their own."""

    MAPPABLE = 1


class UnmapFlags(IntFlag):
    """DMA_UNMAP: `GET_DIRTY_BITMAP` reports what was written, `ALL` unmaps all there is."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class DeviceFlags(IntFlag):
    """VFIO_DEVICE_FLAGS_* (linux/vfio.h)."""

    RESET = 1
    PCI = 2


class RegionFlags(IntFlag):
    """VFIO_REGION_INFO_FLAG_* (linux/vfio.h)."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class RegionCapability(IntEnum):
    """VFIO_REGION_INFO_CAP_* (linux/vfio.h)."""

    SPARSE_MMAP = 1
    TYPE = 2


MIGRATION_REGION_TYPE = (3, 1)
"""Type and subtype of the v1 migration region."""


class RegionIndex(IntEnum):
    """VFIO_PCI_*_REGION_INDEX."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8
    MIGRATION = 9


MOST_REGIONS, MOST_IRQS = 100, 50
"""What QEMU takes of a device (protocol.md 7). Nobody asks for more: a server may answer for any number it says."""
MOST_VECTORS = 1 << 16
"""Of one index, that whoever looks at a session follows: PCI has 2048 at most, and the fields room for 2^32."""


class IrqIndex(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class IrqInfoFlags(IntFlag):
    """VFIO_IRQ_INFO_* (linux/vfio.h)."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqSetFlags(IntFlag):
    """VFIO_IRQ_SET_*: one of the data bits with one of the actions (linux/vfio.h)."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    MASK = 8
    UNMASK = 16
    TRIGGER = 32


IRQ_DATA = IrqSetFlags.DATA_NONE | IrqSetFlags.DATA_BOOL | IrqSetFlags.DATA_EVENTFD
IRQ_ACTION = IrqSetFlags.MASK | IrqSetFlags.UNMASK | IrqSetFlags.TRIGGER


class IoFdType(IntEnum):
    """VFIO_USER_IO_FD_TYPE_*: what a sub-region's descriptor is (specification, GET_REGION_IO_FDS)."""

    IOEVENTFD = 0
    IOREGIONFD = 1
    IOEVENTFD_SHADOW = 2


NO_FD = 0xFFFFFFFF
"""`fd_index` of an I/O sub-region without descriptor."""


class DirtyPagesFlags(IntFlag):
    """VFIO_IOMMU_DIRTY_PAGES_FLAG_* (linux/vfio.h)."""

    START = 1
    STOP = 2
    GET_BITMAP = 4


class FeatureFlags(IntFlag):
    """VFIO_DEVICE_FEATURE_GET, SET and PROBE (linux/vfio.h)."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


FEATURE_MASK = 0xFFFF


class Feature(IntEnum):
    """VFIO_DEVICE_FEATURE_* (linux/vfio.h): those that devices of this protocol have."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8


class MigrationSupport(IntFlag):
    """The flags that GET of the MIGRATION feature answers."""

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


class MigrationState(IntEnum):
    """v2 device states (linux/vfio.h, vfio_device_mig_state)."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7
