"""Faults at features, messages and their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.vhost.faults.faulty import Faulty, Usual, fatal, fault_for, nothing
from userdev.errors import ProtocolError
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.session import Ended, Session
from vhost_user.wire import (
    NEED_REPLY,
    FrontEndRequest,
    Message,
    ProtocolFeature,
    VirtioFeature,
    acknowledge,
    encode_reply,
)

R, V, P = FrontEndRequest, VirtioFeature, ProtocolFeature


# Negotiation


@fault_for("features/same")
def offers_less_later(back_end: Faulty) -> None:
    back_end.at(
        R.GET_FEATURES, lambda b, v, f, usual: usual(b, v, f) & ~int(V.EVENT_IDX if b.negotiated.features else 0)
    )


@fault_for("features/same-protocol")
def offers_fewer_protocol_features_later(back_end: Faulty) -> None:
    def get(b: BackEnd, v: None, f: list[int], usual: Usual) -> int:
        offered: int = usual(b, v, f)
        return offered & ~int(P.MQ) if b.negotiated.protocol_features else offered

    back_end.at(R.GET_PROTOCOL_FEATURES, get)


@fault_for("features/before-set-features")
def wants_features_first(back_end: Faulty) -> None:
    back_end.at(R.GET_PROTOCOL_FEATURES, lambda b, v, f, usual: usual(b, v, f) if b.negotiated.features else fatal())


@fault_for("features/after-set-features")
def wants_features_last(back_end: Faulty) -> None:
    back_end.at(R.SET_PROTOCOL_FEATURES, lambda b, v, f, usual: fatal() if b.negotiated.features else usual(b, v, f))


@fault_for("features/needs-each-other")
def offers_what_needs_another(back_end: Faulty) -> None:
    wrong = int(P.GET_VRING_BASE_INFLIGHT)
    back_end.at(R.GET_PROTOCOL_FEATURES, lambda b, v, f, usual: (usual(b, v, f) | wrong) & ~int(P.INFLIGHT_SHMFD))


@fault_for("features/version-1")
def is_of_before_virtio_1(back_end: Faulty) -> None:
    back_end.at(R.GET_FEATURES, lambda b, v, f, usual: usual(b, v, f) & ~int(V.VERSION_1))


@fault_for("features/taken")
def agrees_to_nothing(back_end: Faulty) -> None:
    back_end.at(R.SET_FEATURES, lambda *_: None)


@fault_for("features/not-offered")
def agrees_to_everything(back_end: Faulty) -> None:
    back_end.at(R.SET_FEATURES, lambda b, v, f, usual: usual(b, v & int(b.features), f))


@fault_for("features/queue-num")
def has_no_queues(back_end: Faulty) -> None:
    back_end.at(R.GET_QUEUE_NUM, lambda *_: 0)


@fault_for("features/mem-slots")
def has_no_slots(back_end: Faulty) -> None:
    back_end.at(R.GET_MAX_MEM_SLOTS, lambda *_: 0)


# Messages


def with_flags(back_end: Faulty, flags: int, *, of: FrontEndRequest | None = None) -> None:
    def reply(request: Any, value: Any = None, fds: list[int] | None = None) -> Message:
        message = encode_reply(request, value, fds)
        message.flags |= flags if of in (None, request) else 0
        return message

    back_end.put("vhost_user.backend.session.encode_reply", reply)


@fault_for("messages/reply")
def has_a_flag_that_there_is_none_of(back_end: Faulty) -> None:
    with_flags(back_end, 0x10, of=R.GET_VRING_BASE)


@fault_for("messages/reply-flags")
def keeps_the_flag_that_asks(back_end: Faulty) -> None:
    with_flags(back_end, NEED_REPLY)


def handles(back_end: Faulty, does: Callable[[Usual, Session, Message], None]) -> None:
    back_end.instead(Session, "_handle", does)


def say(session: Session, request: int, value: int = 0) -> None:
    session._stream.send(acknowledge(request, value).encode())


@fault_for("messages/one-reply")
def answers_twice_where_asked(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        usual(session, message)
        if message.needs_reply and message.request == R.GET_FEATURES:
            say(session, message.request)

    handles(back_end, handle)


@fault_for("messages/acknowledged")
def acknowledges_with_an_error(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_BASE, lambda *_: (_ for _ in ()).throw(ProtocolError("on purpose")))


@fault_for("messages/silent")
def acknowledges_unasked(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        usual(session, message)
        if message.request == R.SET_VRING_BASE and not message.needs_reply:
            say(session, message.request)

    handles(back_end, handle)


@fault_for("messages/acknowledged-on-agreeing")
def says_nothing_to_agreeing(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        if message.request == R.SET_PROTOCOL_FEATURES:
            message.flags &= ~NEED_REPLY
        usual(session, message)

    handles(back_end, handle)


@fault_for("messages/not-agreed")
def acknowledges_without_agreeing(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        usual(session, message)
        if message.needs_reply and P.REPLY_ACK not in session._back_end.negotiated.protocol_features:
            say(session, message.request)

    handles(back_end, handle)


@fault_for("messages/refused")
def takes_any_size(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_NUM, nothing)


@fault_for("messages/refused-and-on")
def ends_at_a_wrong_size(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_NUM, lambda b, v, f, usual: usual(b, v, f) if v.num else fatal())


@fault_for("messages/unknown")
def takes_any_request(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        if message.request > 1000:
            say(session, message.request)
        else:
            usual(session, message)

    handles(back_end, handle)


@fault_for("messages/wrong-size")
def takes_any_payload(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        if message.request == R.SET_VRING_NUM and len(message.payload) < 8:
            say(session, message.request)
        else:
            usual(session, message)

    handles(back_end, handle)


@fault_for("messages/in-pieces")
def takes_whole_messages_only(back_end: Faulty) -> None:
    def receive(usual: Usual, session: Session) -> None:
        usual(session)
        if session._framer.pending:
            raise Ended("a piece of a message")

    back_end.instead(Session, "_receive", receive)


@fault_for("messages/pipelined")
def takes_one_message_at_a_time(back_end: Faulty) -> None:
    def receive(usual: Usual, session: Session) -> None:
        taken.clear()
        usual(session)

    def handle(usual: Usual, session: Session, message: Message) -> None:
        if not taken:
            usual(session, message)
        taken.append(message.request)

    taken: list[int] = []
    back_end.instead(Session, "_receive", receive)
    handles(back_end, handle)


@fault_for("messages/channel")
def wants_no_channel(back_end: Faulty) -> None:
    back_end.at(R.SET_BACKEND_REQ_FD, fatal)


@fault_for("messages/second-owner")
def has_one_owner(back_end: Faulty) -> None:
    owned: list[BackEnd] = []

    def own(b: BackEnd, v: None, f: list[int], usual: Usual) -> None:
        if b in owned:
            fatal()
        owned.append(b)
        usual(b, v, f)

    back_end.at(R.SET_OWNER, own)
