"""Headers and replies: which message is answered, with what, and what becomes of those that cannot be right."""

from __future__ import annotations

from userdev.conformance import Group, Level, require
from vhost_user.frontend.conformance.bench import ACKNOWLEDGED, Bench
from vhost_user.frontend.front_end import FrontEnd
from vhost_user.wire import NEED_REPLY, REPLY, VERSION, FrontEndRequest, Message, ProtocolFeature, encode_request
from vhost_user.wire.payloads import VringState

messages = Group[Bench]("messages", "spec: Message Specification, Header", needs=ACKNOWLEDGED)

R, P = FrontEndRequest, ProtocolFeature

_REPLY_ACK = "spec: VHOST_USER_PROTOCOL_F_REPLY_ACK"
_UNKNOWN = 0x7FFF
"""A request that there is none of."""


def _acknowledging(bench: Bench) -> FrontEnd:
    front_end = bench.agreed()
    front_end.need(P.REPLY_ACK)
    return front_end


def _base(front_end: FrontEnd, *, need_reply: bool) -> None:
    """Say something that is right, harmless and has no reply of its own."""
    front_end.send(R.SET_VRING_BASE, VringState(0, 0), need_reply=need_reply)


@messages.check("acknowledged", rule=_REPLY_ACK)
def acknowledged(bench: Bench) -> None:
    """What asks for a reply is acknowledged with 0, once."""
    front_end = _acknowledging(bench)
    bench.accepted(front_end, lambda: front_end.tell(R.SET_VRING_BASE, VringState(0, 0)), "SET_VRING_BASE")


@messages.check("reply")
def reply(bench: Bench) -> None:
    """A reply has the request that it answers, version 1 and the reply flag."""
    front_end = bench.stranger()
    for request in (R.GET_FEATURES, R.GET_VRING_BASE):
        front_end.send(request, VringState(0, 0) if request is R.GET_VRING_BASE else None)
        message = front_end.receive(request.name)
        require(message.request == request, f"{request.name} is answered with request {message.request}")
        flags = message.flags & ~NEED_REPLY
        require(flags == VERSION | REPLY, f"{request.name} is answered with flags {message.flags:#x}")
        if request is R.GET_FEATURES:
            front_end.negotiate()


@messages.check("reply-flags", level=Level.OPEN)
def reply_flags(bench: Bench) -> None:
    """A reply does not ask for a reply, whatever the request did."""
    front_end = _acknowledging(bench)
    for request in (R.GET_FEATURES, R.GET_VRING_BASE):
        front_end.send(request, VringState(0, 0) if request is R.GET_VRING_BASE else None, need_reply=True)
        flags = front_end.receive(request.name).flags
        require(not flags & NEED_REPLY, f"{request.name} is answered with flags {flags:#x}")


@messages.check("one-reply", rule=_REPLY_ACK)
def one_reply(bench: Bench) -> None:
    """A request with a reply of its own has one reply, also where one was asked for."""
    front_end = _acknowledging(bench)
    for _ in range(3):
        front_end.ask(R.GET_FEATURES, need_reply=True)
    front_end.ask(R.GET_VRING_BASE, VringState(0, 0), need_reply=True)
    front_end.settle()


@messages.check("silent", rule="spec: Communication, most of the requests do not require replies")
def silent(bench: Bench) -> None:
    """What asks for no reply has none."""
    front_end = bench.agreed()
    _base(front_end, need_reply=False)
    front_end.settle()


@messages.check("acknowledged-on-agreeing", level=Level.OPEN, rule=_REPLY_ACK)
def acknowledged_on_agreeing(bench: Bench) -> None:
    """SET_PROTOCOL_FEATURES that agrees to REPLY_ACK is acknowledged itself, where it asks for that."""
    front_end = bench.stranger()
    front_end.negotiate()
    front_end.need(P.REPLY_ACK)
    bench.again(front_end)
    agreed = int(front_end.negotiated.protocol_features)
    bench.accepted(front_end, lambda: front_end.tell(R.SET_PROTOCOL_FEATURES, agreed), "SET_PROTOCOL_FEATURES")


@messages.check("not-agreed", level=Level.OPEN, rule=_REPLY_ACK)
def not_agreed(bench: Bench) -> None:
    """Without REPLY_ACK nothing is acknowledged, whatever it asks for."""
    front_end = bench.agreed(protocol=P(0))
    _base(front_end, need_reply=True)
    front_end.send(R.GET_FEATURES)
    message = front_end.receive("GET_FEATURES")
    require(message.request == R.GET_FEATURES, "SET_VRING_BASE is acknowledged")


@messages.check("refused", level=Level.OPEN, rule=_REPLY_ACK)
def refused(bench: Bench) -> None:
    """What cannot be done is acknowledged with an error, or ends the connection."""
    _refuse(bench)
    bench.alive()


@messages.check("refused-and-on", level=Level.OPEN, rule="spec: Communication, only in exceptional circumstances")
def refused_and_on(bench: Bench) -> None:
    """The connection goes on after a refusal."""
    require(_refuse(bench), "the connection ends at what cannot be done")


def _refuse(bench: Bench) -> bool:
    """Ask for what cannot be done; whether the connection goes on."""
    front_end = bench.agreed()
    wrong = "a ring of 0 descriptors"
    return bench.refused(front_end, lambda: front_end.tell(R.SET_VRING_NUM, VringState(0, 0)), wrong)


@messages.check("unknown", level=Level.OPEN, rule=_REPLY_ACK)
def unknown(bench: Bench) -> None:
    """A request that there is none of is answered with an error, and the connection goes on."""
    front_end = _acknowledging(bench)
    front_end.send_message(Message(_UNKNOWN, VERSION | NEED_REPLY))
    answer = front_end.receive(f"request {_UNKNOWN}")
    require(answer.request == _UNKNOWN, f"request {_UNKNOWN} is answered with request {answer.request}")
    require(any(answer.payload), f"request {_UNKNOWN} is acknowledged as done")
    front_end.settle()


@messages.check("wrong-size", level=Level.OPEN, rule="spec: Message Specification, Payload")
def wrong_size(bench: Bench) -> None:
    """A payload of another size is refused, or ends the connection."""
    front_end = _acknowledging(bench)

    def say() -> int:
        front_end.send_message(Message(R.SET_VRING_NUM, VERSION | NEED_REPLY, bytes(4)))
        return int.from_bytes(front_end.receive("SET_VRING_NUM").payload, "little")

    bench.refused(front_end, say, "SET_VRING_NUM with 4 bytes")


@messages.check("in-pieces", level=Level.OPEN, rule="spec: Introduction, a stream of a UNIX domain socket")
def in_pieces(bench: Bench) -> None:
    """A message that comes in pieces is one."""
    front_end = bench.agreed()
    whole = encode_request(R.GET_VRING_BASE, VringState(0, 0)).encode()
    for piece in (whole[:7], whole[7:15], whole[15:]):  # cut in the header, and in the payload
        front_end.send_bytes(piece)
        bench.leave_alone(front_end)
    require(front_end.receive("GET_VRING_BASE").request == R.GET_VRING_BASE, "GET_VRING_BASE in pieces is not answered")


@messages.check("pipelined", rule="spec: Introduction, a stream of a UNIX domain socket")
def pipelined(bench: Bench) -> None:
    """Messages that come at once are answered in their order."""
    front_end = bench.agreed()
    asked = [encode_request(R.GET_FEATURES), encode_request(R.GET_VRING_BASE, VringState(0, 0))] * 4
    front_end.send_bytes(b"".join(message.encode() for message in asked))
    answers = [front_end.receive(FrontEndRequest(message.request).name).request for message in asked]
    require(answers == [message.request for message in asked], f"requests {answers} are answered")


@messages.check("channel", rule="spec: Front-end message types, SET_BACKEND_REQ_FD")
def channel(bench: Bench) -> None:
    """A channel of the back-end's own is taken, and another in its place."""
    front_end = bench.agreed()
    for _ in range(2):
        front_end.open_channel()
    front_end.settle()


@messages.check("second-owner", level=Level.OPEN, rule="spec: Front-end message types, SET_OWNER")
def second_owner(bench: Bench) -> None:
    """A second SET_OWNER is taken."""
    front_end = bench.agreed()
    front_end.send(R.SET_OWNER)
    front_end.settle()
