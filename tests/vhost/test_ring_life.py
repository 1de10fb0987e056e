"""The life of a ring: when it runs, how it stops, and what survives that; what breaks it is in test_ring_breaks.py."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, MEMORY, PROTOCOL, USER, FrontEnd, P, Queue, R, V, no_fd, split
from userdev.eventfd import drain
from vhost_user.backend import Server
from vhost_user.backend.lifecycle import TRANSITIONS, RingEvent, RingState, after
from vhost_user.wire import DeviceStatus
from vhost_user.wire.payloads import Region, VringState

# -- the life of a ring


@for_each(RingState)
def test_only_what_is_started_and_enabled_runs(state: RingState) -> None:
    assert (after(state, RingEvent.ENABLE) is RingState.RUNNING) == (state in (RingState.STARTED, RingState.RUNNING))
    assert (after(state, RingEvent.START) is RingState.RUNNING) == (state in (RingState.ENABLED, RingState.RUNNING))
    assert not after(state, RingEvent.STOP).is_started
    assert after(after(state, RingEvent.STOP), RingEvent.ENABLE) is RingState.ENABLED
    assert set(TRANSITIONS) == set(RingState)


SAID = {
    RingState.STOPPED: (False, False, False),
    RingState.ENABLED: (False, True, False),
    RingState.STARTED: (True, False, False),
    RingState.RUNNING: (True, True, False),
    RingState.BROKEN: (True, True, True),
    RingState.BROKEN_DISABLED: (True, False, True),
}
"""Of states whether a ring was started, whether it was enabled, and whether it has broken since it was started."""


@for_each(RingEvent, RingState)
def test_an_event_changes_what_it_says_of_a_ring_and_nothing_else(event: RingEvent, state: RingState) -> None:
    """One that is broken is so until it is stopped; only one that is started breaks."""
    started, enabled, broken = SAID[state]
    started = {RingEvent.START: True, RingEvent.STOP: False}.get(event, started)
    enabled = {RingEvent.ENABLE: True, RingEvent.DISABLE: False}.get(event, enabled)
    broken = started and (broken or event is RingEvent.BREAK)
    wanted = next(each for each, said in SAID.items() if said == (started, enabled, broken))
    assert after(state, event) is wanted
    assert after(state, event).is_started is started


def enabled_again(ring: Queue) -> None:
    ring.enable(False)
    ring.enable()


def started_again(ring: Queue) -> None:
    ring.enable(False)
    ring.connection.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()


def fails_at_a_request(ring: Queue, device: Reverse) -> None:
    ring.put(b"fail", 2)
    ring.kick()
    assert ring.wait_err()


def fails_while_it_is_disabled(ring: Queue, device: Reverse) -> None:
    ring.put(b"wait and fail", 2)
    ring.kick()
    ring.connection.settle()
    device.go_on.set()
    ring.enable(False)
    assert ring.wait_err()


def test_a_ring_that_is_broken_is_not_taken_up_before_it_was_stopped(front_end: FrontEnd, device: Reverse) -> None:
    """What it had under way is told by GET_VRING_BASE: a ring that goes on without leaves a request out."""
    for attempt, breaks in product((enabled_again, started_again), (fails_at_a_request, fails_while_it_is_disabled)):
        ring = front_end.queue()
        ring.start(0)
        breaks(ring, device)
        starts = device.events.count("start 0")
        case = attempt.__name__, breaks.__name__
        for count in range(2):
            attempt(ring)
            ring.put(b"ab", 2)
            ring.kick()
            front_end.settle()
            assert not drain(ring.err_fd), (case, "it is told once")
            assert (split(ring).used_index, device.events.count("start 0")) == (0, starts), (case, count)
        ring.enable(False)
        front_end.do(R.SET_VRING_BASE, VringState(0, ring.stop(drain=False)))
        front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
        front_end.settle()
        assert split(ring).used_index == 0, (case, "it was disabled, which a stop does not change")
        ring.enable()
        assert [done.data for done in ring.wait_used(2)] == [b"ba", b"ba"], case
        ring.stop(drain=False)
        ring.close()
        device.go_on.clear()


@pytest.mark.parametrize("breaks", [False, True])
def test_a_ring_that_was_stopped_runs_once_it_is_started_though_nobody_enables_it_again(
    front_end: FrontEnd, ring: Queue, breaks: bool
) -> None:
    if breaks:
        ring.put(b"fail", 2)
        ring.kick()
        assert ring.wait_err()
    base = ring.stop(drain=False)
    front_end.do(R.SET_VRING_BASE, VringState(0, base))
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.put(b"ab", 2)
    ring.kick()
    assert ring.wait_used()[-1].data == b"ba"


def test_a_ring_is_not_served_before_it_is_enabled_and_no_kick_is_lost(front_end: FrontEnd, device: Reverse) -> None:
    ring = front_end.queue()
    ring.start(enable=False)
    ring.put(b"ab", 2)
    ring.kick()
    front_end.settle()
    assert split(ring).used_index == 0
    assert device.events == ["attach"]
    ring.enable()
    assert len(ring.wait_used()) == 1
    ring.enable(False)
    ring.put(b"cd", 2)
    ring.kick()
    front_end.settle()
    assert split(ring).used_index == 1
    ring.enable()
    assert len(ring.wait_used()) == 1
    assert device.events == ["attach", "start 0", "stop 0", "start 0"]


def test_requests_that_came_before_a_ring_runs_need_no_kick(front_end: FrontEnd) -> None:
    ring = front_end.queue()
    ring.put(b"ab", 2)
    ring.start(kick=False)
    assert len(ring.wait_used()) == 1


def test_a_ring_that_starts_tells_its_driver_once(ring: Queue) -> None:
    """A back-end that was killed between the used index and the call owes it: the driver would wait for ever."""
    assert ring.wait_call()


def test_a_ring_that_gets_another_call_tells_there_what_it_may_owe(front_end: FrontEnd, ring: Queue) -> None:
    other = os.eventfd(0, os.EFD_CLOEXEC)
    front_end.do(R.SET_VRING_CALL, 0, [other])
    assert os.eventfd_read(other) == 1
    os.close(other)


@pytest.mark.parametrize("owned", [True, False])
def test_without_protocol_features_a_ring_runs_once_it_is_started_and_as_often(stranger: FrontEnd, owned: bool) -> None:
    """Nothing says SET_VRING_ENABLE there; SET_OWNER need not be said."""
    stranger._owns = not owned  # it says so once
    stranger.negotiate(FEATURES & ~V.PROTOCOL_FEATURES)
    stranger.share_memory()
    ring = stranger.queue()
    base = 0
    for _ in range(2):
        ring.start(base, enable=False)
        assert ring.exchange(b"ab", 2).data == b"ba"
        base = ring.stop()
    for on in (0, 1):  # whatever somebody has said before a reset
        stranger.do(R.SET_VRING_ENABLE, VringState(0, on))
        stranger.send(R.RESET_OWNER)
        ring.start(base, enable=False)
        assert ring.exchange(b"ab", 2).data == b"ba", on
        base = ring.stop()


def test_without_protocol_features_a_ring_that_was_disabled_waits_until_it_is_enabled(stranger: FrontEnd) -> None:
    stranger.negotiate(FEATURES & ~V.PROTOCOL_FEATURES)
    stranger.share_memory()
    ring = stranger.queue()
    stranger.do(R.SET_VRING_ENABLE, VringState(0, 0))
    ring.start(enable=False)
    ring.put(b"ab", 2)
    ring.kick()
    stranger.settle()
    assert split(ring).used_index == 0
    stranger.do(R.SET_VRING_ENABLE, VringState(0, 1))
    assert ring.wait_used()[0].data == b"ba"


def test_features_without_protocol_features_enable_all_rings_at_once(front_end: FrontEnd) -> None:
    """Whatever was said of them before, whether they are started, and for as long as nobody disables them."""
    plain = int(FEATURES & ~V.PROTOCOL_FEATURES)
    started, stopped = front_end.queue(0), front_end.queue(1)
    for ring in (started, stopped):
        ring.put(b"ab", 2)
        front_end.do(R.SET_VRING_ENABLE, VringState(ring.index, 0))
    started.start(enable=False)
    front_end.settle()
    assert split(started).used_index == 0
    front_end.do(R.SET_FEATURES, plain)
    assert started.wait_used()[0].data == b"ba"
    front_end.do(R.SET_FEATURES, int(FEATURES))
    stopped.start(enable=False)
    assert stopped.wait_used()[0].data == b"ba"
    started.enable(False)
    started.put(b"cd", 2)
    started.kick()
    front_end.settle()
    assert split(started).used_index == 1


def test_the_end_of_an_ownership_disables_rings_and_forgets_nothing(stranger: FrontEnd, device: Reverse) -> None:
    """RESET_OWNER: "this interpretation would lead to bugs", the specification says of back-ends that forget."""
    stranger.negotiate(protocol=PROTOCOL | P.STATUS)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    ring.exchange(b"ab", 2)
    status = stranger.status()
    stranger.do(R.RESET_OWNER)
    ring.put(b"cd", 2)
    ring.kick()
    stranger.settle()
    assert split(ring).used_index == 1
    assert stranger.status() == status
    assert device.done == 1
    ring.enable(kick=False)
    assert ring.wait_used()[0].data == b"dc"


def test_a_ring_that_is_stopped_says_where_it_goes_on_and_is_drained(ring: Queue, device: Reverse) -> None:
    for _ in range(5):
        ring.exchange(b"ab", 2)
    ring.put(b"cd", 2)
    ring.put(b"ef", 2)
    ring.kick()
    base = ring.stop()
    assert base == split(ring).used_index
    assert device.events[-1] == "stop 0"


def test_a_stopped_ring_is_not_started_by_being_enabled(front_end: FrontEnd, ring: Queue) -> None:
    ring.stop()
    ring.put(b"ab", 2)
    ring.kick()
    ring.enable()
    front_end.settle()
    assert split(ring).used_index == 0


def test_a_stopped_ring_goes_on_where_it_was(front_end: FrontEnd, ring: Queue) -> None:
    ring.exchange(b"ab", 2)
    base = ring.stop()
    ring.put(b"cd", 2)
    ring.start(base)
    assert len(ring.wait_used()) == 1
    assert ring.stop() == 2


def test_what_survives_a_stop_need_not_be_said_again(front_end: FrontEnd, ring: Queue) -> None:
    ring.exchange(b"ab", 2)
    ring.stop()
    ring.put(b"cd", 2)
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    assert len(ring.wait_used()) == 1


def test_a_ring_that_runs_is_not_made_another(front_end: FrontEnd, ring: Queue) -> None:
    assert front_end.tell(R.SET_VRING_NUM, VringState(0, 16)) == errno.EINVAL
    assert front_end.tell(R.SET_VRING_BASE, VringState(0, 3)) == errno.EINVAL
    assert front_end.tell(R.SET_VRING_ADDR, ring.addresses._replace(used=USER + 0x8000)) == errno.EINVAL
    assert front_end.tell(R.SET_FEATURES, int(FEATURES | V.EVENT_IDX)) == errno.EINVAL
    assert front_end.tell(R.SET_FEATURES, int(FEATURES | 1 << 50)) == errno.EINVAL
    assert ring.exchange(b"ab", 2).data == b"ba"


@pytest.mark.parametrize("size", [0, 128])
def test_a_ring_longer_than_the_device_takes_is_refused(front_end: FrontEnd, size: int) -> None:
    assert front_end.tell(R.SET_VRING_NUM, VringState(0, size)) == errno.EINVAL


@pytest.mark.parametrize("size", [1, 64])
def test_a_ring_may_have_as_many_descriptors_as_the_device_takes_and_be_full_of_them(
    front_end: FrontEnd, size: int
) -> None:
    ring = front_end.queue(size=size)
    for _ in range(size):
        ring.put(b"") if size == 1 else ring.put(b"a")
    ring.start()
    assert len(ring.wait_used(size)) == size
    ring.stop()


def test_a_queue_that_is_not_there_is_refused(front_end: FrontEnd) -> None:
    assert front_end.tell(R.SET_VRING_NUM, VringState(2, 8)) == errno.EINVAL
    assert front_end.tell(R.SET_VRING_KICK, no_fd(255)) == errno.EINVAL


def test_a_reset_stops_rings_and_keeps_memory_and_whom_to_tell(
    front_end: FrontEnd, ring: Queue, device: Reverse
) -> None:
    ring.exchange(b"ab", 2)
    front_end.do(R.RESET_DEVICE)
    assert device.done == 0
    assert device.events[-2:] == ["stop 0", "reset"]
    ring.enable()  # QEMU enables all rings, those too that the BIOS does not use
    ring.put(b"cd", 2)
    ring.kick()
    front_end.settle()
    assert split(ring).used_index == 1
    front_end.do(R.SET_VRING_NUM, VringState(0, ring.size))
    front_end.do(R.SET_VRING_BASE, VringState(0, 1))
    front_end.do(R.SET_VRING_ADDR, ring.addresses)
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()
    assert len(ring.wait_used()) == 1


def test_a_second_owner_says_everything_again(front_end: FrontEnd, ring: Queue, device: Reverse) -> None:
    ring.exchange(b"ab", 2)
    front_end.send(R.SET_OWNER)
    front_end.negotiate()
    front_end.settle()
    assert device.events[-1] == "stop 0"
    front_end.share_memory()  # the regions that it had are not there any more
    again = front_end.queue(at=0x40000)
    again.start()
    assert again.exchange(b"cd", 2).data == b"dc"


def test_status_zero_stops_rings_and_resets_where_no_other_message_does(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(protocol=PROTOCOL & ~P.RESET_DEVICE | P.STATUS)
    stranger.share_memory()
    stranger.do(R.SET_STATUS, int(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER))
    assert stranger.ask(R.GET_STATUS) == 3
    ring = stranger.queue()
    ring.start()
    ring.exchange(b"ab", 2)
    stranger.do(R.SET_STATUS, 0)
    assert device.events[-2:] == ["stop 0", "reset"]
    assert stranger.ask(R.GET_STATUS) == 0


def test_status_zero_leaves_the_device_to_reset_device(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.STATUS)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    ring.exchange(b"ab", 2)
    stranger.do(R.SET_STATUS, 0)  # as QEMU says it when a guest is paused
    assert device.events[-1] == "stop 0"
    assert device.done == 1


def test_a_disconnection_stops_rings_and_the_next_front_end_is_served(
    server: Server, front_end: FrontEnd, ring: Queue, device: Reverse
) -> None:
    ring.exchange(b"ab", 2)
    front_end.close()
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()
        other.share_memory()
        again = other.queue()
        again.start()
        assert again.exchange(b"cd", 2).data == b"dc"
        assert device.events == ["attach", "start 0", "stop 0", "detach", "attach", "start 0"]


def disconnect(front_end: FrontEnd) -> None:
    front_end.stream.close()


STOPS: dict[str, Callable[[FrontEnd], object]] = {
    "GET_VRING_BASE": lambda front_end: front_end.ask(R.GET_VRING_BASE, VringState(0, 0)),
    "RESET_DEVICE": lambda front_end: front_end.do(R.RESET_DEVICE),
    "RESET_OWNER": lambda front_end: front_end.do(R.RESET_OWNER),
    "a second SET_OWNER": lambda front_end: front_end.do(R.SET_OWNER),
    "SET_STATUS 0": lambda front_end: front_end.do(R.SET_STATUS, 0),
    "the end of the connection": disconnect,
    "the end of the server": disconnect,
}


@pytest.mark.parametrize("way", STOPS)
def test_whatever_stops_a_ring_has_it_drained_and_its_device_told_once(
    server: Server, stranger: FrontEnd, device: Reverse, way: str
) -> None:
    """With a request that waits beside the session, and one in the ring that nobody has taken."""
    stranger.negotiate(protocol=PROTOCOL | P.STATUS)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    ring.put(b"wait", 4)
    ring.kick()
    stranger.settle()
    threading.Timer(0.05, device.go_on.set).start()
    STOPS[way](stranger)
    if way == "the end of the server":
        server.close()
    elif way == "the end of the connection":
        assert server._serving is not None
        server._serving.join(10)
    assert [completion.data for completion in ring.take_used()] == [b"tiaw"]
    assert device.events.count("stop 0") == 1


def test_rings_are_stopped_in_one_place() -> None:
    """Whoever else took one from its state would leave out the draining."""
    package = Path(__file__).parent.parent.parent / "vhost_user"
    places = {path.name: path.read_text().count("RingEvent.STOP") for path in package.rglob("*.py")}
    assert {name: count for name, count in places.items() if count} == {"vrings.py": 1}


# -- memory


def test_memory_may_be_given_anew_while_rings_run(front_end: FrontEnd, ring: Queue) -> None:
    ring.exchange(b"ab", 2)
    front_end.do(R.SET_MEM_TABLE, (front_end.memory.regions[0],), [front_end.memory.fd])
    assert ring.exchange(b"cd", 2).data == b"dc"


def test_a_ring_whose_memory_is_taken_away_breaks_and_no_other(front_end: FrontEnd, ring: Queue) -> None:
    half = MEMORY // 2
    front_end.memory.allocate(half)  # what is put from now on lies behind
    other = front_end.queue(1)
    front_end.do(R.SET_MEM_TABLE, (Region(half, half, USER + half, half),), [front_end.memory.fd])
    other.start()
    ring.put(b"ab", 2)
    ring.kick()
    assert ring.wait_err()
    assert other.exchange(b"cd", 2).data == b"dc"
    front_end.do(R.SET_MEM_TABLE, (front_end.memory.regions[0],), [front_end.memory.fd])
    ring.start(ring.stop())
    assert len(ring.wait_used()) == 1


def test_a_wrong_region_is_refused_and_what_is_there_stays(front_end: FrontEnd, ring: Queue) -> None:
    for region in (Region(0, 1 << 63, USER, 0), Region(0x1000, 0x1000, 0, 0), Region(1 << 40, 0x1000, 0, MEMORY)):
        assert front_end.tell(R.ADD_MEM_REG, region, [front_end.memory.fd])
    assert ring.exchange(b"ab", 2).data == b"ba"
