"""The kinds of ring that there are, what goes through them, and who is told of it: the virtqueues of virtio."""

from __future__ import annotations

from userdev.conformance import Group, Level, Skip, require
from vhost_user.frontend.conformance.bench import AGREED, RING, SERVED, Bench
from vhost_user.frontend.front_end import FEATURES
from vhost_user.frontend.memory import PAGE
from vhost_user.frontend.queue import Buffer, Queue
from vhost_user.wire import VirtioFeature

kinds = Group[Bench]("kinds", "virtio 1.3: Virtqueues", needs=SERVED)

V = VirtioFeature

_FAR = 256
"""The page that a request lies on of which every byte is looked at, and of those around it."""

_UNTOUCHED = b"\x5a"


def _kind(bench: Bench, features: VirtioFeature, *, indirect: bool = False, size: int = RING) -> Queue:
    """A ring that runs, with these features; gone through several times."""
    queue = _running(bench, features, size=size)
    many = size if indirect else size // max(len(bench.device.request), 1)
    for count in (1, many, 2, many, many):
        bench.serve(queue, count, indirect=indirect)
    bench.called(queue)
    bench.notified(queue)
    return queue


def _running(bench: Bench, features: VirtioFeature, *, size: int = RING) -> Queue:
    front_end = bench.ready(FEATURES | features)
    for feature in features:
        front_end.need(feature)
    queue = bench.queue(front_end, size=size)
    queue.start()
    return queue


@kinds.check("cut-otherwise", rule="virtio 1.3: Message Framing")
def cut_otherwise(bench: Bench) -> None:
    """A request is one however its bytes are cut into buffers."""
    queue = bench.running()
    pieces = [piece for buffer in bench.device.request for piece in _halves(buffer)]
    if len(pieces) == len(bench.device.request):
        raise Skip("no buffer of the device's request has two bytes")
    for _ in range(2):
        queue.put(*pieces)
        queue.kick()
        bench.served(queue)


@kinds.check("nothing-else", rule="virtio 1.3: The Virtqueue Descriptor Table, buffers that are to be read")
def nothing_else(bench: Bench) -> None:
    """Of a request's memory only what may be written is: no byte that is to be read, and none beside."""
    queue = bench.running()
    memory, buffers = queue.memory, bench.device.request
    sizes = [buffer if isinstance(buffer, int) else len(buffer) for buffer in buffers]
    begin = _FAR * PAGE
    around = slice(begin - PAGE, begin + sum(sizes) + PAGE)
    bench.fill_to(bench.front_end, begin)
    memory[around] = _UNTOUCHED * (around.stop - around.start)
    request = bench.put(queue)
    before = bytearray(memory[around])
    queue.kick()
    bench.served(queue)
    after = memory[around]
    for place, size, buffer in zip(request.places, sizes, buffers, strict=True):
        if isinstance(buffer, int):
            may = slice(place - around.start, place + size - around.start)
            before[may] = after[may]
    wrong = [around.start + at for at, (was, now) in enumerate(zip(before, after, strict=True)) if was != now]
    require(not wrong, f"{len(wrong)} bytes are written that are not to be, the first at {min(wrong, default=0):#x}")


def _halves(buffer: Buffer) -> tuple[Buffer, ...]:
    """A buffer as two, where it has bytes for them."""
    if isinstance(buffer, int):
        return (1, buffer - 1) if buffer > 1 else (buffer,)
    return (buffer[:1], buffer[1:]) if len(buffer) > 1 else (buffer,)


@kinds.check("indirect", rule="virtio 1.3: Indirect Descriptors", needs=AGREED)
def indirect(bench: Bench) -> None:
    """Requests whose descriptors are in a table of their own are served."""
    _kind(bench, V.INDIRECT_DESC, indirect=True)


@kinds.check("events", rule="virtio 1.3: Used Buffer Notification Suppression", needs=AGREED)
def events(bench: Bench) -> None:
    """With EVENT_IDX, a driver is told of the request that it asks to be told of."""
    _kind(bench, V.EVENT_IDX)


@kinds.check("events-uncalled", level=Level.OPEN, rule="virtio 1.3: Used Buffer Notification Suppression", needs=AGREED)
def events_uncalled(bench: Bench) -> None:
    """With EVENT_IDX, a driver is not told of a request that it does not ask to be told of."""
    bench.unasked(_running(bench, V.EVENT_IDX))


@kinds.check("in-order", rule="virtio 1.3: In-order use of descriptors", needs=AGREED)
def in_order(bench: Bench) -> None:
    """With IN_ORDER, requests come back in their order."""
    queue = _kind(bench, V.IN_ORDER)
    bench.serve(queue, 3)  # the driver takes what comes back for all before it, and one that comes later for a mistake


@kinds.check("packed", rule="virtio 1.3: Packed Virtqueues", needs=AGREED)
def packed(bench: Bench) -> None:
    """A packed ring is served, gone through several times, and stopped and started."""
    queue = _kind(bench, V.RING_PACKED)
    queue.stop()
    queue.start()
    bench.serve(queue)


@kinds.check("packed-base", level=Level.OPEN, rule="spec: Vring descriptor indices for packed virtqueues", needs=AGREED)
def packed_base(bench: Bench) -> None:
    """GET_VRING_BASE of a packed ring says both places, with their wrap counters."""
    queue = _kind(bench, V.RING_PACKED)
    base = queue.stop()
    expected = queue.driver.base
    require(base == expected, f"GET_VRING_BASE says {base:#x}, and the driver is at {expected:#x}")


@kinds.check("packed-events", rule="virtio 1.3: Driver and Device Event Suppression", needs=AGREED)
def packed_events(bench: Bench) -> None:
    """A packed ring with EVENT_IDX tells of the request that its driver asks to be told of."""
    _kind(bench, V.RING_PACKED | V.EVENT_IDX)


@kinds.check(
    "packed-uncalled", level=Level.OPEN, rule="virtio 1.3: Driver and Device Event Suppression", needs=("kinds/packed",)
)
def packed_uncalled(bench: Bench) -> None:
    """The driver of a packed ring that asks for no calls has none."""
    bench.unasked(_running(bench, V.RING_PACKED))


@kinds.check("packed-indirect", rule="virtio 1.3: Indirect Flag: Scatter-Gather Support", needs=("kinds/packed",))
def packed_indirect(bench: Bench) -> None:
    """Requests of a packed ring whose descriptors are in a table of their own are served."""
    _kind(bench, V.RING_PACKED | V.INDIRECT_DESC, indirect=True)


@kinds.check("packed-in-order", rule="virtio 1.3: In-order use of descriptors", needs=("kinds/packed",))
def packed_in_order(bench: Bench) -> None:
    """With IN_ORDER, requests of a packed ring come back in their order."""
    queue = _kind(bench, V.RING_PACKED | V.IN_ORDER)
    bench.serve(queue, 3)


@kinds.check("packed-of-any-size", rule="virtio 1.3: Packed Virtqueues, Queue Size", needs=("kinds/packed",))
def packed_of_any_size(bench: Bench) -> None:
    """A packed ring need not be as long as a power of two."""
    _kind(bench, V.RING_PACKED, size=RING - 3)
