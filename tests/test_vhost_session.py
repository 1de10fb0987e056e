"""A back-end as front-ends use it, over a socket: negotiation, rings and their life, memory, log, in-flight, config."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vhost_frontend import FEATURES, MEMORY, PROTOCOL, USER, DriverQueue, FrontEnd, Gone, P, R, V, no_fd
from userdev.transport import Framer
from vhost_user.backend import Server, Session
from vhost_user.backend import server as server_module
from vhost_user.backend.lifecycle import TRANSITIONS, RingEvent, RingState, after
from vhost_user.device import Chain, Queues, VhostDevice, config_field, queue, state
from vhost_user.wire import HEADER, NEED_REPLY, VERSION, DeviceStatus, Message, Negotiated
from vhost_user.wire.payloads import Config, Inflight, Log, Region, VringState


class Reverse(VhostDevice):
    """Gives back what it reads, backwards."""

    virtio_id = 42
    queues = Queues(2, size=64)
    features = 1 << 5
    done: int = state(0)
    capacity: int = config_field(8, 7)
    mode: int = config_field(1, 1, writable=True)

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    @queue()
    def reverse(self, chain: Chain) -> int:
        data = chain.read()
        if data == b"fail":
            raise RuntimeError("on purpose")
        self.done += 1
        return chain.write(data[::-1])

    def on_attach(self) -> None:
        self.events.append("attach")

    def on_detach(self) -> None:
        self.events.append("detach")

    def on_start(self, queue: int) -> None:
        self.events.append(f"start {queue}")

    def on_stop(self, queue: int) -> None:
        self.events.append(f"stop {queue}")

    def on_reset(self) -> None:
        self.events.append("reset")

    def on_config(self, name: str) -> None:
        self.events.append(f"config {name}")


@pytest.fixture
def device() -> Reverse:
    return Reverse()


@pytest.fixture
def server(device: Reverse, tmp_path: Path) -> Iterator[Server]:
    with Server(device, f"unix:{tmp_path}/s") as server:
        yield server


@pytest.fixture
def stranger(server: Server) -> Iterator[FrontEnd]:
    """A front-end that has said nothing yet."""
    with FrontEnd(str(server.listener.address)) as front_end:
        yield front_end


@pytest.fixture
def front_end(stranger: FrontEnd) -> FrontEnd:
    """One that has negotiated and shared its memory."""
    stranger.negotiate()
    stranger.share_memory()
    return stranger


@pytest.fixture
def ring(front_end: FrontEnd) -> Iterator[DriverQueue]:
    """Its first queue, which runs."""
    ring = front_end.queue()
    ring.start()
    yield ring
    ring.close()


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def mapped() -> int:
    """Mappings of front-ends' memory and logs, and of regions of ours."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:")


# -- requests


def test_a_request_is_read_and_answered(ring: DriverQueue) -> None:
    assert ring.read(b"hello", 5) == b"olleh"
    assert ring.read(b"and again", 64) == b"niaga dna"


def test_more_requests_than_a_ring_has_places_are_all_answered(ring: DriverQueue, device: Reverse) -> None:
    for round in range(50):
        for number in range(4):
            ring.put(bytes([round, number]), 2)
        ring.kick()
        assert [written for _, written in ring.wait_used(4)] == [2] * 4
    assert device.done == 200


def test_two_queues_run_at_a_time(front_end: FrontEnd) -> None:
    queues = [front_end.queue(0), front_end.queue(1)]
    for each in queues:
        each.start()
    assert [each.read(bytes([65 + each.index] * 3), 3) for each in queues] == [b"AAA", b"BBB"]


def test_a_packed_ring_that_nobody_has_used_begins_with_both_wrap_counters(stranger: FrontEnd) -> None:
    stranger.negotiate(FEATURES | V.RING_PACKED)
    assert V.RING_PACKED in stranger.negotiated.features
    assert stranger.ask(R.GET_VRING_BASE, VringState(0, 0)).num == 1 << 15 | 1 << 31


# -- what is agreed on


def test_features_of_the_device_and_of_the_framework_are_offered(stranger: FrontEnd) -> None:
    offered = V(stranger.ask(R.GET_FEATURES))
    assert offered & 1 << 5
    assert V.VERSION_1 | V.EVENT_IDX | V.INDIRECT_DESC | V.LOG_ALL | V.PROTOCOL_FEATURES in offered
    assert V.ACCESS_PLATFORM not in offered


def test_a_device_without_a_configuration_space_does_not_offer_one(tmp_path: Path) -> None:
    class Plain(VhostDevice):
        virtio_id = 4
        queues = Queues(1)

        @queue(0)
        def nothing(self, chain: Chain) -> int:
            return 0

    with Server(Plain(), f"unix:{tmp_path}/p") as server, FrontEnd(str(server.listener.address)) as front_end:
        assert P.CONFIG not in P(front_end.ask(R.GET_PROTOCOL_FEATURES))


def test_features_that_were_not_offered_are_refused(stranger: FrontEnd) -> None:
    stranger.negotiate()
    assert stranger.tell(R.SET_FEATURES, int(FEATURES | 1 << 6)) == errno.EINVAL
    assert stranger.tell(R.SET_PROTOCOL_FEATURES, int(PROTOCOL | P.PAGEFAULT)) == errno.EINVAL
    stranger.do(R.SET_FEATURES, int(FEATURES))


def test_the_number_of_queues_is_told(front_end: FrontEnd) -> None:
    assert front_end.ask(R.GET_QUEUE_NUM) == 2


def test_an_acknowledgement_is_sent_once_where_it_is_asked_for(front_end: FrontEnd) -> None:
    front_end.send(R.SET_VRING_BASE, VringState(0, 0), need_reply=True)
    front_end.send(R.SET_VRING_BASE, VringState(0, 0))
    front_end.send(R.GET_QUEUE_NUM, need_reply=True)
    answers = [front_end.receive() for _ in range(2)]
    assert [(answer.request, answer.flags) for answer in answers] == [(R.SET_VRING_BASE, 5), (R.GET_QUEUE_NUM, 5)]
    front_end.settle()


def test_what_was_not_negotiated_is_refused(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL & ~P.CONFIGURE_MEM_SLOTS)
    assert stranger.tell(R.ADD_MEM_REG, stranger.region, [stranger.memory_fd]) == errno.EINVAL
    stranger.do(R.SET_MEM_TABLE, (stranger.region,), [stranger.memory_fd])


def test_a_refused_message_that_asks_for_no_answer_ends_the_connection(front_end: FrontEnd) -> None:
    front_end.send(R.SET_VRING_NUM, VringState(0, 0))
    with pytest.raises(Gone):
        front_end.receive()


def test_an_unknown_request_is_answered_and_the_session_goes_on(front_end: FrontEnd) -> None:
    front_end.stream.send(Message(4711, VERSION | NEED_REPLY).encode())
    assert int.from_bytes(front_end.receive().payload, "little") == errno.ENOSYS
    front_end.settle()


# -- the life of a ring


@pytest.mark.parametrize("state", RingState)
def test_only_what_is_started_and_enabled_runs(state: RingState) -> None:
    assert (after(state, RingEvent.ENABLE) is RingState.RUNNING) == (state in (RingState.STARTED, RingState.RUNNING))
    assert (after(state, RingEvent.START) is RingState.RUNNING) == (state in (RingState.ENABLED, RingState.RUNNING))
    assert not after(state, RingEvent.STOP).is_started
    assert after(after(state, RingEvent.STOP), RingEvent.ENABLE) is RingState.ENABLED
    assert set(TRANSITIONS) == set(RingState)


def test_a_ring_is_not_served_before_it_is_enabled_and_no_kick_is_lost(front_end: FrontEnd, device: Reverse) -> None:
    ring = front_end.queue()
    ring.start(enable=False)
    ring.put(b"ab", 2)
    ring.kick()
    front_end.settle()
    assert ring.used_index == 0
    assert device.events == ["attach"]
    ring.enable()
    assert len(ring.wait_used()) == 1
    ring.enable(False)
    ring.put(b"cd", 2)
    ring.kick()
    front_end.settle()
    assert ring.used_index == 1
    ring.enable()
    assert len(ring.wait_used()) == 1
    assert device.events == ["attach", "start 0", "stop 0", "start 0"]


def test_requests_that_came_before_a_ring_runs_need_no_kick(front_end: FrontEnd) -> None:
    ring = front_end.queue()
    ring.put(b"ab", 2)
    ring.start()
    assert len(ring.wait_used()) == 1


def test_a_ring_that_starts_tells_its_driver_once(ring: DriverQueue) -> None:
    """A back-end that was killed between the used index and the call owes it: the driver would wait for ever."""
    assert ring.wait_call()


def test_a_ring_that_gets_another_call_tells_there_what_it_may_owe(front_end: FrontEnd, ring: DriverQueue) -> None:
    other = os.eventfd(0, os.EFD_CLOEXEC)
    front_end.do(R.SET_VRING_CALL, 0, [other])
    assert os.eventfd_read(other) == 1
    os.close(other)


def test_a_ring_that_is_stopped_says_where_it_goes_on_and_is_drained(ring: DriverQueue, device: Reverse) -> None:
    for _ in range(5):
        ring.read(b"ab", 2)
    ring.put(b"cd", 2)
    ring.put(b"ef", 2)
    ring.kick()
    base = ring.stop()
    assert base == ring.used_index
    assert device.events[-1] == "stop 0"


def test_a_stopped_ring_is_not_started_by_being_enabled(front_end: FrontEnd, ring: DriverQueue) -> None:
    ring.stop()
    ring.put(b"ab", 2)
    ring.kick()
    ring.enable()
    front_end.settle()
    assert ring.used_index == 0


def test_a_stopped_ring_goes_on_where_it_was(front_end: FrontEnd, ring: DriverQueue) -> None:
    ring.read(b"ab", 2)
    base = ring.stop()
    ring.put(b"cd", 2)
    ring.start(base)
    assert len(ring.wait_used()) == 1
    assert ring.stop() == 2


def test_what_survives_a_stop_need_not_be_said_again(front_end: FrontEnd, ring: DriverQueue) -> None:
    ring.read(b"ab", 2)
    ring.stop()
    ring.put(b"cd", 2)
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    assert len(ring.wait_used()) == 1


def test_a_ring_that_runs_is_not_made_another(front_end: FrontEnd, ring: DriverQueue) -> None:
    assert front_end.tell(R.SET_VRING_NUM, VringState(0, 16)) == errno.EINVAL
    assert front_end.tell(R.SET_VRING_BASE, VringState(0, 3)) == errno.EINVAL
    assert front_end.tell(R.SET_VRING_ADDR, ring.addresses._replace(used=USER + 0x8000)) == errno.EINVAL
    assert front_end.tell(R.SET_FEATURES, int(FEATURES | V.EVENT_IDX)) == errno.EINVAL
    assert ring.read(b"ab", 2) == b"ba"


@pytest.mark.parametrize("size", [0, 128])
def test_a_ring_longer_than_the_device_takes_is_refused(front_end: FrontEnd, size: int) -> None:
    assert front_end.tell(R.SET_VRING_NUM, VringState(0, size)) == errno.EINVAL


def test_a_queue_that_is_not_there_is_refused(front_end: FrontEnd) -> None:
    assert front_end.tell(R.SET_VRING_NUM, VringState(2, 8)) == errno.EINVAL
    assert front_end.tell(R.SET_VRING_KICK, no_fd(255)) == errno.EINVAL


def test_a_reset_stops_rings_and_keeps_memory_and_whom_to_tell(
    front_end: FrontEnd, ring: DriverQueue, device: Reverse
) -> None:
    ring.read(b"ab", 2)
    front_end.do(R.RESET_DEVICE)
    assert device.done == 0
    assert device.events[-2:] == ["stop 0", "reset"]
    ring.enable()  # QEMU enables all rings, those too that the BIOS does not use
    ring.put(b"cd", 2)
    ring.kick()
    front_end.settle()
    assert ring.used_index == 1
    front_end.do(R.SET_VRING_NUM, VringState(0, ring.size))
    front_end.do(R.SET_VRING_BASE, VringState(0, 1))
    front_end.do(R.SET_VRING_ADDR, ring.addresses)
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()
    assert len(ring.wait_used()) == 1


def test_a_second_owner_says_everything_again(front_end: FrontEnd, ring: DriverQueue, device: Reverse) -> None:
    ring.read(b"ab", 2)
    front_end.negotiate()
    front_end.settle()
    assert device.events[-1] == "stop 0"
    front_end.share_memory()  # the regions that it had are not there any more
    again = front_end.queue(at=0x40000)
    again.start()
    assert again.read(b"cd", 2) == b"dc"


def test_status_zero_stops_rings_and_resets_where_no_other_message_does(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(protocol=PROTOCOL & ~P.RESET_DEVICE | P.STATUS)
    stranger.share_memory()
    stranger.do(R.SET_STATUS, int(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER))
    assert stranger.ask(R.GET_STATUS) == 3
    ring = stranger.queue()
    ring.start()
    ring.read(b"ab", 2)
    stranger.do(R.SET_STATUS, 0)
    assert device.events[-2:] == ["stop 0", "reset"]
    assert stranger.ask(R.GET_STATUS) == 0


def test_status_zero_leaves_the_device_to_reset_device(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.STATUS)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    ring.read(b"ab", 2)
    stranger.do(R.SET_STATUS, 0)  # as QEMU says it when a guest is paused
    assert device.events[-1] == "stop 0"
    assert device.done == 1


def test_a_disconnection_stops_rings_and_the_next_front_end_is_served(
    server: Server, front_end: FrontEnd, ring: DriverQueue, device: Reverse
) -> None:
    ring.read(b"ab", 2)
    front_end.close()
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()
        other.share_memory()
        again = other.queue()
        again.start()
        assert again.read(b"cd", 2) == b"dc"
        assert device.events == ["attach", "start 0", "stop 0", "detach", "attach", "start 0"]


# -- what real front-ends do (vhost-user's peers)


def test_a_kick_may_come_before_the_call_as_libblkios_does(front_end: FrontEnd) -> None:
    """Libblkio 1.5.0."""
    ring = front_end.queue()
    front_end.do(R.SET_VRING_NUM, VringState(0, ring.size))
    front_end.do(R.SET_VRING_ADDR, ring.addresses)
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    front_end.do(R.SET_VRING_CALL, 0, [ring.call_fd])
    ring.enable()
    assert ring.read(b"ab", 2) == b"ba"


def test_a_call_may_come_before_features_and_memory_as_virtio_users_does(stranger: FrontEnd) -> None:
    """DPDK 25.11.4, net_virtio_user; it enables rings without having agreed to PROTOCOL_FEATURES."""
    ring = stranger.queue()
    stranger.send(R.SET_OWNER)
    stranger.send(R.SET_VRING_CALL, 0, [ring.call_fd])
    stranger.send(R.SET_FEATURES, int(V.VERSION_1))
    stranger.send(R.SET_MEM_TABLE, (stranger.region,), [stranger.memory_fd])
    stranger.send(R.SET_VRING_NUM, VringState(0, ring.size))
    stranger.send(R.SET_VRING_BASE, VringState(0, 0))
    stranger.send(R.SET_VRING_ADDR, ring.addresses)
    stranger.send(R.SET_VRING_KICK, 0, [ring.kick_fd])
    stranger.send(R.SET_VRING_ENABLE, VringState(0, 1))
    assert ring.read(b"ab", 2) == b"ba"


def test_nothing_need_be_agreed_on_and_nobody_be_called_as_virtio_user_does(stranger: FrontEnd) -> None:
    """DPDK 25.11.4, net_virtio_user, where VERSION_1 is not offered: no SET_FEATURES and no SET_VRING_CALL."""
    ring = stranger.queue()
    ring.put(b"ab", 2)
    stranger.send(R.SET_OWNER)
    stranger.send(R.SET_MEM_TABLE, (stranger.region,), [stranger.memory_fd])
    stranger.send(R.SET_VRING_NUM, VringState(0, ring.size))
    stranger.send(R.SET_VRING_ADDR, ring.addresses)
    stranger.send(R.SET_VRING_KICK, 0, [ring.kick_fd])
    assert stranger.ask(R.GET_VRING_BASE, VringState(0, 0)).num == ring.used_index


def test_features_may_come_before_protocol_features_are_asked_for(stranger: FrontEnd) -> None:
    """Libblkio 1.5.0 and rust-vmm's vhost 0.17."""
    stranger.send(R.SET_OWNER)
    stranger.send(R.SET_FEATURES, int(FEATURES))
    assert P.REPLY_ACK in P(stranger.ask(R.GET_PROTOCOL_FEATURES))
    stranger.send(R.SET_PROTOCOL_FEATURES, int(PROTOCOL))
    stranger.negotiated = Negotiated(FEATURES, PROTOCOL)
    stranger.share_memory()


def test_a_connection_may_begin_with_the_end_of_another(stranger: FrontEnd) -> None:
    """DPDK 25.11.4, net_virtio_user, reconnected; any number stands in GET_VRING_BASE's request."""
    stranger.send(R.SET_VRING_ENABLE, VringState(0, 0))
    assert stranger.ask(R.GET_VRING_BASE, VringState(0, 0xFFFF)) == VringState(0, 0)
    stranger.negotiate()


def test_a_descriptor_with_rem_mem_reg_is_closed(front_end: FrontEnd) -> None:
    """Libblkio 1.5.0."""
    front_end.settle()
    before = open_fds()
    front_end.do(R.REM_MEM_REG, front_end.region, [front_end.memory_fd])
    assert front_end.tell(R.REM_MEM_REG, front_end.region, [front_end.memory_fd]) == errno.ENOENT
    assert open_fds() < before + 1


def test_regions_need_be_no_multiple_of_a_page_and_may_have_one_address_on_both_sides(stranger: FrontEnd) -> None:
    """Libblkio 1.5.0: guest and front-end have its ring, 0x3b10 bytes, at the same 47-bit address."""
    stranger.negotiate()
    at = 0x7F1234568000
    stranger.do(R.ADD_MEM_REG, Region(at, 0x3B10, at, 0x1000), [stranger.memory_fd])
    ring = stranger.queue(at=0x1000)
    there = ring.addresses._replace(descriptor=at, available=at + ring.available - 0x1000, used=at + ring.used - 0x1000)
    for request, value in ((R.SET_VRING_NUM, VringState(0, 8)), (R.SET_VRING_ADDR, there)):
        stranger.do(request, value)
    stranger.do(R.SET_VRING_CALL, 0, [ring.call_fd])
    stranger.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()
    data = 0x3B00
    stranger.memory[0x1000 + data : 0x1000 + data + 4] = b"abcd"
    ring.describe(0, at + data, 4, 1, 1)
    ring.describe(1, at + data + 8, 8, 2, 0)
    ring.offer(0)
    ring.kick()
    assert ring.wait_used() == [(0, 4)]
    assert stranger.memory[0x1000 + data + 8 :][:4] == b"dcba"


def test_configuration_is_read_as_often_as_somebody_likes_and_as_long(stranger: FrontEnd) -> None:
    """Libblkio 1.5.0 reads it for each property; QEMU 11.1.3 asks for less than the structure, others for more."""
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG)
    for _ in range(3):
        config = stranger.ask(R.GET_CONFIG, Config(0, 60, 0, bytes(60)), need_reply=True)
        assert config.data == (7).to_bytes(8, "little") + b"\x01" + bytes(51)
    assert stranger.ask(R.GET_CONFIG, Config(8, 1, 0, bytes(1))).data == b"\x01"


# -- memory


def test_memory_may_be_given_anew_while_rings_run(front_end: FrontEnd, ring: DriverQueue) -> None:
    ring.read(b"ab", 2)
    front_end.do(R.SET_MEM_TABLE, (front_end.region,), [front_end.memory_fd])
    assert ring.read(b"cd", 2) == b"dc"


def test_a_ring_whose_memory_is_taken_away_breaks_and_no_other(front_end: FrontEnd, ring: DriverQueue) -> None:
    half = MEMORY // 2
    other = front_end.queue(1, at=half)
    front_end.do(R.SET_MEM_TABLE, (Region(half, half, USER + half, half),), [front_end.memory_fd])
    other.start()
    ring.put(b"ab", 2)
    ring.kick()
    assert ring.wait_err()
    assert other.read(b"cd", 2) == b"dc"
    front_end.do(R.SET_MEM_TABLE, (front_end.region,), [front_end.memory_fd])
    ring.start(ring.stop())
    assert len(ring.wait_used()) == 1


def test_a_wrong_region_is_refused_and_what_is_there_stays(front_end: FrontEnd, ring: DriverQueue) -> None:
    for region in (Region(0, 1 << 63, USER, 0), Region(0x1000, 0x1000, 0, 0), Region(1 << 40, 0x1000, 0, MEMORY)):
        assert front_end.tell(R.ADD_MEM_REG, region, [front_end.memory_fd])
    assert ring.read(b"ab", 2) == b"ba"


# -- rings that break


def loop(ring: DriverQueue) -> None:
    ring.describe(0, 0x8000, 4, 1, 1)
    ring.describe(1, 0x8000, 4, 1, 0)


def outside_memory(ring: DriverQueue) -> None:
    ring.describe(0, MEMORY, 4, 0, 0)


def writable_before_readable(ring: DriverQueue) -> None:
    ring.describe(0, 0x8000, 4, 3, 1)
    ring.describe(1, 0x8000, 4, 0, 0)


def beyond_the_table(ring: DriverQueue) -> None:
    ring.describe(0, 0x8000, 4, 1, 99)


def indirect_without_agreement(ring: DriverQueue) -> None:
    ring.describe(0, 0x8000, 16, 4, 0)


@pytest.mark.parametrize(
    "wrong", [loop, outside_memory, writable_before_readable, beyond_the_table, indirect_without_agreement]
)
def test_a_wrong_chain_breaks_its_ring_and_nothing_else(front_end: FrontEnd, ring: DriverQueue, wrong: object) -> None:
    other = front_end.queue(1)
    other.start()
    assert callable(wrong)
    wrong(ring)
    ring.offer(0)
    ring.kick()
    assert ring.wait_err()
    assert other.read(b"ab", 2) == b"ba"
    ring.stop()
    front_end.memory[0x10000:0x13000] = bytes(0x3000)
    again = front_end.queue()
    again.start()
    assert again.read(b"cd", 2) == b"dc"


def test_a_device_that_fails_breaks_the_ring_and_what_was_done_before_is_told(
    ring: DriverQueue, caplog: pytest.LogCaptureFixture
) -> None:
    ring.put(b"ab", 2)
    ring.put(b"fail", 4)
    ring.kick()
    assert ring.wait_err()
    assert len(ring.wait_used()) == 1
    assert "on purpose" in caplog.text
    assert "queue 0 of Reverse" in caplog.text


def test_a_ring_that_is_started_without_addresses_breaks(front_end: FrontEnd) -> None:
    ring = front_end.queue()
    front_end.do(R.SET_VRING_ERR, 0, [ring.err_fd])
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()
    assert ring.wait_err()
    front_end.settle()


def test_a_kick_that_is_no_eventfd_is_refused(front_end: FrontEnd) -> None:
    with Path("/dev/null").open() as nothing:
        for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
            assert front_end.tell(request, 0, [nothing.fileno()]) == errno.EINVAL


def test_a_ring_without_a_kick_is_looked_at_by_itself(front_end: FrontEnd) -> None:
    ring = front_end.queue()
    ring.start(enable=False)
    front_end.do(R.SET_VRING_KICK, no_fd(0))
    ring.enable()
    ring.put(b"ab", 2)
    assert len(ring.wait_used()) == 1
    ring.stop()


# -- migration and recovery


def test_what_is_written_while_a_log_is_on_is_marked_data_and_ring(front_end: FrontEnd, ring: DriverQueue) -> None:
    ring.read(b"ab", 2)
    log, _ = front_end.share_log(MEMORY // 4096 // 8)
    ring.read(b"ab", 2)
    assert not any(log[:])  # not before LOG_ALL
    front_end.do(R.SET_FEATURES, int(FEATURES | V.LOG_ALL))
    front_end.do(R.SET_VRING_ADDR, ring.addresses._replace(flags=1, log=ring.used))
    places = ring.put(b"ab", 0x9000)
    ring.kick()
    ring.wait_used()
    marked = {page for page in range(MEMORY >> 12) if log[page >> 3] & 1 << (page & 7)}
    assert {ring.used >> 12, places[1] >> 12} <= marked
    other, _ = front_end.share_log()
    log[:] = bytes(len(log))
    ring.read(b"ab", 2)
    assert any(other[:])
    assert not any(log[:])
    front_end.do(R.SET_FEATURES, int(FEATURES))
    other[:] = bytes(len(other))
    ring.read(b"ab", 2)
    assert not any(other[:])


def test_a_log_that_does_not_reach_breaks_the_ring(front_end: FrontEnd, ring: DriverQueue) -> None:
    front_end.share_log(1)
    front_end.do(R.SET_FEATURES, int(FEATURES | V.LOG_ALL))
    ring.put(b"ab", 2)
    ring.kick()
    assert ring.wait_err()


def test_a_wrong_log_is_refused_with_an_answer(front_end: FrontEnd) -> None:
    assert front_end.ask(R.SET_LOG_BASE, Log(2 * MEMORY, 0), [front_end.memory_fd]) == errno.EINVAL


def test_an_in_flight_region_is_made_for_the_queues_and_sealed(front_end: FrontEnd) -> None:
    described, fd = front_end.ask_inflight(2, 128)
    assert described == Inflight(2 * 2112, 0, 2, 128)
    assert os.fstat(fd).st_size == 2 * 2112
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 16)
    os.close(fd)


@pytest.mark.parametrize("wanted", [Inflight(0, 0, 3, 8), Inflight(0, 0, 0, 8), Inflight(0, 0, 1, 40000)])
def test_an_in_flight_region_for_other_queues_ends_the_connection(front_end: FrontEnd, wanted: Inflight) -> None:
    front_end.send(R.GET_INFLIGHT_FD, wanted)
    with pytest.raises(Gone):
        front_end.receive()


def test_what_was_in_flight_is_done_by_the_next_back_end_once(
    front_end: FrontEnd, server: Server, device: Reverse
) -> None:
    described, fd = front_end.ask_inflight()
    front_end.do(R.SET_INFLIGHT_FD, described, [fd])
    ring = front_end.queue()
    ring.start()
    ring.read(b"ab", 2)
    ring.put(b"fail", 4)  # taken, and never given back
    ring.kick()
    assert ring.wait_err()
    assert device.done == 1
    memory = front_end.memory[:]
    front_end.close()
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()
        other.share_memory()
        other.memory[:] = memory.replace(b"fail", b"good")
        other.do(R.SET_INFLIGHT_FD, described, [fd])
        again = other.queue()
        again.made, again.seen = 2, 1
        again.start(1)
        assert [written for _, written in again.wait_used()] == [4]
        assert device.done == 2
        assert again.stop() == 2


# -- configuration


def test_a_driver_writes_what_it_may(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG)
    stranger.do(R.SET_CONFIG, Config(8, 1, 0, b"\x00"))
    assert device.mode == 0
    assert device.events == ["attach", "config mode"]
    assert stranger.tell(R.SET_CONFIG, Config(0, 8, 0, bytes(8))) == errno.EINVAL
    stranger.do(R.SET_CONFIG, Config(0, 8, 1, (9).to_bytes(8, "little")))
    assert device.capacity == 9


def test_a_change_of_configuration_is_told_on_the_back_ends_channel(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        stranger.do(R.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        device.capacity = 8
        device.config_changed()
        framer: Framer[Message] = Framer(Message)
        framer.feed(ours.recv(64))
        message = framer.next()
        assert message is not None
        assert (message.request, message.needs_reply) == (2, False)
    assert stranger.ask(R.GET_CONFIG, Config(0, 8, 0, bytes(8))).data[0] == 8


def test_a_channel_that_is_no_socket_is_refused(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
    assert stranger.tell(R.SET_BACKEND_REQ_FD, None, [stranger.memory_fd]) == errno.EINVAL


# -- bad days


def test_nothing_of_a_front_end_is_left(server: Server, device: Reverse) -> None:
    def visit() -> None:
        with FrontEnd(str(server.listener.address)) as front_end:
            front_end.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
            front_end.share_memory()
            ring = front_end.queue()
            ring.start()
            _, log_fd = front_end.share_log()
            described, inflight_fd = front_end.ask_inflight()
            front_end.do(R.SET_INFLIGHT_FD, described, [inflight_fd])
            ring.read(b"ab", 2)
            ring.close()
            os.close(log_fd)
            os.close(inflight_fd)
        assert server._serving is not None
        server._serving.join(10)
        assert not server._serving.is_alive()

    visit()
    before = open_fds(), mapped()
    for _ in range(3):
        visit()
    assert (open_fds(), mapped()) == before


@pytest.mark.parametrize("garbage", [HEADER.pack(1, 1, 1 << 31), b"\xff" * 64, HEADER.pack(1, VERSION + 1, 0)])
def test_bytes_that_are_no_message_end_the_connection_and_the_next_is_served(server: Server, garbage: bytes) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.stream.send(garbage)
        with pytest.raises(Gone):
            front_end.receive()
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate()


def test_a_front_end_that_ends_in_the_middle_of_a_message_is_survived(server: Server) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.stream.send(HEADER.pack(int(R.SET_FEATURES), VERSION, 8) + b"\0")
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate()


def test_too_many_descriptors_end_the_connection_and_are_closed(server: Server) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate()
        front_end.settle()
        before = open_fds()
        with contextlib.suppress(BrokenPipeError):
            for _ in range(10):
                front_end.stream.send(HEADER.pack(int(R.SET_OWNER), VERSION, 0), [front_end.memory_fd] * 100)
        with pytest.raises(Gone):
            front_end.receive()
        assert server._serving is not None
        server._serving.join(10)
        assert open_fds() <= before


def test_a_second_front_end_is_hung_up_on(
    server: Server, front_end: FrontEnd, ring: DriverQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.05)
    with FrontEnd(str(server.listener.address)) as other:
        other.send(R.GET_FEATURES)
        with pytest.raises(Gone):
            other.receive()
    assert ring.read(b"ab", 2) == b"ba"


def test_a_front_end_that_says_nothing_does_not_keep_others_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "FIRST_SECONDS", 0.1)
    with FrontEnd(str(server.listener.address)) as silent, pytest.raises(Gone):
        silent.receive()
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()


@pytest.mark.parametrize("blocking", [False, True])
def test_a_call_that_is_full_holds_nobody(server: Server, front_end: FrontEnd, blocking: bool) -> None:
    ring = front_end.queue()
    ring.start()
    os.eventfd_write(ring.call_fd, (1 << 64) - 2 - 1)
    os.set_blocking(ring.call_fd, blocking)
    ring.put(b"ab", 2)
    ring.kick()
    session = server._session
    assert isinstance(session, Session)
    while ring.used_index == 0:
        session.free()
    session.free()
    front_end.settle()


def test_kicks_without_an_end_leave_the_connection_served(front_end: FrontEnd, ring: DriverQueue) -> None:
    for _ in range(200):
        ring.kick()
        front_end.settle()
    assert ring.read(b"ab", 2) == b"ba"
