"""Between a front-end and a back-end: what passes, whom a reply answers, and how it ends."""

from __future__ import annotations

import errno
import os
import resource
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.descriptors import fd_count
from tests.vhost.between import B, Between, P, R, V, channel
from userdev.relay import Direction
from userdev.trace import Note, read_trace
from userdev.transport import close_all
from vhost_user.interposer.interposer import _session_status as session_status
from vhost_user.interposer.traces import PROTOCOL
from vhost_user.interposer.unanswered import LIMIT, SentRequest, Unanswered
from vhost_user.wire import (
    NEED_REPLY,
    REPLY,
    VERSION,
    FrontEndRequest,
    Message,
    ProtocolFeature,
    acknowledge,
    encode_reply,
    encode_request,
)
from vhost_user.wire.payloads import Config, Region

# -- what passes


def test_requests_and_replies_pass_as_they_are(between: Between) -> None:
    request = encode_request(R.GET_CONFIG, Config(0, 8, 0, bytes(8)))
    between.front_end.send(request)
    assert between.back_end.receive() == request
    reply = encode_reply(R.GET_CONFIG, Config(0, 8, 0, b"12345678"))
    between.back_end.send(reply)
    assert between.front_end.receive() == reply


def test_descriptors_pass_with_their_message_and_none_stays_here(between: Between) -> None:
    before = fd_count()
    memory = [os.memfd_create("guest") for _ in range(2)]
    table = tuple(Region(index << 20, 4096, index << 30, 0) for index in range(2))
    between.front_end.send(encode_request(R.SET_MEM_TABLE, table, memory))
    arrived = between.back_end.receive()
    assert [os.fstat(fd).st_ino for fd in arrived.fds] == [os.fstat(fd).st_ino for fd in memory]
    close_all([*arrived.fds, *memory])
    assert fd_count() == before


def test_what_is_no_message_passes_as_bytes(between: Between) -> None:
    between.front_end.socket.send(b"\xff" * 30)
    assert between.back_end.receive_bytes(30) == b"\xff" * 30


# -- the back-end's channel


def test_the_back_end_asks_and_is_answered_on_its_channel(between: Between) -> None:
    between.negotiate()
    with channel(between) as (front_end, back_end):
        asked = encode_request(B.CONFIG_CHANGE_MSG, need_reply=True)
        back_end.send(asked)
        assert front_end.receive() == asked
        front_end.send(acknowledge(B.CONFIG_CHANGE_MSG))
        assert back_end.receive() == acknowledge(B.CONFIG_CHANGE_MSG)


def test_an_answer_is_not_held_where_requests_are(between: Between) -> None:
    """Nobody makes the back-end wait who only keeps requests back."""
    between.negotiate()
    with channel(between) as (front_end, back_end):
        back_end.send(encode_request(B.CONFIG_CHANGE_MSG, need_reply=True))
        front_end.receive()
        between.session.channels[0].holding.hold()
        front_end.send(acknowledge(B.CONFIG_CHANGE_MSG))
        assert back_end.receive() == acknowledge(B.CONFIG_CHANGE_MSG)
        between.session.channels[0].holding.resume()


@pytest.mark.parametrize("leaving", [0, 1])
def test_the_end_of_the_channel_is_the_others_and_the_session_goes_on(between: Between, leaving: int) -> None:
    with channel(between) as ends:
        ends[leaving].close()
        assert ends[1 - leaving].at_end()
        ends[1 - leaving].close()
        between.until(lambda: not between.session.channels or None)
        assert between.ask(R.GET_FEATURES, answer=V.VERSION_1).is_reply


def test_a_channel_ends_with_its_session(between: Between) -> None:
    with channel(between) as (front_end, back_end):
        between.front_end.close()
        assert back_end.at_end()
        assert front_end.at_end()


def test_all_channels_end_with_their_session(between: Between) -> None:
    """For a moment there may be several."""
    with channel(between) as one, channel(between) as two, channel(between) as three:
        assert len(between.session.channels) == 3
        between.front_end.close()
        assert all(end.at_end() for end in (*one, *two, *three))
        assert not between.session.channels


def test_a_second_channel_takes_the_place_of_the_first(between: Between) -> None:
    with channel(between) as (_, first), channel(between) as (front_end, second):
        first.close()
        second.send(encode_request(B.CONFIG_CHANGE_MSG))
        assert front_end.receive().request == B.CONFIG_CHANGE_MSG


def test_a_descriptor_that_is_no_socket_is_the_back_ends_to_refuse(between: Between) -> None:
    memory = os.memfd_create("no socket")
    between.front_end.send(encode_request(R.SET_BACKEND_REQ_FD, None, [memory]))
    arrived = between.back_end.receive()
    assert [os.fstat(fd).st_ino for fd in arrived.fds] == [os.fstat(memory).st_ino]
    close_all([memory, *arrived.fds])
    assert not between.session.channels


# -- whom a reply answers


def test_a_request_waits_for_its_reply_only_where_it_is_answered(between: Between) -> None:
    between.negotiate()
    between.tell(R.SET_OWNER)
    assert len(between.session.waiting) == 0
    between.front_end.send(encode_request(R.SET_OWNER, need_reply=True))
    between.back_end.receive()
    assert len(between.session.waiting) == 1


def test_need_reply_means_nothing_before_reply_ack_is_agreed_on(between: Between) -> None:
    between.front_end.send(encode_request(R.SET_OWNER, need_reply=True))
    between.back_end.receive()
    assert len(between.session.waiting) == 0


@pytest.mark.parametrize("agreed", [P.BACKEND_REQ, P.BACKEND_REQ | P.REPLY_ACK])
def test_a_request_that_nobody_knows_is_acknowledged_as_others_are(between: Between, agreed: ProtocolFeature) -> None:
    """On either connection."""
    between.tell(R.SET_PROTOCOL_FEATURES, agreed)
    unknown = Message(99, VERSION | NEED_REPLY)
    between.front_end.send(unknown)
    between.back_end.receive()
    with channel(between) as (front_end, back_end):
        back_end.send(unknown)
        front_end.receive()
        waiting = [len(one.waiting) for one in (between.session, *between.session.channels)]
        assert waiting == [P.REPLY_ACK in agreed] * 2


def test_a_request_that_is_never_answered_does_not_take_the_next_ones_reply(between: Between) -> None:
    between.negotiate()
    between.front_end.send(encode_request(R.SET_OWNER, need_reply=True))
    between.back_end.receive()
    between.ask(R.GET_QUEUE_NUM, answer=1)
    assert len(between.session.waiting) == 0


# -- holding, and the end


def test_requests_that_are_held_go_on_in_their_order(between: Between) -> None:
    between.session.holding.hold()
    for request in (R.SET_OWNER, R.GET_FEATURES):
        between.front_end.send(encode_request(request))
    assert between.back_end.is_silent()
    between.session.holding.resume()
    assert [between.back_end.receive().request for _ in range(2)] == [R.SET_OWNER, R.GET_FEATURES]


@pytest.mark.parametrize("leaving", ["front_end", "back_end"])
def test_when_either_side_is_gone_the_others_connection_is_closed(between: Between, leaving: str) -> None:
    ends = {"front_end": between.back_end, "back_end": between.front_end}
    getattr(between, leaving).close()
    assert ends[leaving].at_end()
    between.until(lambda: between.ended or None)


@pytest.mark.parametrize(("side", "hears"), [("client", "back_end"), ("server", "front_end")])
def test_a_side_that_is_cut_is_gone_for_the_other(between: Between, side: str, hears: str) -> None:
    between.session.close_side(side, socket.SHUT_RDWR)
    assert getattr(between, hears).at_end()


def test_a_request_that_has_lost_its_descriptors_is_refused_where_it_is_answered(between: Between) -> None:
    between.negotiate()
    lost = Message(R.SET_MEM_TABLE, VERSION | NEED_REPLY)
    between.session.lost(between.session.asker.asking, lost)
    reply = between.front_end.receive()
    assert (reply.request, reply.flags & REPLY, reply.payload) == (
        R.SET_MEM_TABLE,
        REPLY,
        errno.EMFILE.to_bytes(8, "little"),
    )
    assert between.back_end.is_silent()


def test_a_trace_says_which_request_has_lost_its_descriptors(tmp_path: Path) -> None:
    with Between(tmp_path / "trace") as between:
        between.session.lost(between.session.asker.asking, Message(R.SET_MEM_TABLE, VERSION))
    notes = [entry for entry in read_trace(tmp_path / "trace", PROTOCOL).entries if isinstance(entry, Note)]
    assert [note.details for note in notes if note.event == "descriptors-lost"] == [
        {"direction": "to-server", "request": R.SET_MEM_TABLE}
    ]


def test_a_reply_that_has_lost_its_descriptors_ends_the_session(between: Between) -> None:
    """Whatever flags it has: nobody can be told otherwise."""
    between.negotiate()
    between.session.lost(Direction.TO_CLIENT, Message(R.GET_INFLIGHT_FD, VERSION | REPLY | NEED_REPLY))
    assert between.front_end.at_end()
    assert between.back_end.at_end()


def test_a_request_that_has_lost_its_descriptors_and_is_not_answered_ends_the_session(between: Between) -> None:
    """A front-end would go on in the belief that its memory is known."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = os.memfd_create("guest")
    between.front_end.send(encode_request(R.SET_MEM_TABLE, (Region(0, 4096, 0, 0),), [memory]))
    os.close(memory)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        between.loop.turn(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert between.front_end.at_end()
    assert between.ended


def test_whoever_waits_for_a_reply_is_told_of_it_or_that_none_comes() -> None:
    """By their order: a reply to a later request says that those before it get none, and so does the bound."""

    def sent(*requests: FrontEndRequest) -> tuple[Unanswered, list[tuple[int, bool]]]:
        unanswered, told = Unanswered(), []
        for number, request in enumerate(requests, 1):
            tell = partial(lambda number, reply: told.append((number, reply is not None)), number)
            unanswered.sent(SentRequest(request, number, (tell,)))
        return unanswered, told

    features, queues = R.GET_FEATURES, R.GET_QUEUE_NUM
    for requests, reply, record, wanted, left in (
        ((features,), features, 1, [(1, True)], 0),
        ((features,), queues, 0, [], 1),
        ((features, queues), queues, 2, [(1, False), (2, True)], 0),
        ((features, features, queues), features, 1, [(1, True)], 2),
        ((queues, features, queues, queues), features, 2, [(1, False), (2, True)], 2),
    ):
        unanswered, told = sent(*requests)
        assert unanswered.answered(acknowledge(reply)) == record, (requests, reply)
        assert (told, len(unanswered)) == (wanted, left), (requests, reply)
    unanswered, told = sent(*[features] * (LIMIT + 2))
    assert (told, len(unanswered)) == ([(1, False), (2, False)], LIMIT)


def test_the_status_shows_the_channel_that_the_back_end_has_now() -> None:
    def side(number: int) -> Any:
        counters = SimpleNamespace(messages=[number] * 2, bytes=[0, 0], unframed=0, held=0, faults=0)
        return SimpleNamespace(counters=counters, waiting=[None] * number)

    for channels, shown, waiting in (([], None, 0), ([2], 2, 2), ([2, 3], 3, 3), ([2, 3, 4], 4, 4)):
        session: Any = side(1)
        session.state, session.channels = "running", [side(number) for number in channels]
        session.holding = Held()
        status = session_status(session)
        channel = status["back_end_channel"]
        assert (channel and channel["messages"]["to-server"]) == shown, channels
        assert status["waiting"] == {"to-server": 1, "to-client": waiting}, channels


class Held:
    """Nothing is."""

    active = False

    def __len__(self) -> int:
        return 0
