"""What an interposer knows of a vhost-user session after each message."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import Any

from tests.cases import for_each_row
from tests.vhost.between import Between, P, R, V
from userdev.transport import close_all
from vhost_user.interposer.session_model import MAX_SLOTS, RingShown, SessionModel
from vhost_user.interposer.unanswered import LIMIT
from vhost_user.wire import (
    NO_FD,
    REPLY,
    VERSION,
    DeviceStatus,
    FrontEndRequest,
    Message,
    Negotiated,
    acknowledge,
    encode_reply,
    encode_request,
)
from vhost_user.wire.payloads import Region, VringState


def test_what_a_back_end_asks_where_it_only_answers_teaches_nothing(between: Between) -> None:
    between.negotiate()
    before = replace(between.session.model)
    between.back_end.send(encode_request(R.SET_FEATURES, 0, need_reply=True))
    assert between.front_end.receive().request == R.SET_FEATURES
    assert between.session.model == before
    assert len(between.session.waiting) == 0


def test_the_states_of_a_session(between: Between) -> None:
    states = [between.session.state]
    between.negotiate()
    states.append(between.session.state)
    between.start_ring()
    states.append(between.session.state)
    between.ask(R.GET_VRING_BASE, VringState(0, 0), VringState(0, 7))
    states.append(between.session.state)
    assert states == ["before-features", "set-up", "running", "stopped"]
    assert between.session.model.rings[0].base == 7
    between.ask(R.GET_VRING_BASE, VringState(0, 0), VringState(0, 0x8003_8001))
    assert between.session.model.rings[0].base == 0x8003_8001, "of a packed ring it has both places"


def test_a_session_runs_as_long_as_one_ring_does(between: Between) -> None:
    between.negotiate()
    between.start_ring(0)
    between.start_ring(1)
    between.ask(R.GET_VRING_BASE, VringState(0, 0), VringState(0, 0))
    assert between.session.state == "running"


def test_a_ring_that_is_started_in_band_runs(between: Between) -> None:
    between.negotiate()
    between.tell(R.VRING_KICK, VringState(0, 0))
    assert between.session.state == "running"


def test_rings_memory_and_features_are_known(between: Between) -> None:
    between.negotiate()
    between.tell(R.SET_VRING_NUM, VringState(1, 256))
    between.tell(R.SET_VRING_ENABLE, VringState(1, 1))
    memory = os.memfd_create("guest")
    between.tell(R.SET_MEM_TABLE, (Region(0x1000, 4096, 0x7000, 0),), [memory])
    os.close(memory)
    model = between.session.model
    assert (model.rings[1].size, model.rings[1].enabled, model.rings[1].started) == (256, True, False)
    assert list(model.regions) == [0x1000]
    assert model.negotiated.protocol_features == P.REPLY_ACK | P.CONFIG | P.BACKEND_REQ


def test_memory_is_what_the_back_end_has_acknowledged(between: Between) -> None:
    """One that was asked to say so; whatever has gone out since is done behind that."""
    model = between.session.model
    between.negotiate()
    region = [Region(index << 20, 4096, index << 30, 0) for index in range(3)]

    def told(request: FrontEndRequest, value: object, need_reply: bool) -> None:
        fd = os.memfd_create("guest")
        between.front_end.send(encode_request(request, value, [fd], need_reply=need_reply))
        close_all([fd, *between.back_end.receive().fds])

    def acknowledged(request: FrontEndRequest, error: int) -> list[int]:
        between.back_end.send(acknowledge(request, error))
        between.front_end.receive()
        return list(model.regions)

    told(R.ADD_MEM_REG, region[0], True)
    assert not model.regions
    assert acknowledged(R.ADD_MEM_REG, errno.EINVAL) == []
    told(R.SET_MEM_TABLE, (region[1],), True)
    assert acknowledged(R.SET_MEM_TABLE, 0) == [1 << 20]
    told(R.SET_MEM_TABLE, (region[0],), True)
    told(R.ADD_MEM_REG, region[2], False)
    assert list(model.regions) == [1 << 20]
    assert acknowledged(R.SET_MEM_TABLE, errno.ENOSPC) == [1 << 20, 2 << 20]


def request_name(message: Message) -> str:
    known = {int(request): request.name for request in R}
    return known.get(message.request, "unknown") + ("'s reply" if message.is_reply else "")


REGION = Region(0x1000, 4096, 0x7000, 0)
BEFORE = [
    encode_request(R.SET_PROTOCOL_FEATURES, P.REPLY_ACK),
    encode_request(R.SET_FEATURES, V.VERSION_1 | V.PROTOCOL_FEATURES),
    encode_request(R.ADD_MEM_REG, REGION, [0]),
    encode_request(R.SET_STATUS, DeviceStatus.ACKNOWLEDGE),
    encode_request(R.SET_VRING_NUM, VringState(1, 256)),
    encode_request(R.SET_VRING_BASE, VringState(1, 7)),
    encode_request(R.SET_VRING_KICK, 1, [0]),
    encode_request(R.SET_VRING_ENABLE, VringState(1, 1)),
]
KNOWN = SessionModel(
    Negotiated(V.VERSION_1 | V.PROTOCOL_FEATURES, P.REPLY_ACK),
    {1: RingShown(256, 7, started=True, enabled=True)},
    {0x1000: REGION},
    DeviceStatus.ACKNOWLEDGE,
    _agreed=True,
    _ran=True,
)
RESET = {"rings": {1: RingShown(256, 7)}, "status": DeviceStatus(0)}


@for_each_row(
    [
        ([], {}),
        ([encode_request(R.SET_FEATURES, V.VERSION_1)], {"negotiated": Negotiated(V.VERSION_1, P.REPLY_ACK)}),
        (
            [encode_request(R.SET_PROTOCOL_FEATURES, P.MQ)],
            {"negotiated": Negotiated(V.VERSION_1 | V.PROTOCOL_FEATURES, P.MQ)},
        ),
        (
            [encode_request(R.POSTCOPY_LISTEN)],
            {"negotiated": Negotiated(V.VERSION_1 | V.PROTOCOL_FEATURES, P.REPLY_ACK, postcopy=True)},
        ),
        (
            [encode_request(R.POSTCOPY_LISTEN), Message(R.SET_MEM_TABLE, VERSION, bytes(8))],  # acknowledges addresses
            {"negotiated": Negotiated(V.VERSION_1 | V.PROTOCOL_FEATURES, P.REPLY_ACK, postcopy=True)},
        ),
        ([encode_request(R.POSTCOPY_LISTEN), encode_request(R.POSTCOPY_END)], {}),
        ([encode_request(R.SET_STATUS, 4)], {"status": DeviceStatus(4)}),
        ([encode_request(R.SET_STATUS, 0)], RESET),
        ([encode_request(R.RESET_DEVICE)], RESET),
        ([encode_request(R.RESET_OWNER)], {"rings": {1: RingShown(256, 7, started=True)}}),
        (
            [encode_request(R.RESET_OWNER), encode_request(R.SET_FEATURES, V.VERSION_1)],
            {"negotiated": Negotiated(V.VERSION_1, P.REPLY_ACK)},
        ),
        (
            [encode_request(R.POSTCOPY_LISTEN), encode_request(R.SET_OWNER)],
            {
                "negotiated": Negotiated(V(0), P.REPLY_ACK),
                "rings": {},
                "regions": {},
                "status": DeviceStatus(0),
                "_agreed": False,
                "_ran": False,
            },
        ),
        (
            [encode_request(R.SET_MEM_TABLE, (REGION._replace(guest_address=0),), [0])],
            {"regions": {0: REGION._replace(guest_address=0)}},
        ),
        (
            [encode_request(R.ADD_MEM_REG, REGION._replace(guest_address=0), [0])],
            {"regions": {0x1000: REGION, 0: REGION._replace(guest_address=0)}},
        ),
        ([encode_request(R.REM_MEM_REG, REGION)], {"regions": {}}),
        ([encode_request(R.REM_MEM_REG, REGION._replace(guest_address=0))], {}),
        ([encode_request(R.SET_VRING_NUM, VringState(1, 64))], {"rings": {1: RingShown(64, 7, True, True)}}),
        ([encode_request(R.SET_VRING_BASE, VringState(1, 9))], {"rings": {1: RingShown(256, 9, True, True)}}),
        ([encode_request(R.SET_VRING_ENABLE, VringState(1, 0))], {"rings": {1: RingShown(256, 7, True, False)}}),
        ([encode_request(R.GET_VRING_BASE, VringState(1, 0))], {"rings": {1: RingShown(256, 7, False, True)}}),
        (
            [encode_request(R.GET_VRING_BASE_SKIP_DRAIN, VringState(1, 0))],
            {"rings": {1: RingShown(256, 7, False, True)}},
        ),
        ([encode_reply(R.GET_VRING_BASE, VringState(1, 12))], {"rings": {1: RingShown(256, 12, True, True)}}),
        (
            [encode_reply(R.GET_VRING_BASE_SKIP_DRAIN, VringState(1, 12))],
            {"rings": {1: RingShown(256, 12, True, True)}},
        ),
        ([encode_reply(R.GET_FEATURES, 0), Message(R.GET_VRING_BASE, VERSION | REPLY, b"odd")], {}),
        ([Message(R.SET_VRING_NUM, VERSION, b"odd"), Message(99, VERSION), encode_request(R.GET_FEATURES)], {}),
        (
            [encode_request(R.SET_VRING_KICK, 2 | NO_FD)],
            {"rings": {1: RingShown(256, 7, True, True), 2: RingShown(started=True)}},
        ),
        (
            [encode_request(R.VRING_KICK, VringState(2, 0))],
            {"rings": {1: RingShown(256, 7, True, True), 2: RingShown(started=True)}},
        ),
    ],
    ids=lambda said: "+".join(request_name(one) for one in said) if isinstance(said, list) else "",
)
def test_what_is_known_after_each_message(said: list[Message], changes: dict[str, Any]) -> None:
    model = SessionModel()
    for message in [*BEFORE, *said]:
        if message.is_reply:
            model.answered(message)
        else:
            model.requested(message)
    assert model == replace(KNOWN, **changes)


def test_memory_that_another_owner_had_asked_for_is_not_there_when_it_is_acknowledged(between: Between) -> None:
    between.negotiate()
    memory = os.memfd_create("guest")
    between.front_end.send(encode_request(R.ADD_MEM_REG, REGION, [memory], need_reply=True))
    close_all([memory, *between.back_end.receive().fds])
    between.tell(R.SET_OWNER)
    between.back_end.send(acknowledge(R.ADD_MEM_REG))
    between.front_end.receive()
    assert between.session.model.regions == {}


def test_memory_that_nobody_acknowledges_is_taken_for_there_once_too_much_waits() -> None:
    model = SessionModel()
    model.requested(encode_request(R.SET_PROTOCOL_FEATURES, P.REPLY_ACK))
    settle = []
    for index in range(LIMIT + 2):
        told = encode_request(R.ADD_MEM_REG, REGION._replace(guest_address=index << 20), [0], need_reply=True)
        settle.append(model.awaited(told))
    assert list(model.regions) == [0, 1 << 20]
    [first, *_, last] = settle
    assert first is not None
    assert last is not None
    first(acknowledge(R.ADD_MEM_REG, errno.EINVAL))
    last(acknowledge(R.ADD_MEM_REG))
    assert list(model.regions) == [0, 1 << 20], "what is before it has no answer"


def test_regions_that_nobody_refuses_are_kept_up_to_a_bound_and_the_last_of_each_address() -> None:
    model = SessionModel()
    for index in range(MAX_SLOTS + 2):
        model.requested(encode_request(R.ADD_MEM_REG, Region(index << 20, 4096, 0, 0), [0]))
    assert len(model.regions) == MAX_SLOTS
    model.requested(encode_request(R.ADD_MEM_REG, Region(0, 8192, 0, 0), [0]))
    assert model.regions[0].size == 8192
    model.requested(encode_request(R.REM_MEM_REG, Region(0, 8192, 0, 0)))
    model.requested(encode_request(R.ADD_MEM_REG, Region(1 << 60, 4096, 0, 0), [0]))
    assert 1 << 60 in model.regions


def test_a_ring_without_protocol_features_is_enabled_once_it_is_started(between: Between) -> None:
    between.negotiate(V.VERSION_1)
    between.start_ring()
    assert between.session.model.rings[0].enabled


def test_memory_whose_acknowledgement_was_left_out_counts_as_shared(between: Between) -> None:
    """A back-end that answers what comes behind it has not refused it."""
    between.negotiate()
    memory = os.memfd_create("guest")
    between.front_end.send(encode_request(R.ADD_MEM_REG, REGION, [memory], need_reply=True))
    close_all([memory, *between.back_end.receive().fds])
    assert between.session.model.regions == {}
    between.acknowledged(R.SET_VRING_NUM, VringState(0, 64))
    assert between.session.model.regions == {REGION.guest_address: REGION}
