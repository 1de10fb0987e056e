"""Back-ends of ours with one fault each: by the id of the check that it is for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from userdev.errors import ProtocolError
from userdev.eventfd import drain
from userdev.transport import close_all
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.commands import COMMANDS, Answer
from vhost_user.backend.lifecycle import RingEvent, RingState
from vhost_user.backend.line import Line
from vhost_user.backend.session import Ended, Session
from vhost_user.backend.vring import Vring
from vhost_user.backend.vrings import Vrings
from vhost_user.memory import DirtyLog
from vhost_user.rings import BrokenRing, PackedRing, Ring, SplitInflight, SplitRing
from vhost_user.wire import (
    NEED_REPLY,
    DeviceStatus,
    FrontEndRequest,
    Message,
    ProtocolFeature,
    VirtioFeature,
    acknowledge,
    encode_reply,
)
from vhost_user.wire.payloads import Config, Region, VringState

R, V, P = FrontEndRequest, VirtioFeature, ProtocolFeature

Usual = Callable[..., Any]
Fault = Callable[["Faulty"], None]


class Faulty:
    """What a fault changes of the back-ends of this process, until the end of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._commands = dict(COMMANDS)
        monkeypatch.setattr("vhost_user.backend.session.COMMANDS", self._commands)
        self.leaked: list[int] = []

    def close(self) -> None:
        """Close what a fault has kept."""
        close_all(self.leaked)

    def at(self, request: FrontEndRequest, does: Callable[..., Any]) -> None:
        """Do something else at a request: it is given the back-end, the payload, the descriptors and what is usual."""
        usual = self._commands[request]
        self._commands[request] = lambda back_end, value, fds: does(back_end, value, fds, usual)

    def instead(self, owner: Any, name: str, does: Callable[..., Any]) -> None:
        """Do something else in a method: it is given what is usual, and the arguments."""
        usual = getattr(owner, name)
        self._monkeypatch.setattr(owner, name, lambda *args, **kwargs: does(usual, *args, **kwargs))

    def put(self, name: str, value: Any) -> None:
        """Have another value of what is called so, from its module on."""
        self._monkeypatch.setattr(name, value)


FAULTS: dict[str, Fault] = {}


def fault_for(*ids: str) -> Callable[[Fault], Fault]:
    """Enter a fault for these checks."""

    def enter(fault: Fault) -> Fault:
        for name in ids:
            assert name not in FAULTS
            FAULTS[name] = fault
        return fault

    return enter


def fatal(*_: Any) -> None:
    raise ProtocolError("on purpose", fatal=True)


def nothing(*_: Any, **__: Any) -> None:
    return None


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


# Memory


@fault_for("memory/table")
def takes_no_table(back_end: Faulty) -> None:
    back_end.at(R.SET_MEM_TABLE, nothing)


@fault_for("memory/table-of-several")
def takes_the_first_of_a_table(back_end: Faulty) -> None:
    back_end.at(R.SET_MEM_TABLE, lambda b, regions, fds, usual: usual(b, regions[:1], fds[:1]))


@fault_for("memory/slots")
def takes_the_first_slot(back_end: Faulty) -> None:
    back_end.at(R.ADD_MEM_REG, lambda b, region, fds, usual: None if region.guest_address else usual(b, region, fds))


@fault_for("memory/slot-gone")
def compares_offsets(back_end: Faulty) -> None:
    def remove(b: BackEnd, region: Region, fds: list[int], usual: Usual) -> None:
        if region.mmap_offset != region.guest_address:
            raise ProtocolError("another offset")
        usual(b, region, fds)

    back_end.at(R.REM_MEM_REG, remove)


@fault_for("memory/slot-gone-with-descriptor")
def refuses_descriptors_of_slots_that_go(back_end: Faulty) -> None:
    back_end.at(R.REM_MEM_REG, lambda b, region, fds, usual: fatal() if fds else usual(b, region, fds))


@fault_for("memory/slot-unknown")
def removes_anything(back_end: Faulty) -> None:
    back_end.at(R.REM_MEM_REG, nothing)


@fault_for("memory/offset-on-no-page")
def maps_pages_only(back_end: Faulty) -> None:
    back_end.at(
        R.SET_MEM_TABLE,
        lambda b, regions, fds, usual: fatal() if regions[0].mmap_offset % 4096 else usual(b, regions, fds),
    )


@fault_for("memory/region-without-memory")
def takes_nothing_for_a_region(back_end: Faulty) -> None:
    back_end.at(R.SET_MEM_TABLE, lambda b, regions, fds, usual: usual(b, regions, fds) if regions[0].size else None)


@fault_for("memory/again-while-running")
def takes_a_table_once(back_end: Faulty) -> None:
    back_end.at(R.SET_MEM_TABLE, lambda b, regions, fds, usual: fatal() if b.vrings.started else usual(b, regions, fds))


@fault_for("memory/over-a-border")
def knows_one_region(back_end: Faulty) -> None:
    def buffer(usual: Usual, ring: Ring, *_: Any) -> None:
        raise BrokenRing("on purpose")

    back_end.instead(Ring, "_buffer", buffer)


# The life of rings


@fault_for("rings/served")
def calls_nobody(back_end: Faulty) -> None:
    def set_line(usual: Usual, line: Line, fd: int | None) -> None:
        usual(line, fd)
        line.signal = lambda: None

    back_end.instead(Line, "set", set_line)


@fault_for("rings/round-and-round")
def tires(back_end: Faulty) -> None:
    served: list[None] = []

    def serve(usual: Usual, vring: Vring) -> None:
        if len(served) < 3:
            served.append(usual(vring))
        vring.pending = vring.pending and len(served) < 3

    back_end.instead(Vring, "serve", serve)


@fault_for("rings/without-protocol-features")
def waits_to_be_enabled(back_end: Faulty) -> None:
    def set_kick(usual: Usual, vrings: Vrings, vring: Vring, fd: int | None) -> None:
        vring.is_told = True
        usual(vrings, vring, fd)

    back_end.instead(Vrings, "set_kick", set_kick)


@fault_for("rings/call-before-kick")
def wants_memory_first(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_CALL, lambda b, v, f, usual: usual(b, v, f) if len(b.vrings.table) else fatal())


@fault_for("rings/kick-before-call")
def wants_calls_first(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_CALL, lambda b, v, f, usual: fatal() if b.vrings.started else usual(b, v, f))


@fault_for("rings/disabled-at-first")
def enables_by_itself(back_end: Faulty) -> None:
    def set_kick(usual: Usual, vrings: Vrings, vring: Vring, fd: int | None) -> None:
        vring.happen(RingEvent.ENABLE)
        usual(vrings, vring, fd)

    back_end.instead(Vrings, "set_kick", set_kick)


@fault_for("rings/disabled")
def never_disables(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_ENABLE, lambda b, v, f, usual: usual(b, v, f) if v.num else None)


@fault_for("rings/enabled-again")
def never_enables_again(back_end: Faulty) -> None:
    back_end.at(
        R.SET_VRING_ENABLE,
        lambda b, v, f, usual: None if v.num and b.vrings[v.vring].is_told else usual(b, v, f),
    )


@fault_for("rings/kick-while-disabled", "rings/there-at-start")
def looks_at_new_kicks_alone(back_end: Faulty) -> None:
    def run(usual: Usual, vring: Vring) -> None:
        usual(vring)
        vring.pending = False
        drain(vring._kick)

    def rest(usual: Usual, vring: Vring) -> bool:
        vring.is_awake = False
        return False

    back_end.instead(Vring, "_run", run)
    back_end.instead(Vring, "rest", rest)
    back_end.instead(Vring, "look", lambda usual, vring: False)


@fault_for("rings/base-at-stop")
def counts_one_more(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, v, f, usual: VringState(v.vring, usual(b, v, f).num + 1))


@fault_for("rings/base-of-nothing")
def begins_somewhere(back_end: Faulty) -> None:
    back_end.at(
        R.GET_VRING_BASE, lambda b, v, f, usual: usual(b, v, f) if b.negotiated.features else VringState(v.vring, 7)
    )


@fault_for("rings/stopped")
def never_stops(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, v, f, usual: VringState(v.vring, b.vrings[v.vring].ring.base))


@fault_for("rings/drained")
def says_more_than_came_back(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, v, f, usual: VringState(v.vring, usual(b, v, f).num + 3))


@fault_for("rings/restarted")
def starts_once(back_end: Faulty) -> None:
    def kick(b: BackEnd, value: int, fds: list[int], usual: Usual) -> None:
        if not b.vrings[value & 0xFF].base:
            usual(b, value, fds)

    back_end.at(R.SET_VRING_KICK, kick)


@fault_for("rings/restarted-elsewhere")
def begins_at_0(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.split.SplitRing._first", lambda ring, base: 0)


@fault_for("rings/remembered")
def forgets_addresses(back_end: Faulty) -> None:
    def stop(usual: Usual, vrings: Vrings, vring: Vring) -> int:
        base: int = usual(vrings, vring)
        vring.addresses = None
        return base

    back_end.instead(Vrings, "stop", stop)


@fault_for("rings/another-call")
def keeps_the_first_call(back_end: Faulty) -> None:
    back_end.at(
        R.SET_VRING_CALL,
        lambda b, v, f, usual: None if b.vrings[v & 0xFF].state is RingState.RUNNING else usual(b, v, f),
    )


@fault_for("rings/independent")
def stops_all(back_end: Faulty) -> None:
    def get_base(b: BackEnd, said: VringState, f: list[int], usual: Usual) -> Any:
        answer = usual(b, said, f)
        b.vrings.stop_all()
        return answer

    back_end.at(R.GET_VRING_BASE, get_base)


# Kinds of ring


@fault_for("kinds/indirect")
def knows_no_tables(back_end: Faulty) -> None:
    def indirect(usual: Usual, ring: Ring, *_: Any) -> None:
        raise BrokenRing("on purpose")

    back_end.instead(Ring, "_indirect", indirect)


@fault_for("kinds/events", "kinds/packed-events")
def tells_of_the_first_alone(back_end: Faulty) -> None:
    for kind in (SplitRing, PackedRing):
        back_end.instead(kind, "_is_wanted", lambda usual, ring, *places: not ring._told and usual(ring, *places))


@fault_for("kinds/in-order")
def gives_back_in_reverse(back_end: Faulty) -> None:
    def publish(usual: Usual, ring: Ring) -> bool:
        ring._finished.reverse()
        told: bool = usual(ring)
        return told

    back_end.instead(SplitRing, "publish", publish)


@fault_for("kinds/packed")
def never_wraps(back_end: Faulty) -> None:
    back_end.instead(
        PackedRing, "_after", lambda usual, ring, index, wrap, slots: (usual(ring, index, wrap, slots)[0], wrap)
    )


@fault_for("kinds/packed-base")
def says_half_of_a_base(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, v, f, usual: VringState(v.vring, usual(b, v, f).num & 0xFFFF))


# Configuration, status, reset


def configured(back_end: Faulty, change: Callable[[BackEnd, Config, bytes], bytes]) -> None:
    """Have other bytes come than the device has."""

    def get(b: BackEnd, wanted: Config, fds: list[int], usual: Usual) -> Config:
        data = change(b, wanted, usual(b, wanted, fds).data)
        return wanted._replace(size=len(data), data=data)

    back_end.at(R.GET_CONFIG, get)


@fault_for("config/as-long-as-asked")
def gives_one_byte_less(back_end: Faulty) -> None:
    configured(back_end, lambda b, wanted, data: data[:-1])


@fault_for("config/same")
def counts_reads(back_end: Faulty) -> None:
    reads: list[None] = []

    def change(b: BackEnd, wanted: Config, data: bytes) -> bytes:
        reads.append(None)
        return bytes((len(reads),)) + data[1:]

    configured(back_end, change)


@fault_for("config/from-an-offset")
def begins_at_the_beginning(back_end: Faulty) -> None:
    configured(back_end, lambda b, wanted, data: b.model.config.read()[: wanted.size])


@fault_for("config/beyond-the-end")
def gives_what_there_is(back_end: Faulty) -> None:
    configured(back_end, lambda b, wanted, data: b.model.config.read()[: wanted.size])


@fault_for("config/read-only")
def writes_anything(back_end: Faulty) -> None:
    back_end.at(
        R.SET_CONFIG, lambda b, said, f, usual: b.model.config.write(0, said.data + bytes(7), read_only_too=True)
    )


@fault_for("status/kept")
def keeps_no_status(back_end: Faulty) -> None:
    back_end.at(R.SET_STATUS, nothing)


@fault_for("status/zero")
def knows_no_status_0(back_end: Faulty) -> None:
    back_end.at(R.SET_STATUS, lambda b, v, f, usual: usual(b, v, f) if v else None)


@fault_for("status/zero-stops")
def keeps_running_at_status_0(back_end: Faulty) -> None:
    def set_status(b: BackEnd, value: int, f: list[int], usual: Usual) -> None:
        b.status = DeviceStatus(value)

    back_end.at(R.SET_STATUS, set_status)


@fault_for("reset/stops")
def resets_nothing(back_end: Faulty) -> None:
    back_end.at(R.RESET_DEVICE, nothing)


@fault_for("reset/starts-again")
def forgets_memory_at_a_reset(back_end: Faulty) -> None:
    def reset(b: BackEnd, v: None, f: list[int], usual: Usual) -> None:
        usual(b, v, f)
        b.vrings.table.clear()

    back_end.at(R.RESET_DEVICE, reset)


# Dirty log


@fault_for("log/answered")
def answers_a_log_twice(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        usual(session, message)
        if message.request == R.SET_LOG_BASE:
            say(session, message.request)

    handles(back_end, handle)


@fault_for("log/answer")
def repeats_the_log(back_end: Faulty) -> None:
    def set_log(b: BackEnd, log: Any, f: list[int], usual: Usual) -> Any:
        usual(b, log, f)
        return log

    back_end.at(R.SET_LOG_BASE, set_log)


@fault_for("log/data")
def marks_no_data(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.ring.Ring._mark", nothing)


@fault_for("log/used-ring")
def marks_no_ring(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.ring.Ring._mark_ring", nothing)


@fault_for("log/another")
def keeps_the_first_log(back_end: Faulty) -> None:
    def set_log(usual: Usual, vrings: Vrings, log: DirtyLog | None) -> None:
        if log is not None and vrings._log is not None:
            log.close()
            return
        usual(vrings, log)

    back_end.instead(Vrings, "set_log", set_log)


@fault_for("log/off")
def marks_always(back_end: Faulty) -> None:
    back_end.put("vhost_user.backend.vrings.Vrings._log_now", property(lambda vrings: vrings._log))


# In-flight region


@fault_for("inflight/given")
def gives_too_little(back_end: Faulty) -> None:
    def get(b: BackEnd, wanted: Any, f: list[int], usual: Usual) -> Answer:
        described, fds = usual(b, wanted, f)
        return Answer(described._replace(mmap_size=16), fds)

    back_end.at(R.GET_INFLIGHT_FD, get)


@fault_for("inflight/taken")
def takes_no_region(back_end: Faulty) -> None:
    back_end.at(R.SET_INFLIGHT_FD, fatal)


@fault_for("inflight/kept")
def never_finishes(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.inflight.SplitInflight.finish", nothing)


@fault_for("inflight/resubmitted")
def does_nothing_again(back_end: Faulty) -> None:
    back_end.instead(SplitInflight, "recover", lambda usual, part, *places: usual(part, *places)[1:])


# The device's state


@fault_for("state/saved")
def does_not_know_how_it_went(back_end: Faulty) -> None:
    back_end.at(R.CHECK_DEVICE_STATE, lambda b, v, f, usual: usual(b, v, f) or 1)


@fault_for("state/loaded")
def loads_nothing(back_end: Faulty) -> None:
    back_end.at(R.SET_DEVICE_STATE_FD, lambda b, v, f, usual: fatal() if v.direction else usual(b, v, f))


@fault_for("state/cut-off")
def takes_any_state(back_end: Faulty) -> None:
    def check(b: BackEnd, v: None, f: list[int], usual: Usual) -> int:
        usual(b, v, f)
        return 0

    back_end.at(R.CHECK_DEVICE_STATE, check)


# Front-ends that come and go


def lost_after(back_end: Faulty, is_last: Callable[[Session], bool]) -> None:
    """Serve nobody any more, once a session has ended of which this holds."""
    lost: list[None] = []

    def end(usual: Usual, session: Session, *, attached: bool) -> None:
        if is_last(session):
            lost.append(None)
        usual(session, attached=attached)

    def wait(usual: Usual, session: Session) -> None:
        if lost:
            raise Ended("")
        usual(session)

    back_end.instead(Session, "_end", end)
    back_end.instead(Session, "_wait", wait)


@fault_for("session/next")
def serves_one(back_end: Faulty) -> None:
    lost_after(back_end, lambda session: len(session._back_end.vrings.table) > 0)


@fault_for("session/gone-while-running")
def is_lost_with_a_ring_that_runs(back_end: Faulty) -> None:
    lost_after(back_end, lambda session: bool(session._back_end.vrings.started))


@fault_for("session/cut-off")
def is_lost_in_a_message(back_end: Faulty) -> None:
    lost_after(back_end, lambda session: session._framer.pending > 0)


@fault_for("session/second")
def lets_others_wait(back_end: Faulty) -> None:
    back_end.put("userdev.serving.server.GRACE_SECONDS", 1.0)
    back_end.put("vhost_user.frontend.conformance.sessions.SECOND_SECONDS", 0.1)


@fault_for("session/nothing-left")
def keeps_descriptors(back_end: Faulty) -> None:
    def call(b: BackEnd, value: int, fds: list[int], usual: Usual) -> None:
        back_end.leaked.append(os.dup(fds[0]))
        usual(b, value, fds)

    back_end.at(R.SET_VRING_CALL, call)
