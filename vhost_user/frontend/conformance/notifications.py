"""Kicks and calls as messages, for front-ends that have no descriptors for them, such as simulations."""

from __future__ import annotations

from userdev.conformance import CheckFailed, Group, Level, require
from vhost_user.frontend.channel import Channel
from vhost_user.frontend.conformance.bench import SERVED, Bench, asked_by
from vhost_user.frontend.errors import Disconnected, NoAnswer
from vhost_user.frontend.front_end import PROTOCOL_FEATURES, FrontEnd
from vhost_user.frontend.queue import Queue
from vhost_user.wire import BackEndRequest, FrontEndRequest, ProtocolFeature
from vhost_user.wire.payloads import VringState

in_band = Group[Bench]("in-band", "spec: In-band notifications", needs=SERVED)

R, P = FrontEndRequest, ProtocolFeature

_IN_BAND = PROTOCOL_FEATURES | P.INBAND_NOTIFICATIONS
_NEEDED = (P.BACKEND_REQ, P.REPLY_ACK)


def _without_descriptors(bench: Bench) -> tuple[Queue, Channel]:
    """The device's queue, enabled, with no descriptor of its own; it is started by a kick."""
    front_end = bench.agreed(protocol=_IN_BAND)
    for feature in (P.INBAND_NOTIFICATIONS, *_NEEDED):
        front_end.need(feature)
    channel = front_end.open_channel()
    front_end.share_memory()
    queue = bench.queue(front_end)
    queue.set_up(descriptors=False)
    queue.enable(kick=False)
    front_end.driver_ok()
    return queue, channel


def _kick(queue: Queue) -> int:
    return queue.connection.tell(R.VRING_KICK, VringState(queue.index, 0))


@in_band.check("kick", rule="spec: Front-end message types, VRING_KICK")
def kick(bench: Bench) -> None:
    """VRING_KICK has a ring without descriptors be served, and is acknowledged with 0."""
    queue, _ = _without_descriptors(bench)
    for _ in range(2):
        bench.put(queue)
        answer = _kick(queue)
        require(answer == 0, f"VRING_KICK is answered with {answer:#x}")
        bench.polled(queue, "of VRING_KICK")


@in_band.check("call", rule="spec: Back-end message types, VRING_CALL", needs=("in-band/kick",))
def call(bench: Bench) -> None:
    """The driver of a ring without descriptors is told by VRING_CALL, again and again, each acknowledged."""
    queue, channel = _without_descriptors(bench)
    for _ in range(3):  # some call once at a start, which tells of nothing
        bench.put(queue)
        _kick(queue)
        try:
            said = asked_by(channel)
        except NoAnswer:
            raise CheckFailed("a request comes back, and no VRING_CALL does") from None
        right = said.request is BackEndRequest.VRING_CALL and said.value.vring == queue.index
        require(right, f"VRING_CALL of queue {queue.index} is due, and {said} comes")
        require(said.needs_reply, "VRING_CALL does not ask for an acknowledgement")
        require(not said.value.num, f"VRING_CALL has a num of {said.value.num}, which is reserved")
        channel.acknowledge(said)
        bench.polled(queue, "of VRING_KICK")


@in_band.check("needs-others", level=Level.OPEN)
def needs_others(bench: Bench) -> None:
    """Who agrees on them without a channel or acknowledgements is hung up on."""
    front_end = bench.agreed()
    front_end.need_offered(P.INBAND_NOTIFICATIONS)
    for feature in _NEEDED:
        front_end.close()
        front_end = bench.stranger()
        front_end.send(R.SET_PROTOCOL_FEATURES, int((P.INBAND_NOTIFICATIONS | _all_needed()) & ~feature))
        require(_hangs_up(front_end), f"INBAND_NOTIFICATIONS is agreed on without {feature.name}")


def _all_needed() -> ProtocolFeature:
    return _NEEDED[0] | _NEEDED[1]


def _hangs_up(front_end: FrontEnd) -> bool:
    try:
        front_end.settle()
    except Disconnected:
        return True
    return False
