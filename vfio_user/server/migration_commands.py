"""Migration by v2's messages: DEVICE_FEATURE, MIG_DATA_READ and _WRITE (docs/protocol.md 10.1, 10.2; linux/vfio.h).

Each function takes a request's payload and returns its reply's. A refusal is a header: libvfio-user echoes the payload
of some of them, which nobody needs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from userdev.errors import ProtocolError
from userdev.memory.bitmap import bitmap_size
from vfio_user.migration import Migration
from vfio_user.wire.constants import FEATURE_MASK, Feature, FeatureFlags, MigrationSupport
from vfio_user.wire.layouts import (
    DEVICE_STATE,
    FEATURE,
    LOGGING_CONTROL,
    LOGGING_RANGE,
    LOGGING_REPORT,
    MIGRATION_DATA,
    MIGRATION_FLAGS,
)

GET, SET, PROBE = (int(flag) for flag in FeatureFlags)

SUPPORT = MigrationSupport.STOP_COPY | MigrationSupport.PRE_COPY

MAX_BITMAP = 64 << 20
"""Bytes of one reported bitmap: 2 TiB in pages of 4 KiB."""


@dataclass(frozen=True)
class Operations:
    """The operations on one feature. Functions take the data behind the fixed part, and return such data.

    `get` is also told how many bytes of data the client has room for.
    """

    get: Callable[[Migration, bytes, int], bytes] | None = None
    set: Callable[[Migration, bytes], None] | None = None

    @property
    def flags(self) -> int:
        """The flags VFIO_DEVICE_FEATURE_GET and _SET, as PROBE is answered."""
        return (GET if self.get else 0) | (SET if self.set else 0)


def device_feature(migration: Migration, payload: bytes) -> bytes:
    """Probe, get or set a feature.

    Raises:
        ProtocolError: EINVAL for anything that docs/protocol.md 10.1 lists; what getting or setting raises.
    """
    argsz, flags = FEATURE.unpack(payload)
    feature, operations = _FEATURES.get(flags & FEATURE_MASK), flags & ~FEATURE_MASK
    if feature is None or operations & ~(feature.flags | PROBE):
        raise _refuse(f"flags {flags:#x}, a feature or operation that there is not")
    if operations & PROBE or operations == SET:
        if argsz < len(payload):
            raise _refuse(f"argsz {argsz} of {len(payload)} bytes")
        if not operations & PROBE:
            assert feature.set is not None
            feature.set(migration, payload[FEATURE.size :])
        return payload
    if operations != GET:
        raise _refuse(f"flags {flags:#x}, not one operation")
    assert feature.get is not None
    data = feature.get(migration, payload[FEATURE.size :], argsz - FEATURE.size)
    _check_room(len(data), argsz - FEATURE.size)
    return FEATURE.pack(FEATURE.size + len(data), flags, tail=data)


def mig_data_read(migration: Migration, payload: bytes, limit: int) -> bytes:
    """Bytes of the saved state; a size of 0 is the end in STOP_COPY, and nothing yet in PRE_COPY.

    Raises:
        ProtocolError: EINVAL in other states, above `limit`, and without room for what is asked for.
    """
    argsz, size = MIGRATION_DATA.unpack(payload)
    _check_transfer("MIG_DATA_READ", argsz, size, limit)
    data = migration.read_state(size)
    return MIGRATION_DATA.pack(MIGRATION_DATA.size + len(data), len(data), tail=data)


def mig_data_write(migration: Migration, payload: bytes, limit: int) -> None:
    """Bytes of a state to load.

    Raises:
        ProtocolError: EINVAL outside of RESUMING, above `limit`, with fewer bytes than said, and for a state that is
            refused.
    """
    argsz, size = MIGRATION_DATA.unpack(payload)
    _check_transfer("MIG_DATA_WRITE", argsz, size, limit)
    data = payload[MIGRATION_DATA.size :]
    if len(data) < size:
        raise ProtocolError(f"MIG_DATA_WRITE: {len(data)} bytes where {size} should be", errno.EINVAL)
    migration.write_state(data[:size])


def _check_transfer(name: str, argsz: int, size: int, limit: int) -> None:
    if size > limit or argsz < MIGRATION_DATA.size + size:
        raise ProtocolError(f"{name}: {size} bytes, with argsz {argsz} and {limit} bytes a message", errno.EINVAL)


def _check_room(size: int, room: int) -> None:
    if size > room:
        raise _refuse(f"there is room for {room} bytes of {size}")


def _refuse(what: str) -> ProtocolError:
    return ProtocolError(f"DEVICE_FEATURE: {what}", errno.EINVAL)


def _get_support(migration: Migration, data: bytes, room: int) -> bytes:
    return MIGRATION_FLAGS.pack(SUPPORT)


def _get_state(migration: Migration, data: bytes, room: int) -> bytes:
    return DEVICE_STATE.pack(migration.state, 0)


def _set_state(migration: Migration, data: bytes) -> None:
    import hashlib  # noqa: F401  # for digests that come when the guest stands still; OpenSSL needs milliseconds

    migration.set_state(DEVICE_STATE.unpack(data).state)


def _start_logging(migration: Migration, data: bytes) -> None:
    """The whole of the client's memory is logged, whatever ranges are named."""
    control = LOGGING_CONTROL.unpack(data)
    if len(data) < LOGGING_CONTROL.size + control.num_ranges * LOGGING_RANGE.size:
        raise _refuse(f"{control.num_ranges} ranges in {len(data)} bytes")
    migration.start_log(control.page_size)


def _stop_logging(migration: Migration, data: bytes) -> None:
    migration.stop_log()


def _get_report(migration: Migration, data: bytes, room: int) -> bytes:
    """Take the bitmap from the log, once all is checked: a refused request loses no page."""
    report = LOGGING_REPORT.unpack(data)
    iova, length, page_size = report
    if not page_size or length < page_size or iova + length > 1 << 64:
        raise _refuse(f"a report of {length:#x} bytes at {iova:#x} in pages of {page_size:#x}")
    size = bitmap_size(length, page_size)
    if size > MAX_BITMAP:
        raise _refuse(f"a bitmap of {size} bytes, more than {MAX_BITMAP}")
    _check_room(LOGGING_REPORT.size + size, room)
    return LOGGING_REPORT.pack(*report, tail=migration.take_dirty(iova, length, page_size))


_FEATURES: Mapping[int, Operations] = MappingProxyType(
    {
        Feature.MIGRATION: Operations(get=_get_support),
        Feature.MIG_DEVICE_STATE: Operations(get=_get_state, set=_set_state),
        Feature.DMA_LOGGING_START: Operations(set=_start_logging),
        Feature.DMA_LOGGING_STOP: Operations(set=_stop_logging),
        Feature.DMA_LOGGING_REPORT: Operations(get=_get_report),
    }
)
