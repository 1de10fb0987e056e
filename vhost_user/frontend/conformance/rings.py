"""The life of a ring: when it is served, how it stops, and what survives that."""

from __future__ import annotations

import os

from userdev.conformance import Group, Level, Skip, require
from vhost_user.frontend.conformance.bench import AGREED, RING, SERVED, Bench
from vhost_user.frontend.front_end import FrontEnd
from vhost_user.frontend.queue import Queue
from vhost_user.frontend.split import SplitDriver
from vhost_user.wire import NO_FD, FrontEndRequest, VirtioFeature
from vhost_user.wire.payloads import VringState

rings = Group[Bench]("rings", "spec: Ring states", needs=SERVED)

R, V = FrontEndRequest, VirtioFeature

BASE = ("rings/base-at-stop",)
"""Who does not keep this rule goes on elsewhere than the driver does, whatever that is tried for."""

_LAST = 0xFFFF
"""Index, before 0."""


@rings.check("served")
def served(bench: Bench) -> None:
    """What is put into a ring that is started and enabled comes back right, and its driver is called."""
    bench.called(bench.running())


@rings.check("round-and-round")
def round_and_round(bench: Bench) -> None:
    """More requests than the ring has places are served, however they come together."""
    queue = bench.running()
    many = RING // max(len(bench.device.request), 1)
    for count in (1, many, 2, many, many, 1, many):
        bench.serve(queue, count)


@rings.check("without-protocol-features")
def without_protocol_features(bench: Bench) -> None:
    """Where PROTOCOL_FEATURES was not agreed on, a ring is enabled once it is started."""
    front_end = bench.agreed(V.VERSION_1)
    front_end.share_memory(as_table=True)
    bench.serve(bench.running(front_end))


@rings.check("enabled-by-features", level=Level.OPEN, needs=AGREED)
def enabled_by_features(bench: Bench) -> None:
    """SET_FEATURES without PROTOCOL_FEATURES enables rings, whatever was said of them."""
    front_end = bench.front_end
    front_end.need(V.PROTOCOL_FEATURES)
    front_end.do(R.SET_VRING_ENABLE, VringState(bench.device.queue, 0))
    front_end.do(R.SET_FEATURES, int(front_end.negotiated.features & ~V.PROTOCOL_FEATURES))
    queue = bench.queue()
    queue.start(enable=False)
    front_end.driver_ok()
    bench.serve(queue)


@rings.check("call-before-kick", level=Level.REFERENCE, rule="DPDK's virtio_user: SET_VRING_CALL before memory")
def call_first(bench: Bench) -> None:
    """SET_VRING_CALL may come before memory and everything else of the ring."""
    front_end = bench.agreed()
    call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        front_end.do(R.SET_VRING_CALL, bench.device.queue, [call])
    finally:
        os.close(call)
    front_end.share_memory()
    bench.serve(bench.running(front_end))


@rings.check("kick-before-call", level=Level.REFERENCE, rule="libblkio: SET_VRING_KICK before SET_VRING_CALL")
def kick_first(bench: Bench) -> None:
    """SET_VRING_CALL may come after SET_VRING_KICK."""
    front_end = bench.front_end
    queue = bench.queue()
    front_end.do(R.SET_VRING_NUM, VringState(queue.index, queue.size))
    front_end.do(R.SET_VRING_BASE, VringState(queue.index, 0))
    front_end.do(R.SET_VRING_ADDR, queue.addresses)
    front_end.do(R.SET_VRING_KICK, queue.index, [queue.kick_fd])
    front_end.do(R.SET_VRING_CALL, queue.index, [queue.call_fd])
    queue.enable()
    front_end.driver_ok()
    bench.serve(queue)


@rings.check(
    "without-call", level=Level.OPEN, rule="spec: Front-end message types, SET_VRING_CALL, the invalid FD flag"
)
def without_call(bench: Bench) -> None:
    """A ring is served whose driver gives no descriptor to be called by, as it polls."""
    queue = _started(bench, call=False)
    for _ in range(2):
        bench.put(queue)
        queue.kick()
        bench.polled(queue, "where the driver polls")


@rings.check(
    "without-kick", level=Level.OPEN, rule="spec: Front-end message types, SET_VRING_KICK, the invalid FD flag"
)
def without_kick(bench: Bench) -> None:
    """A ring whose driver gives no descriptor to kick by is looked at by polling."""
    queue = _started(bench, kick=False)
    for _ in range(2):
        bench.put(queue)
        bench.polled(queue, "where no kick can come")


def _started(bench: Bench, *, call: bool = True, kick: bool = True) -> Queue:
    """The device's queue, started and enabled, without the one descriptor or the other."""
    queue = bench.queue()
    say = bench.front_end.do
    say(R.SET_VRING_NUM, VringState(queue.index, queue.size))
    say(R.SET_VRING_BASE, VringState(queue.index, 0))
    say(R.SET_VRING_ADDR, queue.addresses)
    for request, fd, given in ((R.SET_VRING_CALL, queue.call_fd, call), (R.SET_VRING_KICK, queue.kick_fd, kick)):
        say(request, queue.index | (0 if given else NO_FD), [fd] if given else [])
    queue.enable()
    bench.front_end.driver_ok()
    return queue


@rings.check("kicked-as-asked", rule="virtio 1.3: Available Buffer Notification Suppression")
def kicked_as_asked(bench: Bench) -> None:
    """Requests are served of which a driver tells where it is asked to, as drivers do."""
    bench.notified(bench.running())


@rings.check("uncalled", level=Level.OPEN, rule="virtio 1.3: Used Buffer Notification Suppression")
def uncalled(bench: Bench) -> None:
    """A driver that asks for no calls has none."""
    bench.unasked(bench.running())


@rings.check("disabled-at-first", level=Level.OPEN, needs=AGREED)
def disabled_at_first(bench: Bench) -> None:
    """A ring is not served before it is enabled, and is then."""
    _need_disabled(bench, bench.front_end)
    queue = bench.queue()
    queue.start(enable=False)
    bench.put(queue)
    queue.kick()
    bench.quiet(queue, "a ring that was never enabled")
    queue.enable()
    bench.front_end.driver_ok()
    bench.served(queue)


@rings.check("disabled", level=Level.OPEN)
def disabled(bench: Bench) -> None:
    """A ring that is disabled is not served, and is again when it is enabled."""
    _need_disabled(bench, bench.front_end)
    queue = bench.running()
    bench.serve(queue)
    queue.enable(False)
    bench.put(queue)
    queue.kick()
    bench.quiet(queue, "a ring that was disabled")
    queue.enable()
    bench.served(queue)


@rings.check("enabled-again")
def enabled_again(bench: Bench) -> None:
    """A ring that was disabled and is enabled again is served when it is kicked."""
    bench.front_end.need(V.PROTOCOL_FEATURES)
    queue = bench.running()
    for _ in range(3):
        queue.enable(False)
        queue.enable()
        bench.serve(queue)


@rings.check("enabled-before-start")
def enabled_before_start(bench: Bench) -> None:
    """A ring that is enabled before it is started is served once it is."""
    bench.front_end.need(V.PROTOCOL_FEATURES)
    queue = bench.queue()
    bench.front_end.do(R.SET_VRING_ENABLE, VringState(queue.index, 1))
    queue.start(enable=False)
    bench.front_end.driver_ok()
    bench.serve(queue)


@rings.check("kick-while-disabled", level=Level.OPEN)
def kick_while_disabled(bench: Bench) -> None:
    """A kick that comes while a ring is disabled is not lost."""
    _need_disabled(bench, bench.front_end)
    queue = bench.running()
    bench.serve(queue)
    queue.enable(False)
    bench.put(queue)
    queue.kick()
    bench.front_end.settle()
    queue.enable(kick=False)
    bench.served(queue)


@rings.check("there-at-start", level=Level.OPEN, rule="spec: Inflight I/O tracking, a back-end that died was kicked")
def there_at_start(bench: Bench) -> None:
    """Requests that are there when a ring starts are served without a kick."""
    queue = bench.queue()
    bench.put(queue)
    queue.start(kick=False)
    bench.served(queue)


@rings.check("base-at-stop", rule="spec: Front-end message types, GET_VRING_BASE")
def base_at_stop(bench: Bench) -> None:
    """GET_VRING_BASE says how many requests were made available, more than the ring has places, and of which ring."""
    queue = bench.running()
    count = RING + 5
    for _ in range(count):
        bench.serve(queue)
    base = queue.stop()
    require(base == count, f"GET_VRING_BASE says {base} after {count} requests in a ring of {RING}")


@rings.check("16-bits", needs=BASE, rule="spec: A vring descriptor index for split virtqueues")
def sixteen_bits(bench: Bench) -> None:
    """The indices of a ring go on at 0 behind 65535."""
    queue = bench.queue()
    assert isinstance(queue.driver, SplitDriver)
    queue.driver.begin_at(_LAST - 1)
    queue.start()
    for _ in range(4):
        bench.serve(queue)
    base = queue.stop()
    require(base == 2, f"GET_VRING_BASE says {base} after 4 requests from {_LAST - 1} on")


@rings.check("base-of-nothing", needs=BASE, level=Level.OPEN, rule="spec: Front-end message types, GET_VRING_BASE")
def base_of_nothing(bench: Bench) -> None:
    """GET_VRING_BASE of a ring that was never started says 0, also as the first message."""
    front_end = bench.stranger()
    answer = front_end.ask(R.GET_VRING_BASE, VringState(0, 0))
    require(answer == VringState(0, 0), f"GET_VRING_BASE is answered with {answer}")


@rings.check("stopped")
def stopped(bench: Bench) -> None:
    """A ring that was stopped is not served."""
    queue = bench.running()
    bench.serve(queue)
    queue.stop()
    bench.put(queue)
    queue.kick()
    bench.quiet(queue, "a ring that was stopped")


@rings.check("suspended", rule="spec: Ring states, Suspended device state")
def suspended(bench: Bench) -> None:
    """A device whose rings are all stopped calls nobody."""
    queue = bench.running()
    bench.serve(queue)
    queue.stop()
    bench.stop_beside()
    bench.front_end.settle()
    queue.wait_call(0)
    bench.put(queue)
    queue.kick()
    bench.uncalled(queue, "the driver of a device whose rings are all stopped")


@rings.check(
    "drained", needs=BASE, level=Level.OPEN, rule="spec: Migration, no further update before rings are restarted"
)
def drained(bench: Bench) -> None:
    """What was taken has come back when GET_VRING_BASE is answered."""
    queue = bench.running()
    many = RING // max(len(bench.device.request), 1)
    for _ in range(8):
        for _ in range(many):
            bench.put(queue)
        queue.kick()
        base = queue.stop(drain=False)
        back = queue.driver.base
        require(base == back, f"GET_VRING_BASE says {base}, and {back} requests have come back")
        queue.start()
        bench.served(queue, many)


@rings.check("restarted", needs=BASE)
def restarted(bench: Bench) -> None:
    """A ring that was stopped is served again, once everything is said again."""
    queue = bench.running()
    for _ in range(3):
        bench.serve(queue)
        queue.stop()
        queue.start()
    bench.serve(queue)


@rings.check("restarted-elsewhere", needs=BASE, rule="spec: Front-end message types, SET_VRING_BASE")
def restarted_elsewhere(bench: Bench) -> None:
    """Another connection goes on where SET_VRING_BASE says, and does nothing twice."""
    queue = bench.running()
    bench.serve(queue, 2)
    base = queue.stop()
    bench.again(bench.front_end)
    bench.start_beside()
    queue.start(base)
    bench.serve(queue)
    require(queue.stop() == base + 1, "a request was served twice, or left out")


@rings.check("remembered", needs=BASE, level=Level.OPEN)
def remembered(bench: Bench) -> None:
    """Size and addresses of a ring that was stopped need not be said again."""
    front_end = bench.front_end
    queue = bench.running()
    bench.serve(queue)
    base = queue.stop()
    front_end.do(R.SET_VRING_BASE, VringState(queue.index, base))
    front_end.do(R.SET_VRING_CALL, queue.index, [queue.call_fd])
    front_end.do(R.SET_VRING_KICK, queue.index, [queue.kick_fd])
    queue.enable()
    bench.serve(queue)


@rings.check("another-call", rule="spec: Ring states, configuration aspects that change on the fly")
def another_call(bench: Bench) -> None:
    """A ring that runs tells its driver by the last descriptor that SET_VRING_CALL gave."""
    queue = bench.running()
    bench.serve(queue)
    old = queue.call_fd
    queue.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    os.close(old)
    bench.front_end.do(R.SET_VRING_CALL, queue.index, [queue.call_fd])
    bench.called(queue)


@rings.check("independent", needs=BASE)
def independent(bench: Bench) -> None:
    """A queue that is stopped leaves another alone."""
    if bench.device.name not in ("blk", "reverse"):
        raise Skip(f"the queues of {bench.device.name} do different things")
    if bench.front_end.queue_count() < 2:
        raise Skip("the back-end has one queue")
    one, other = bench.front_end.queue(0, RING), bench.front_end.queue(1, RING)
    bench.front_end.start(one, other)
    bench.serve(one)
    bench.serve(other)
    one.stop()
    bench.serve(other, 2)
    one.start()
    bench.serve(one)


def _need_disabled(bench: Bench, front_end: FrontEnd) -> None:
    front_end.need(V.PROTOCOL_FEATURES)
    if bench.device.discards:
        raise Skip(f"{bench.device.name}: what is put into a ring that is disabled is taken and dropped")
