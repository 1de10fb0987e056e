"""A back-end as front-ends use it, over a socket: requests, what is agreed on, configuration."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from tests.vhost.channel import Channel
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, MEMORY, PROTOCOL, Disconnected, FrontEnd, P, Queue, R, V
from vhost_user.backend import Server
from vhost_user.backend.commands import COMMANDS
from vhost_user.device import Chain, Queues, VhostDevice, queue
from vhost_user.wire import NEED_REPLY, VERSION, BackEndRequest, Message, payloads
from vhost_user.wire.messages import Fds, Reply, shape_of
from vhost_user.wire.payloads import Config, DeviceStateTransfer, Log, Region, SharedObject, VringAddress, VringState

# -- requests


def test_a_request_is_read_and_answered(ring: Queue) -> None:
    assert ring.exchange(b"hello", 5).data == b"olleh"
    assert ring.exchange(b"and again", 64).data == b"niaga dna"


def test_more_requests_than_a_ring_has_places_are_all_answered(ring: Queue, device: Reverse) -> None:
    for round in range(50):
        for number in range(4):
            ring.put(bytes([round, number]), 2)
        ring.kick()
        assert [completion.written for completion in ring.wait_used(4)] == [2] * 4
    assert device.done == 200


def test_two_queues_run_at_a_time(front_end: FrontEnd) -> None:
    queues = [front_end.queue(0), front_end.queue(1)]
    for each in queues:
        each.start()
    assert [each.exchange(bytes([65 + each.index] * 3), 3).data for each in queues] == [b"AAA", b"BBB"]


def test_a_packed_ring_that_nobody_has_used_begins_with_both_wrap_counters(stranger: FrontEnd) -> None:
    stranger.negotiate(FEATURES | V.RING_PACKED)
    assert V.RING_PACKED in stranger.negotiated.features
    assert stranger.ask(R.GET_VRING_BASE, VringState(0, 0)).num == 1 << 15 | 1 << 31


# -- what is agreed on


def test_features_of_the_device_and_of_the_framework_are_offered(stranger: FrontEnd) -> None:
    offered = V(stranger.ask(R.GET_FEATURES))
    assert offered & 1 << 5
    assert offered & 1 << 50
    assert V.VERSION_1 | V.EVENT_IDX | V.INDIRECT_DESC | V.LOG_ALL | V.PROTOCOL_FEATURES in offered
    assert V.ACCESS_PLATFORM in offered


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
    for bit in (6, 41, 42, 51, 63):
        assert stranger.tell(R.SET_FEATURES, int(FEATURES) | 1 << bit) == errno.EINVAL
        assert stranger.tell(R.SET_PROTOCOL_FEATURES, int(PROTOCOL) | 1 << bit) == errno.EINVAL
    assert stranger.tell(R.SET_PROTOCOL_FEATURES, int(PROTOCOL | P.RARP)) == errno.EINVAL
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
    assert stranger.tell(R.ADD_MEM_REG, stranger.memory.regions[0], [stranger.memory.fd]) == errno.EINVAL
    stranger.do(R.SET_MEM_TABLE, (stranger.memory.regions[0],), [stranger.memory.fd])


def test_a_dirty_log_that_is_no_shared_memory_is_not_supported(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL & ~P.LOG_SHMFD)
    address, fd = 0x1000, stranger.memory.fd
    for said, fds in ((address, []), (address, [fd]), (Log(4096, 0), [])):
        assert stranger.tell(R.SET_LOG_BASE, said, fds) == errno.ENOTSUP, (said, fds)


def test_a_refused_message_that_asks_for_no_answer_ends_the_connection(front_end: FrontEnd) -> None:
    front_end.send(R.SET_VRING_NUM, VringState(0, 0))
    with pytest.raises(Disconnected):
        front_end.receive()


@pytest.mark.parametrize("request_", [each for each in R if each not in COMMANDS], ids=lambda each: each.name)
def test_a_message_that_is_for_other_devices_is_refused(server: Server, stranger: FrontEnd, request_: R) -> None:
    """By its errno; or, where a reply of its own is waited for that cannot say so, by the connection's end."""
    stranger.negotiate(protocol=P(~0 & 0xFFFFFF))
    shape = shape_of(request_)
    value = {
        payloads.VRING_STATE: VringState(0, 0),
        payloads.SHARED_OBJECT: SharedObject(bytes(16)),
        payloads.DEVICE_STATE: DeviceStateTransfer(0, 0),
    }.get(shape.payload, b"x" if isinstance(shape.payload, payloads.Opaque) else 0)
    fds = [stranger.memory.fd] if shape.fds is Fds.ONE else []
    stranger.send(request_, value if shape.payload is not payloads.EMPTY else None, fds, need_reply=True)
    if shape.reply is Reply.ALWAYS:
        with pytest.raises(Disconnected):
            stranger.receive()
        with FrontEnd(str(server.listener.address)) as other:
            other.negotiate()
    else:
        assert int.from_bytes(stranger.receive().payload, "little") == errno.EINVAL
        stranger.settle()


@pytest.mark.parametrize("user_address", [0, None], ids=["QEMU 11.1", "the specification"])
@pytest.mark.parametrize("packed", [False, True])
def test_addresses_may_be_the_guests(stranger: FrontEnd, user_address: int | None, packed: bool) -> None:
    """GPA_ADDRESSES: regions have no address of the front-end's then; QEMU says 0, the specification the guest's."""
    stranger.negotiate(FEATURES | V.RING_PACKED * packed, PROTOCOL | P.GPA_ADDRESSES)
    assert stranger.has(P.GPA_ADDRESSES)
    half = MEMORY // 2
    for at in (0, half):
        user = at if user_address is None else user_address
        stranger.do(R.ADD_MEM_REG, Region(at, half, user, at), [stranger.memory.fd])
    ring = stranger.queue(at=half)
    ring.set_up()
    ring.stop()
    descriptor, used, available = ring.driver.addresses
    stranger.do(R.SET_VRING_ADDR, VringAddress(0, 0, descriptor, used, available, 0))
    stranger.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()
    assert ring.exchange(b"ab", 2).data == b"ba"


def test_an_unknown_request_is_answered_and_the_session_goes_on(front_end: FrontEnd) -> None:
    front_end.stream.send(Message(4711, VERSION | NEED_REPLY).encode())
    assert int.from_bytes(front_end.receive().payload, "little") == errno.ENOSYS
    front_end.settle()


# -- configuration


def test_a_driver_writes_what_it_may(stranger: FrontEnd, device: Reverse, caplog: pytest.LogCaptureFixture) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG)
    stranger.do(R.SET_CONFIG, Config(8, 1, 0, b"\x00"))
    assert device.mode == 0
    assert device.events == ["attach", "config mode"]
    assert stranger.tell(R.SET_CONFIG, Config(0, 8, 0, bytes(8))) == errno.EINVAL
    assert "capacity of configuration space cannot be written" in caplog.text
    stranger.do(R.SET_CONFIG, Config(0, 8, 1, (9).to_bytes(8, "little")))
    assert device.capacity == 9
    for flags in (0, 2, 1 << 31):  # bit 0 says that a migration does it, and none of the others
        assert stranger.tell(R.SET_CONFIG, Config(0, 8, flags, bytes(8))) == errno.EINVAL, flags
    stranger.do(R.SET_CONFIG, Config(0, 8, 0xFFFF_FFFF, (10).to_bytes(8, "little")))
    assert device.capacity == 10


def test_a_change_of_configuration_is_told_on_the_back_ends_channel(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
    stranger.share_memory()
    stranger.queue().start()
    with Channel(stranger) as channel:
        device.capacity = 8
        device.config_changed()
        request, _, message = channel.receive()
        assert (request, message.needs_reply) == (BackEndRequest.CONFIG_CHANGE_MSG, False)
    assert stranger.read_config(8)[0] == 8


def test_a_device_that_is_suspended_says_nothing_and_says_it_later(stranger: FrontEnd, device: Reverse) -> None:
    """While all rings are stopped no message goes to the front-end ("Suspended device state")."""
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    ring.stop()
    with Channel(stranger) as channel:
        device.config_changed()
        stranger.settle()
        stranger.settle()  # what was posted before the first is done now
        assert channel.is_silent()
        ring.start()
        assert channel.receive()[0] is BackEndRequest.CONFIG_CHANGE_MSG
        assert channel.is_silent()


def test_a_change_that_was_told_once_is_not_told_at_the_next_start(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    with Channel(stranger) as channel:
        device.config_changed()
        assert channel.receive()[0] is BackEndRequest.CONFIG_CHANGE_MSG
        ring.stop()
        ring.start()
        stranger.settle()
        assert channel.is_silent()


def test_a_change_that_nobody_was_told_of_is_told_to_the_next_front_end(
    stranger: FrontEnd, server: Server, device: Reverse
) -> None:
    """QEMU, whose back-end was away, does not read it anew: a disk that had grown meanwhile stayed as it was."""
    agreed = PROTOCOL | P.CONFIG | P.BACKEND_REQ

    def suspended() -> None:
        stranger.settle()
        device.config_changed()
        stranger.settle()

    def while_it_leaves() -> None:
        device.on_detach = device.config_changed  # type: ignore[method-assign]

    def nobody_there() -> None:
        gone = threading.Event()
        device.on_detach = gone.set  # type: ignore[method-assign]
        stranger.stream.shutdown()
        assert gone.wait(5)
        device.config_changed()

    for change in (suspended, while_it_leaves, nobody_there):
        stranger.negotiate(protocol=agreed)
        change()
        stranger.reconnect(str(server.listener.address))
        stranger.negotiate(protocol=agreed)
        stranger.share_memory()
        with Channel(stranger) as channel:
            ring = stranger.queue()
            ring.start()
            assert channel.receive()[0] is BackEndRequest.CONFIG_CHANGE_MSG, change.__name__
            ring.stop()
        vars(device).pop("on_detach", None)
        stranger.reconnect(str(server.listener.address))
        stranger.negotiate(protocol=agreed)
        stranger.share_memory()
        with Channel(stranger) as channel:
            ring = stranger.queue()
            ring.start()
            stranger.settle()
            assert channel.is_silent(), change.__name__
            ring.stop()
        stranger.reconnect(str(server.listener.address))


@pytest.mark.parametrize("kind", [V(0), V.RING_PACKED], ids=["split", "packed"])
def test_a_front_end_that_goes_on_with_what_it_knew_is_told_to_read_configuration_space(
    stranger: FrontEnd, server: Server, kind: V
) -> None:
    """The back-end that told it may have been another, of a smaller disk. Once; and not who has read, or begins, or
    knows of no configuration space. That another ring begins anew changes nothing about it.
    """
    stranger.negotiate()
    ring: Queue | None = None
    knows = P.CONFIG
    for reads, known, told in (
        (False, knows, False),
        (False, knows, True),
        (True, knows, False),
        (False, P(0), False),
        (False, knows, True),
    ):
        stranger.reconnect(str(server.listener.address))
        stranger.negotiate(FEATURES | kind, PROTOCOL | known | P.BACKEND_REQ)
        stranger.share_memory()
        if reads:
            stranger.read_config(1)
        if ring is not None:
            stranger.do(R.SET_VRING_BASE, VringState(0, 3))
            stranger.do(R.SET_VRING_BASE, VringState(1, 0))
        with Channel(stranger) as channel:
            ring = ring or stranger.queue()
            ring.start()
            if told:
                assert channel.receive()[0] is BackEndRequest.CONFIG_CHANGE_MSG
            ring.exchange(b"ab", 2)
            ring.stop()
            ring.start()
            stranger.settle()
            assert channel.is_silent()


def test_every_status_of_eight_bits_is_taken_and_none_of_more(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.STATUS)
    for status in (1, 0x80, 0xFF):
        stranger.do(R.SET_STATUS, status)
        assert stranger.ask(R.GET_STATUS) == status
    assert stranger.tell(R.SET_STATUS, 0x100) == errno.EINVAL
    assert stranger.ask(R.GET_STATUS) == 0xFF


def test_a_channel_that_is_no_socket_is_refused(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
    assert stranger.tell(R.SET_BACKEND_REQ_FD, None, [stranger.memory.fd]) == errno.EINVAL
