"""Which requests are meant, and what their answers say instead."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import count

from tests.clauses.faults import When
from vfio_user.wire.constants import FEATURE_MASK, Feature, FeatureFlags, IrqSetFlags, RegionIndex
from vfio_user.wire.layouts import DEVICE_STATE, DMA_UNMAP, FEATURE, IRQ_SET, MIGRATION_DATA, REGION_ACCESS

# requests that are meant


def at(offset: int, count: int = 4, region: int = RegionIndex.CONFIG) -> When:
    """An access of so many bytes to this offset of config space, or of another region."""
    return lambda request: request[:16] == REGION_ACCESS.pack(offset, region, count)


def v1(offset: int, count: int) -> When:
    """An access to the registers of the migration region, which is the last."""
    return lambda request: request[:16] == REGION_ACCESS.pack(offset, 10, count)


def sized(size: int) -> When:
    return lambda request: len(request) == size


def begins(*numbers: int) -> When:
    """A request whose argsz is one of these."""
    return lambda request: struct.unpack_from("<I", request)[0] in numbers if len(request) >= 4 else False


def of_region(index: int) -> When:
    return lambda request: len(request) > 12 and struct.unpack_from("<I", request, 8)[0] == index


def of_feature(feature: Feature, operation: int = 0) -> When:
    """DEVICE_FEATURE with this one, in whatever way or in that one."""

    def when(request: bytes) -> bool:
        flags = FEATURE.unpack(request).flags if len(request) >= FEATURE.size else 0
        return flags & FEATURE_MASK == feature and flags & operation == operation

    return when


def state_set_to(state: int) -> When:
    """DEVICE_FEATURE that sets this migration state."""

    def when(request: bytes) -> bool:
        if len(request) < FEATURE.size + DEVICE_STATE.size:
            return False
        sets = of_feature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET)(request)
        return sets and DEVICE_STATE.unpack(request, FEATURE.size).state == state

    return when


def irqs(flags: int, vectors: int) -> When:
    """SET_IRQS with these flags, for so many vectors."""

    def when(request: bytes) -> bool:
        asked = IRQ_SET.unpack(request) if len(request) >= IRQ_SET.size else None
        return asked is not None and (asked.flags, asked.nr_vectors) == (flags, vectors)

    return when


def unmaps(address: int, size: int) -> When:
    def when(request: bytes) -> bool:
        asked = DMA_UNMAP.unpack(request) if len(request) == DMA_UNMAP.size else None
        return asked is not None and (asked.addr, asked.size) == (address, size)

    return when


def again(when: When) -> When:
    """All such requests but the first."""
    seen: list[bytes] = []

    def is_again(request: bytes) -> bool:
        if when(request):
            seen.append(request)
        return len(seen) > 1 and when(request)

    return is_again


# answers that say something else


def u32(at: int, value: int) -> Callable[[bytes], bytes]:
    """Have a number be this, in an answer that has it."""
    return lambda data: data[:at] + struct.pack("<I", value) + data[at + 4 :] if len(data) >= at + 4 else data


def u64(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + struct.pack("<Q", value) + data[at + 8 :] if len(data) >= at + 8 else data


def ends_with(tail: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[: -len(tail)] + tail


def longer(data: bytes) -> bytes:
    return data + bytes(4)


def front(size: int) -> Callable[[bytes], bytes]:
    """So many bytes of a request, or of an answer."""
    return lambda data: data[:size]


def one_more_at_the_end() -> Callable[[bytes], bytes]:
    """Saved state that goes on behind its end."""
    ends: list[bytes] = []

    def edit(data: bytes) -> bytes:
        if not MIGRATION_DATA.unpack(data).size:
            ends.append(data)
        return MIGRATION_DATA.pack(9, 1, tail=b"x") if len(ends) > 1 else data

    return edit


def pending_at_the_end() -> Callable[[bytes], bytes]:
    """A register that says 0 once, and 7 from then on."""
    ends: list[bytes] = []

    def edit(data: bytes) -> bytes:
        if data.endswith(bytes(8)):
            ends.append(data)
        return data[:-8] + struct.pack("<Q", 7) if len(ends) > 1 else data

    return edit


def one_less(data: bytes) -> bytes:
    """Saved state in pieces that lack a byte each."""
    told = MIGRATION_DATA.unpack(data)
    return MIGRATION_DATA.pack(told.argsz - 1, told.size - 1, tail=data[8:-1]) if told.size > 1 else data


def counting() -> Callable[[bytes], bytes]:
    """A register that is one more each time it is read."""
    times = count(1)
    return lambda data: data[:-8] + struct.pack("<Q", next(times))


def never_forgotten() -> Callable[[bytes], bytes]:
    """A dirty bitmap of 8 bytes that has what those before it had."""
    seen = 0

    def edit(data: bytes) -> bytes:
        nonlocal seen
        seen |= int.from_bytes(data[-8:], "little")
        return data[:-8] + struct.pack("<Q", seen)

    return edit


# requests that are heard otherwise


def of_the_first(request: bytes) -> bytes:
    """SET_IRQS that takes an eventfd away, of the first vector."""
    asked = IRQ_SET.unpack(request)
    return IRQ_SET.pack(*asked._replace(flags=IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER, nr_vectors=1))
