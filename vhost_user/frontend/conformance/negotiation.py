"""What a back-end offers, and that it keeps to it."""

from __future__ import annotations

from contextlib import closing, suppress

from userdev.conformance import CheckFailed, Group, Level, Skip, relying, require
from userdev.errors import UserdevError
from vhost_user.frontend.conformance.bench import ACKNOWLEDGED, AGREED, Bench
from vhost_user.frontend.front_end import FEATURES
from vhost_user.frontend.queue import Queue
from vhost_user.wire import FrontEndRequest, ProtocolFeature, VirtioFeature
from vhost_user.wire.features import NEEDS

features = Group[Bench]("features", "spec: Front-end message types, GET_FEATURES")

R, V, P = FrontEndRequest, VirtioFeature, ProtocolFeature

_DEVICE_BITS = (*range(24), *range(50, 64))
"""Those of a device's own (virtio 1.3, "Feature Bits")."""


@features.check("same")
def same(bench: Bench) -> None:
    """The features that are offered stay the same, before and after they were agreed on."""
    front_end = bench.stranger()
    before = front_end.ask(R.GET_FEATURES)
    front_end.negotiate()
    after = front_end.ask(R.GET_FEATURES)
    require(before == after, f"{before:#x} are offered first, and {after:#x} later")


@features.check("same-protocol", rule="spec: Front-end message types, GET_PROTOCOL_FEATURES")
def same_protocol(bench: Bench) -> None:
    """The protocol features that are offered stay the same, before and after they were agreed on."""
    front_end = bench.stranger()
    _need_protocol_features(front_end.ask(R.GET_FEATURES), bench)
    before = front_end.ask(R.GET_PROTOCOL_FEATURES)
    front_end.negotiate()
    after = front_end.ask(R.GET_PROTOCOL_FEATURES)
    require(before == after, f"{before:#x} are offered first, and {after:#x} later")


@features.check(
    "before-set-features", rule="spec: Front-end message types, SET_PROTOCOL_FEATURES", needs=("features/same",)
)
def before_set_features(bench: Bench) -> None:
    """Protocol features are told and agreed on before SET_FEATURES."""
    front_end = bench.stranger()
    _need_protocol_features(front_end.ask(R.GET_FEATURES), bench)
    offered = front_end.ask(R.GET_PROTOCOL_FEATURES)
    front_end.send(R.SET_PROTOCOL_FEATURES, offered & P.REPLY_ACK)
    front_end.settle()


@features.check(
    "after-set-features",
    level=Level.REFERENCE,
    rule="libblkio, rust-vmm: SET_FEATURES comes first",
    needs=("features/same",),
)
def after_set_features(bench: Bench) -> None:
    """Protocol features are told and agreed on after SET_FEATURES too."""
    front_end = bench.stranger()
    offered = front_end.ask(R.GET_FEATURES)
    _need_protocol_features(offered, bench)
    front_end.send(R.SET_OWNER)
    front_end.send(R.SET_FEATURES, offered & FEATURES)
    front_end.send(R.SET_PROTOCOL_FEATURES, front_end.ask(R.GET_PROTOCOL_FEATURES) & P.REPLY_ACK)
    front_end.settle()


@features.check("needs-each-other", rule="spec: In-band notifications; GET_VRING_BASE")
def needs_each_other(bench: Bench) -> None:
    """Protocol features are offered with those that they need."""
    offered = bench.agreed().offered.protocol_features
    for feature, needed in NEEDS.items():
        if feature in offered:
            require(needed in offered, f"{feature.name} is offered without {(needed & ~offered)!r}")


@features.check("version-1", level=Level.OPEN, rule="virtio 1.3: Reserved Feature Bits, VIRTIO_F_VERSION_1")
def version_1(bench: Bench) -> None:
    """VERSION_1 is offered: without it, QEMU has a legacy device and DPDK's virtio_user none."""
    require(V.VERSION_1 in bench.agreed().offered.features, "VERSION_1 is not offered")


@features.check("taken", rule="spec: Front-end message types, SET_FEATURES", needs=ACKNOWLEDGED)
def taken(bench: Bench) -> None:
    """What is agreed on by SET_FEATURES is so, at least one of several features that a ring shows."""
    with relying("rings/served"):
        bench.called(bench.running())
    offered = bench.front_end.offered.features
    unseen = V.PROTOCOL_FEATURES if bench.device.discards else V(0)  # a ring that is disabled gives all back
    trials = {feature: shows for feature, shows in _SHOWN.items() if feature in offered & ~unseen}
    if V.RING_PACKED not in trials or len(trials) < 2:  # how others show is left open
        raise Skip("RING_PACKED is not offered, and another that a ring shows: EVENT_IDX, or that it is disabled")
    bench.front_end.close()
    for feature, shows in trials.items():
        with closing(bench.ready(FEATURES | feature)) as front_end, suppress(UserdevError):
            shows(bench, bench.queue(front_end))
            return
    names = ", ".join(str(feature.name) for feature in trials)
    raise CheckFailed(f"SET_FEATURES is acknowledged, and nothing of it is so: {names}")


def _tells_of_events(bench: Bench, queue: Queue) -> None:
    queue.start()
    bench.unasked(queue)  # who looks at the ring by itself serves it whatever was agreed on


def _is_packed(bench: Bench, queue: Queue) -> None:
    queue.start()
    bench.serve(queue)


def _is_disabled(bench: Bench, queue: Queue) -> None:
    queue.start(enable=False)
    bench.put(queue)
    queue.kick()
    bench.quiet(queue, "a ring that was never enabled")


_SHOWN = {V.RING_PACKED: _is_packed, V.EVENT_IDX: _tells_of_events, V.PROTOCOL_FEATURES: _is_disabled}
"""Features of which a ring shows whether they were agreed on, and how it has to; all but the first take a moment."""


@features.check("not-offered", level=Level.OPEN, needs=AGREED, rule="virtio 1.3: Feature Bits")
def not_offered(bench: Bench) -> None:
    """A feature that was not offered is refused, or ends the connection."""
    front_end = bench.agreed()
    offered = front_end.offered.features
    bit = next((1 << bit for bit in reversed(_DEVICE_BITS) if not offered & 1 << bit), 0)
    if not bit:
        raise Skip("each feature of a device's own is offered")
    wrong = int(front_end.negotiated.features) | bit
    bench.refused(front_end, lambda: front_end.tell(R.SET_FEATURES, wrong), f"SET_FEATURES with {bit:#x}, not offered")


@features.check("queue-num", rule="spec: Front-end message types, GET_QUEUE_NUM")
def queue_num(bench: Bench) -> None:
    """A back-end with MQ says how many queues it can have, at least one."""
    front_end = bench.agreed()
    front_end.need(P.MQ)
    count = front_end.queue_count()
    require(0 < count <= 256, f"GET_QUEUE_NUM is answered with {count}")


@features.check("mem-slots", rule="spec: Front-end message types, GET_MAX_MEM_SLOTS")
def mem_slots(bench: Bench) -> None:
    """A back-end with memory slots says how many it has, at least one."""
    front_end = bench.agreed()
    front_end.need(P.CONFIGURE_MEM_SLOTS)
    count = front_end.ask(R.GET_MAX_MEM_SLOTS)
    require(count > 0, f"GET_MAX_MEM_SLOTS is answered with {count}")


def _need_protocol_features(offered: int, bench: Bench) -> None:
    if not offered & V.PROTOCOL_FEATURES:
        bench.agreed().need(V.PROTOCOL_FEATURES)
