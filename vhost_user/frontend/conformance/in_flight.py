"""The in-flight region: what was under way when a back-end died is done by the next."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from userdev.conformance import Group, Unmet, require
from userdev.memory.guard import guard
from userdev.memory.shrinking import can_shrink
from vhost_user.frontend.conformance.bench import RING, SERVED, Bench
from vhost_user.frontend.conformance.rings import BASE
from vhost_user.frontend.front_end import FEATURES, FrontEnd, InflightBuffer
from vhost_user.frontend.queue import Queue
from vhost_user.frontend.split import SplitDriver
from vhost_user.rings import region_size
from vhost_user.rings.ring import DESCRIPTOR
from vhost_user.wire import ProtocolFeature, VirtioFeature

inflight = Group[Bench]("inflight", "spec: Inflight I/O tracking", needs=SERVED)

P, V = ProtocolFeature, VirtioFeature

_GIVEN = "inflight/given"
_KEPT = "inflight/kept"
_VERSION, _DESC_NUM, _LAST_BATCH_HEAD, _USED_IDX = 8, 10, 12, 14
_DESC, _DESC_SIZE = 16, 16
"""Offsets in the region of a split ring (QueueRegionSplit), where the states of descriptors are (DescStateSplit)."""

_FREE_HEAD, _OLD_FREE_HEAD, _PLACES, _OLD_USED_IDX = 12, 14, 16, 18
_PACKED_DESC, _PACKED_DESC_SIZE = 32, 32
"""The same of a packed one (QueueRegionPacked, DescStatePacked): used_idx is the first of the places."""

_FIRST_ROUND = 1


def _tracking(bench: Bench, front_end: FrontEnd | None = None) -> InflightBuffer:
    front_end = front_end or bench.front_end
    front_end.need(P.INFLIGHT_SHMFD)
    return front_end.ask_inflight(bench.device.queue + 1, RING)


def _packed(bench: Bench) -> FrontEnd:
    front_end = bench.ready(FEATURES | V.RING_PACKED)
    front_end.need(V.RING_PACKED)
    return front_end


@contextmanager
def _mapped(region: InflightBuffer, queue: Queue, *, packed: bool = False) -> Iterator[memoryview]:
    """The part of a queue. A back-end that makes the file smaller behind that is survived."""
    described = region.described
    part = region_size(RING, packed=packed)
    start = described.mmap_offset + part * queue.index
    try:
        memory = mmap.mmap(region.fd, described.mmap_offset + described.mmap_size)
    except (OSError, ValueError, OverflowError) as error:
        raise Unmet(_GIVEN, f"the region cannot be mapped: {error}") from None
    with memory:
        if can_shrink(region.fd):
            guard(memory)
        if len(memory) < start + part:
            raise Unmet(_GIVEN, f"the region has {described.mmap_size} bytes, too few for queue {queue.index}")
        view = memoryview(memory)[start : start + part]
        try:
            yield view
        finally:
            view.release()


@inflight.check("given", rule="spec: Front-end message types, GET_INFLIGHT_FD")
def inflight_given(bench: Bench) -> None:
    """A region is given that has room for the rings, as long as it is said to be."""
    bench.front_end.need(P.INFLIGHT_SHMFD)
    described, fd = bench.front_end.ask_inflight(1, RING)
    least, size = region_size(RING, packed=False), os.fstat(fd).st_size
    require(described.mmap_size >= least, f"the region has {described.mmap_size} bytes, and the ring needs {least}")
    require(size >= described.mmap_offset + described.mmap_size, f"the region's file has {size} bytes: {described}")
    require((described.num_queues, described.queue_size) == (1, RING), f"a region for 1 ring of {RING} is {described}")


@inflight.check("taken", rule="spec: Front-end message types, SET_INFLIGHT_FD", needs=(_GIVEN,))
def inflight_taken(bench: Bench) -> None:
    """A region is taken back, and rings are served with it."""
    bench.front_end.set_inflight(_tracking(bench))
    bench.serve(bench.running(), 3)


@inflight.check("kept", needs=(_GIVEN,))
def inflight_kept(bench: Bench) -> None:
    """The region of a ring that is served says its version, its size and where it is, and nothing is under way."""
    region = _tracking(bench)
    bench.front_end.set_inflight(region)
    queue = bench.running()
    bench.serve(queue, 3)
    queue.stop()
    with _mapped(region, queue) as part:
        version, size = struct.unpack_from("<HH", part, _VERSION)
        (used,) = struct.unpack_from("<H", part, _USED_IDX)
        under_way = [index for index in range(RING) if part[_DESC + _DESC_SIZE * index]]
    require((version, size) == (1, RING), f"the region is of version {version}, for {size} descriptors")
    require(used == 3, f"the region says that {used} requests have come back, of 3")
    require(not under_way, f"descriptors {under_way} are under way, and all requests have come back")


@inflight.check("resubmitted", rule="spec: Inflight I/O tracking, When reconnecting", needs=(_GIVEN, _KEPT, *BASE))
def inflight_resubmitted(bench: Bench) -> None:
    """What a back-end that died had taken is done by the next, once, as is what it had not taken."""
    region = _tracking(bench)
    front_end = bench.front_end
    queue = bench.queue()
    driver = queue.driver
    assert isinstance(driver, SplitDriver)
    taken = bench.put(queue).head
    bench.put(queue)
    with _mapped(region, queue) as part:  # as one leaves it that has died with the first request
        struct.pack_into("<HH", part, _VERSION, 1, RING)
        part[_DESC + _DESC_SIZE * taken] = 1
    bench.again(front_end)
    front_end.set_inflight(region)
    bench.start_beside()
    queue.start(0)
    bench.served(queue, 2)
    base = queue.stop()
    require(base == 2, f"2 requests were there, and GET_VRING_BASE says {base}")
    require(driver.used_index == 2, f"{driver.used_index} requests came back, of 2")


@inflight.check("last-batch", rule="spec: Inflight I/O tracking, When reconnecting", needs=(_GIVEN, _KEPT, *BASE))
def inflight_last_batch(bench: Bench) -> None:
    """What the driver has been given is not done again, though the region says that it is under way."""
    region = _tracking(bench)
    front_end = bench.front_end
    front_end.set_inflight(region)
    queue = bench.running()
    [done] = bench.serve(queue)
    queue.stop()
    bench.stop_beside()
    with _mapped(region, queue) as part:  # as one leaves it that has died between the used index and the rest
        part[_DESC + _DESC_SIZE * done.head] = 1
        struct.pack_into("<HH", part, _LAST_BATCH_HEAD, done.head, 0)
    bench.again(front_end)
    front_end.set_inflight(region)
    bench.start_beside()
    queue.start(1)
    bench.serve(queue)
    base = queue.stop()
    require(base == 2, f"2 requests were made available, and GET_VRING_BASE says {base}")


@inflight.check("packed-kept", needs=(_GIVEN, _KEPT, "kinds/packed"))
def inflight_packed_kept(bench: Bench) -> None:
    """The region of a packed ring says its version, its size and where it is, and nothing is under way."""
    front_end = _packed(bench)
    region = _tracking(bench, front_end)
    front_end.set_inflight(region)
    queue = bench.running(front_end)
    bench.serve(queue, 3)
    queue.stop()
    with _mapped(region, queue, packed=True) as part:
        version, size = struct.unpack_from("<HH", part, _VERSION)
        used, old_used, wrap, old_wrap = struct.unpack_from("<HHBB", part, _PLACES)
        under_way = [index for index in range(RING) if part[_PACKED_DESC + _PACKED_DESC_SIZE * index]]
    require((version, size) == (1, RING), f"the region is of version {version}, for {size} descriptors")
    place = used | wrap << 15
    expected = queue.driver.base >> 16
    require(place == expected, f"the region says that {place:#x} is used next, and the driver is at {expected:#x}")
    require((used, wrap) == (old_used, old_wrap), "the region says that requests come back, and they have")
    require(not under_way, f"entries {under_way} are under way, and all requests have come back")


@inflight.check(
    "packed-resubmitted",
    rule="spec: Inflight I/O tracking, When reconnecting",
    needs=(_GIVEN, "kinds/packed", "inflight/packed-kept", *BASE),
)
def inflight_packed_resubmitted(bench: Bench) -> None:
    """What a back-end that died had taken of a packed ring is done by the next, once, as is what it had not taken."""
    front_end = _packed(bench)
    region = _tracking(bench, front_end)
    queue = bench.queue(front_end)
    for _ in range(2):
        bench.put(queue)
    count = len(bench.device.request)
    with _mapped(region, queue, packed=True) as part:
        _take_first(part, queue, count)
    bench.again(front_end, FEATURES | V.RING_PACKED)
    front_end.set_inflight(region)
    bench.start_beside()
    queue.start(queue.driver.base + count)  # of what was made available the first is behind
    bench.served(queue, 2)
    base = queue.stop()
    expected = queue.driver.base
    require(base == expected, f"GET_VRING_BASE says {base:#x}, and the driver is at {expected:#x}")


@inflight.check(
    "packed-last-batch",
    rule="spec: Inflight I/O tracking, When reconnecting",
    needs=(_GIVEN, "kinds/packed", "inflight/packed-kept", *BASE),
)
def inflight_packed_last_batch(bench: Bench) -> None:
    """What the driver of a packed ring has is not done again, though the region says that it is under way."""
    front_end = _packed(bench)
    region = _tracking(bench, front_end)
    front_end.set_inflight(region)
    queue = bench.running(front_end)
    bench.serve(queue)
    queue.stop()
    bench.stop_beside()
    with _mapped(region, queue, packed=True) as part:  # as one leaves it that has died behind the descriptor's flags
        (entry,) = struct.unpack_from("<H", part, _FREE_HEAD)
        part[_PACKED_DESC + _PACKED_DESC_SIZE * entry] = 1
        struct.pack_into("<H", part, _OLD_FREE_HEAD, len(bench.device.request))
        struct.pack_into("<H", part, _OLD_USED_IDX, 0)
    bench.again(front_end, FEATURES | V.RING_PACKED)
    front_end.set_inflight(region)
    bench.start_beside()
    queue.start()
    bench.serve(queue)
    base = queue.stop()
    expected = queue.driver.base
    require(base == expected, f"GET_VRING_BASE says {base:#x}, and the driver is at {expected:#x}")


def _take_first(part: memoryview, queue: Queue, count: int) -> None:
    """Leave the region as one does that has died with the first request, of so many descriptors."""
    struct.pack_into("<HHHHHHBB", part, _VERSION, 1, RING, count, count, 0, 0, _FIRST_ROUND, _FIRST_ROUND)
    for index in range(RING):
        struct.pack_into("<H", part, _PACKED_DESC + _PACKED_DESC_SIZE * index + 2, index + 1)  # the next that is free
    struct.pack_into("<BxHHHQ", part, _PACKED_DESC, 1, 1, count - 1, count, 0)
    at = queue.driver.addresses.descriptor
    ring = queue.memory[at : at + DESCRIPTOR.size * count]
    for index, (address, length, known_by, flags) in enumerate(DESCRIPTOR.iter_unpack(ring)):
        struct.pack_into("<HHIQ", part, _PACKED_DESC + _PACKED_DESC_SIZE * index + 16, known_by, flags, length, address)
