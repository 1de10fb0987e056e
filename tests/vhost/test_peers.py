"""What real front-ends do, and one would not guess; tests/test_vhost_{libblkio,virtio_user}.py have them do it."""

from __future__ import annotations

import errno

import pytest

from tests.device_kit import open_fds
from tests.vhost.said import listening
from tests.vhost_frontend import FEATURES, PROTOCOL, FrontEnd, P, Queue, R, V, split
from vhost_user.backend import Server
from vhost_user.wire import FrontEndRequest, Negotiated
from vhost_user.wire.payloads import Config, Region, VringState


def test_a_kick_may_come_before_the_call_as_libblkios_does(front_end: FrontEnd) -> None:
    """Libblkio 1.5.0."""
    ring = front_end.queue()
    front_end.do(R.SET_VRING_NUM, VringState(0, ring.size))
    front_end.do(R.SET_VRING_ADDR, ring.addresses)
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    front_end.do(R.SET_VRING_CALL, 0, [ring.call_fd])
    ring.enable()
    assert ring.exchange(b"ab", 2).data == b"ba"


def test_a_call_may_come_before_features_and_memory_as_virtio_users_does(stranger: FrontEnd) -> None:
    """DPDK 24.11.8 and 25.11.4, net_virtio_user; it enables rings without having agreed to PROTOCOL_FEATURES."""
    ring = stranger.queue()
    stranger.send(R.SET_OWNER)
    stranger.send(R.SET_VRING_CALL, 0, [ring.call_fd])
    stranger.send(R.SET_FEATURES, int(V.VERSION_1))
    stranger.send(R.SET_MEM_TABLE, (stranger.memory.regions[0],), [stranger.memory.fd])
    stranger.send(R.SET_VRING_NUM, VringState(0, ring.size))
    stranger.send(R.SET_VRING_BASE, VringState(0, 0))
    stranger.send(R.SET_VRING_ADDR, ring.addresses)
    stranger.send(R.SET_VRING_KICK, 0, [ring.kick_fd])
    stranger.send(R.SET_VRING_ENABLE, VringState(0, 1))
    assert ring.exchange(b"ab", 2).data == b"ba"


def test_nothing_need_be_agreed_on_and_nobody_be_called_as_virtio_user_does(stranger: FrontEnd) -> None:
    """DPDK 24.11.8 and 25.11.4, net_virtio_user, where VERSION_1 is not offered: no features, no call."""
    ring = stranger.queue()
    ring.put(b"ab", 2)
    stranger.send(R.SET_OWNER)
    stranger.send(R.SET_MEM_TABLE, (stranger.memory.regions[0],), [stranger.memory.fd])
    stranger.send(R.SET_VRING_NUM, VringState(0, ring.size))
    stranger.send(R.SET_VRING_ADDR, ring.addresses)
    stranger.send(R.SET_VRING_KICK, 0, [ring.kick_fd])
    assert stranger.ask(R.GET_VRING_BASE, VringState(0, 0)).num == split(ring).used_index


def test_features_may_come_before_protocol_features_are_asked_for(stranger: FrontEnd) -> None:
    """Libblkio 1.5.0 and rust-vmm's vhost 0.17."""
    stranger.send(R.SET_OWNER)
    stranger.send(R.SET_FEATURES, int(FEATURES))
    assert P.REPLY_ACK in P(stranger.ask(R.GET_PROTOCOL_FEATURES))
    stranger.send(R.SET_PROTOCOL_FEATURES, int(PROTOCOL))
    stranger.negotiated = Negotiated(FEATURES, PROTOCOL)
    stranger.share_memory()


@pytest.mark.parametrize("request_", [R.GET_QUEUE_NUM, R.GET_MAX_MEM_SLOTS, R.GET_FEATURES])
def test_a_request_that_is_answered_anyway_may_ask_for_it_and_is_answered_once(
    front_end: FrontEnd, request_: FrontEndRequest
) -> None:
    """Libblkio 1.5.0 and rust-vmm's vhost 0.13."""
    front_end.send(request_, need_reply=True)
    front_end.send(R.SET_VRING_ENABLE, VringState(0, 1), need_reply=True)
    assert [front_end.receive().request for _ in range(2)] == [request_, R.SET_VRING_ENABLE]


def test_a_front_end_that_comes_again_says_everything_again(server: Server, front_end: FrontEnd, ring: Queue) -> None:
    """In the order of the first time: a back-end that was started anew knows of nothing."""
    said = []
    for _ in range(2):
        front_end.stream.close()
        front_end.reconnect(str(server.listener.address))
        with listening() as heard:
            front_end.negotiate()
            front_end.share_memory()
            ring.start()
            ring.exchange(b"ab", 2)
            said.append(list(heard.names))
    assert said[0] == said[1]
    assert {"SET_OWNER", "SET_FEATURES", "SET_PROTOCOL_FEATURES", "SET_VRING_KICK"} <= set(said[0])


def test_the_end_may_come_without_a_word(server: Server, front_end: FrontEnd) -> None:
    """Libblkio 1.5.0: its rings run."""
    ring = front_end.queue()
    ring.start()
    assert ring.exchange(b"ab", 2).data == b"ba"
    front_end.reconnect(str(server.listener.address))
    front_end.negotiate()
    front_end.share_memory()
    ring.start()
    assert ring.exchange(b"cd", 2).data == b"dc"


def test_a_connection_may_begin_with_the_end_of_another(stranger: FrontEnd) -> None:
    """DPDK 24.11.8 and 25.11.4, net_virtio_user, reconnected; any number stands in GET_VRING_BASE's request."""
    stranger.send(R.SET_VRING_ENABLE, VringState(0, 0))
    assert stranger.ask(R.GET_VRING_BASE, VringState(0, 0xFFFF)) == VringState(0, 0)
    stranger.negotiate()


def test_a_descriptor_with_rem_mem_reg_is_closed(front_end: FrontEnd) -> None:
    """Libblkio 1.5.0."""
    front_end.settle()
    before = len(open_fds())
    front_end.do(R.REM_MEM_REG, front_end.memory.regions[0], [front_end.memory.fd])
    assert front_end.tell(R.REM_MEM_REG, front_end.memory.regions[0], [front_end.memory.fd]) == errno.ENOENT
    assert len(open_fds()) < before + 1


def test_regions_need_be_no_multiple_of_a_page_and_may_have_one_address_on_both_sides(stranger: FrontEnd) -> None:
    """Libblkio 1.5.0: guest and front-end have its ring, 0x3b10 bytes, at the same 47-bit address."""
    stranger.negotiate()
    at = 0x7F1234568000
    stranger.do(R.ADD_MEM_REG, Region(at, 0x3B10, at, 0x1000), [stranger.memory.fd])
    ring = stranger.queue(at=0x1000)
    _, used, available = (at - 0x1000 + address for address in split(ring).addresses)
    there = ring.addresses._replace(descriptor=at, available=available, used=used)
    for request, value in ((R.SET_VRING_NUM, VringState(0, ring.size)), (R.SET_VRING_ADDR, there)):
        stranger.do(request, value)
    stranger.do(R.SET_VRING_CALL, 0, [ring.call_fd])
    stranger.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()
    data = 0x3B00
    stranger.memory[0x1000 + data : 0x1000 + data + 4] = b"abcd"
    split(ring).describe(0, at + data, 4, 1, 1)
    split(ring).describe(1, at + data + 8, 8, 2, 0)
    split(ring).offer(0)
    ring.kick()
    assert [completion.written for completion in ring.wait_used()] == [4]
    assert stranger.memory[0x1000 + data + 8 :][:4] == b"dcba"


def test_configuration_is_read_as_often_as_somebody_likes_and_as_long(stranger: FrontEnd) -> None:
    """Libblkio 1.5.0 reads it for each property; QEMU 11.1.3 asks for less than the structure, others for more."""
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG)
    for _ in range(3):
        config = stranger.ask(R.GET_CONFIG, Config(0, 60, 0, bytes(60)), need_reply=True)
        assert config.data == (7).to_bytes(8, "little") + b"\x01" + bytes(51)
    assert stranger.ask(R.GET_CONFIG, Config(8, 1, 0, bytes(1))).data == b"\x01"
