"""Kicks, calls and errors as messages, for front-ends that have no descriptors for them (a simulation, say)."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.vhost.channel import Channel
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, PROTOCOL, Disconnected, FrontEnd, P, Queue, R, no_fd, split
from userdev.transport import Stream
from vhost_user.device import Chain, Taken, queue
from vhost_user.wire import BackEndRequest, acknowledge
from vhost_user.wire.payloads import VringState

CALL, ERR = BackEndRequest.VRING_CALL, BackEndRequest.VRING_ERR
IN_BAND = PROTOCOL | P.BACKEND_REQ | P.INBAND_NOTIFICATIONS


class Watched(Reverse):
    """Looks, at each request, whether its front-end has an answer already."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = -1
        self.was_early = False

    @queue()
    def reverse(self, chain: Chain) -> Taken:
        if self.connection >= 0:
            self.was_early |= bool(select.select([self.connection], [], [], 0)[0])
        return super().reverse(chain)


@pytest.fixture
def device() -> Watched:
    return Watched()


@pytest.fixture
def simulated(stranger: FrontEnd) -> FrontEnd:
    """One that has agreed on messages instead of descriptors."""
    stranger.negotiate(protocol=IN_BAND)
    assert stranger.has(P.INBAND_NOTIFICATIONS)
    stranger.share_memory()
    return stranger


@pytest.fixture
def channel(simulated: FrontEnd) -> Iterator[Channel]:
    with Channel(simulated) as channel:
        yield channel


@pytest.fixture
def ring(simulated: FrontEnd) -> Queue:
    """A queue that is enabled and not started: no descriptor is given for it."""
    ring = simulated.queue()
    simulated.do(R.SET_VRING_NUM, VringState(0, ring.size))
    simulated.do(R.SET_VRING_BASE, VringState(0, 0))
    simulated.do(R.SET_VRING_ADDR, ring.addresses)
    simulated.do(R.SET_VRING_ENABLE, VringState(0, 1))
    return ring


def kick(front_end: FrontEnd, queue: int = 0) -> None:
    front_end.do(R.VRING_KICK, VringState(queue, 0))


def told(channel: Channel) -> tuple[BackEndRequest, int]:
    """What the back-end says next, and of which ring; it waits for an acknowledgement then."""
    request, value, message = channel.receive()
    assert message.needs_reply
    return request, value.vring


def test_a_kick_starts_a_ring_and_is_acknowledged_when_what_was_there_is_done(
    simulated: FrontEnd, channel: Channel, ring: Queue, device: Watched
) -> None:
    device.connection = simulated.stream.fileno()
    ring.put(b"ab", 2)
    kick(simulated)
    assert [completion.data for completion in ring.take_used()] == [b"ba"]
    assert not device.was_early
    assert told(channel) == (CALL, 0)


def test_a_kick_starts_a_ring_of_a_front_end_that_has_not_said_whose_the_back_end_is(stranger: FrontEnd) -> None:
    """SET_OWNER has all be as in the beginning, which it was."""
    offered = stranger.ask(R.GET_FEATURES)
    stranger.ask(R.GET_PROTOCOL_FEATURES)
    stranger.do(R.SET_PROTOCOL_FEATURES, int(IN_BAND))
    stranger.do(R.SET_FEATURES, int(FEATURES & offered))
    stranger.share_memory(as_table=True)
    ring = stranger.queue()
    stranger.do(R.SET_VRING_NUM, VringState(0, ring.size))
    stranger.do(R.SET_VRING_ADDR, ring.addresses)
    stranger.do(R.SET_VRING_ENABLE, VringState(0, 1))
    ring.put(b"ab", 2)
    stranger.do(R.VRING_KICK, VringState(0, 0))
    stranger.settle()
    assert [completion.data for completion in ring.take_used()] == [b"ba"]


def test_calls_before_an_acknowledgement_are_told_by_one_more(
    simulated: FrontEnd, channel: Channel, ring: Queue
) -> None:
    """A channel that is not read does not fill up, and no call is lost."""
    for _ in range(5):
        ring.put(b"ab", 2)
        kick(simulated)
    assert told(channel) == (CALL, 0)
    assert channel.is_silent()
    channel.answer(CALL)
    assert told(channel) == (CALL, 0)
    channel.answer(CALL)
    simulated.settle()
    assert channel.is_silent()
    assert len(ring.take_used()) == 5


def test_a_ring_that_breaks_is_told_of(simulated: FrontEnd, channel: Channel, ring: Queue) -> None:
    split(ring).describe(0, 0x8000, 4, 1, 0)
    split(ring).offer(0)
    kick(simulated)
    assert {told(channel), told(channel)} == {(CALL, 0), (ERR, 0)}


def test_descriptors_are_preferred_where_they_are_given(simulated: FrontEnd, channel: Channel) -> None:
    ring = simulated.queue()
    ring.start()
    assert ring.exchange(b"ab", 2).data == b"ba"
    ring.put(b"cd", 2)
    kick(simulated)  # a message does as well
    assert len(ring.take_used()) == 1
    assert channel.is_silent()


def test_a_front_end_that_looks_by_itself_is_not_called(simulated: FrontEnd, channel: Channel, ring: Queue) -> None:
    simulated.do(R.SET_VRING_CALL, no_fd(0))
    ring.put(b"ab", 2)
    kick(simulated)
    assert len(ring.take_used()) == 1
    assert channel.is_silent()


def test_a_channel_that_comes_late_is_told_what_was_owed(simulated: FrontEnd, ring: Queue) -> None:
    ring.put(b"ab", 2)
    kick(simulated)
    with Channel(simulated) as channel:
        assert told(channel) == (CALL, 0)
    with Channel(simulated) as channel:  # on which nothing is under way
        assert told(channel) == (CALL, 0)


def test_a_channel_that_comes_late_is_told_that_a_ring_is_broken(simulated: FrontEnd, ring: Queue) -> None:
    split(ring).describe(0, 0x8000, 4, 1, 0)
    split(ring).offer(0)
    kick(simulated)
    with Channel(simulated) as channel:
        assert told(channel) == (ERR, 0)


def test_a_channel_that_comes_late_is_told_that_configuration_has_changed(stranger: FrontEnd, device: Watched) -> None:
    """Once: the next one has nothing to be told."""
    stranger.negotiate(protocol=PROTOCOL | P.BACKEND_REQ | P.CONFIG)
    stranger.share_memory()
    stranger.queue().start()
    device.config_changed()
    stranger.settle()
    with Channel(stranger) as channel:
        assert channel.receive()[0] is BackEndRequest.CONFIG_CHANGE_MSG
    with Channel(stranger) as channel:
        stranger.settle()
        assert channel.is_silent()


def test_a_change_of_configuration_is_told_once_a_kick_has_started_a_ring(stranger: FrontEnd, device: Watched) -> None:
    stranger.negotiate(protocol=IN_BAND | P.CONFIG)
    stranger.share_memory()
    ring = stranger.queue()
    ring.set_up(descriptors=False)
    with Channel(stranger) as channel:
        device.config_changed()
        stranger.settle()
        stranger.settle()
        assert channel.is_silent()
        kick(stranger)
        assert channel.receive()[0] is BackEndRequest.CONFIG_CHANGE_MSG


def test_a_ring_that_was_stopped_is_started_by_a_kick(simulated: FrontEnd, ring: Queue) -> None:
    ring.put(b"ab", 2)
    kick(simulated)
    assert ring.stop() == 1
    ring.put(b"cd", 2)
    simulated.settle()
    assert len(ring.take_used()) == 1
    kick(simulated)
    assert [completion.data for completion in ring.take_used()] == [b"dc"]


def test_a_ring_that_was_looked_at_by_itself_is_not_once_it_is_started_by_a_kick(
    simulated: FrontEnd, ring: Queue
) -> None:
    simulated.do(R.SET_VRING_KICK, no_fd(0))
    ring.put(b"ab", 2)
    while not ring.take_used():
        simulated.settle()
    ring.stop()
    kick(simulated)
    for _ in range(3):  # until it is not looked for any more
        simulated.settle()
    ring.put(b"cd", 2)
    for _ in range(3):
        simulated.settle()
    assert not ring.take_used()
    kick(simulated)
    assert [completion.data for completion in ring.take_used()] == [b"dc"]


def test_a_kick_that_was_not_agreed_on_is_refused(front_end: FrontEnd) -> None:
    assert front_end.tell(R.VRING_KICK, VringState(0, 0)) == errno.EINVAL


def test_a_kick_of_no_queue_is_refused(simulated: FrontEnd) -> None:
    assert simulated.tell(R.VRING_KICK, VringState(2, 0)) == errno.EINVAL


def test_a_channel_that_takes_half_a_message_is_given_up(
    simulated: FrontEnd, channel: Channel, ring: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would come behind that half would be taken for the other."""
    usual = Stream.try_send
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "try_send", lambda stream, data, fds=(): usual(stream, data[:7], fds))
        ring.put(b"ab", 2)
        kick(simulated)
    with pytest.raises(EOFError):
        channel.receive()


def test_what_has_no_place_on_the_channel_costs_a_front_end_that_channel_and_leaves_nothing(
    simulated: FrontEnd, ring: Queue
) -> None:
    """Descriptors beside an answer, or beside what nobody asked for; and nothing else of the session is different."""
    for asked, count in product((True, False), (1, 2)):
        file = os.memfd_create("beside")
        with Channel(simulated) as channel:
            ring.put(b"ab", 2)
            kick(simulated)
            request, _ = told(channel)
            if not asked:
                channel.answer(request)
            channel.stream.send(acknowledge(request).encode(), [file] * count)
            channel.await_end()
        simulated.settle()
        names = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert sum("memfd:beside" in name for name in names) == 1, (asked, count)
        os.close(file)
        assert [done.data for done in ring.wait_used()] == [b"ba"]


@pytest.mark.parametrize("without", [P.BACKEND_REQ, P.REPLY_ACK])
def test_messages_instead_of_descriptors_need_a_channel_and_answers(stranger: FrontEnd, without: P) -> None:
    """There is no other way to say so than the connection's end (specification, "In-band notifications")."""
    stranger.send(R.SET_PROTOCOL_FEATURES, int(IN_BAND & ~without))
    with pytest.raises(Disconnected):
        stranger.receive()


def test_who_has_not_agreed_on_messages_instead_of_descriptors_is_sent_none(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.BACKEND_REQ)
    stranger.share_memory()
    with Channel(stranger) as channel:
        ring = stranger.queue()
        stranger.do(R.SET_VRING_NUM, VringState(0, ring.size))
        stranger.do(R.SET_VRING_ADDR, ring.addresses)
        stranger.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
        ring.enable()
        for data, used in ((b"ab", 1), (b"fail", 1)):
            ring.put(data, 2)
            ring.kick()
            stranger.settle()
            stranger.settle()
            assert split(ring).used_index == used
        assert channel.is_silent()
        ring.close()
