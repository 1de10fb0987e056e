"""Whatever a front-end sends, right messages in any order or none at all, a back-end answers or ends the session."""

from __future__ import annotations

import contextlib
import os
import socket
from threading import Thread

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.descriptors import fd_count
from userdev.transport import Framer, Stream
from vhost_user.backend import Session
from vhost_user.device import Chain, Queues, VhostDevice, config_field, queue
from vhost_user.wire import HEADER, NEED_REPLY, VERSION, FrontEndRequest, Message, ProtocolFeature, VirtioFeature
from vhost_user.wire.payloads import (
    CONFIG,
    DEVICE_STATE,
    INFLIGHT,
    IOTLB,
    LOG,
    REGION,
    REGIONS,
    VRING_ADDRESS,
    VRING_STATE,
    Config,
    DeviceStateTransfer,
    Inflight,
    IotlbMessage,
    Log,
    Region,
    VringAddress,
    VringState,
)

R = FrontEndRequest
PATIENCE = 10.0


class Echo(VhostDevice):
    """Gives back what it is given."""

    virtio_id = 42
    queues = Queues(2, size=64)
    mode: int = config_field(4, 1, writable=True)

    @queue()
    def echo(self, chain: Chain) -> int:
        return chain.write(chain.read(1 << 16))


small = st.integers(0, 3)
numbers = st.one_of(small, st.sampled_from([8, 64, 0x1000, 0x10000, 1 << 31]))
long = st.one_of(numbers, st.integers(0, (1 << 64) - 1))
states = st.builds(VringState, small, numbers)
regions = st.builds(Region, long, long, long, st.sampled_from([0, 0x1000, 1 << 20]))
sensible = st.just(Region(0, 1 << 20, 0, 0))
features = st.sampled_from(
    [
        0,
        int(VirtioFeature.VERSION_1),
        int(VirtioFeature.VERSION_1 | VirtioFeature.PROTOCOL_FEATURES),
        int(VirtioFeature.VERSION_1 | VirtioFeature.ACCESS_PLATFORM),
        1 << 34,
        1 << 26,
    ]
)
P = ProtocolFeature
ALL = (
    P.MQ
    | P.LOG_SHMFD
    | P.REPLY_ACK
    | P.BACKEND_REQ
    | P.CONFIG
    | P.INFLIGHT_SHMFD
    | P.RESET_DEVICE
    | P.INBAND_NOTIFICATIONS
    | P.CONFIGURE_MEM_SLOTS
    | P.STATUS
    | P.DEVICE_STATE
)
"""But for PAGEFAULT: nobody could give a page to a back-end in the same process."""

protocols = st.sampled_from(
    [
        int(ALL),
        int(ALL | ProtocolFeature.GPA_ADDRESSES),
        int(ProtocolFeature.REPLY_ACK),
        int(ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS | ProtocolFeature.INFLIGHT_SHMFD),
        int(ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS | ProtocolFeature.CONFIG | ProtocolFeature.LOG_SHMFD),
    ]
)


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


PAYLOADS: dict[R, st.SearchStrategy[bytes]] = {
    R.SET_FEATURES: features.map(u64),
    R.SET_PROTOCOL_FEATURES: protocols.map(u64),
    R.SET_STATUS: small.map(u64),
    R.SET_MEM_TABLE: st.lists(st.one_of(sensible, regions), max_size=2).map(tuple).map(REGIONS.encode),
    R.ADD_MEM_REG: st.one_of(sensible, regions).map(REGION.encode),
    R.REM_MEM_REG: st.one_of(sensible, regions).map(REGION.encode),
    R.SET_LOG_BASE: st.builds(Log, numbers, numbers).map(LOG.encode),
    R.SET_VRING_NUM: states.map(VRING_STATE.encode),
    R.SET_VRING_BASE: states.map(VRING_STATE.encode),
    R.GET_VRING_BASE: states.map(VRING_STATE.encode),
    R.SET_VRING_ENABLE: st.builds(VringState, small, small).map(VRING_STATE.encode),
    R.SET_VRING_ADDR: st.builds(VringAddress, small, small, long, long, long, long).map(VRING_ADDRESS.encode),
    R.SET_VRING_KICK: st.sampled_from([0, 1, 0x100, 0x101]).map(u64),
    R.SET_VRING_CALL: st.sampled_from([0, 1, 0x100, 0x101]).map(u64),
    R.GET_INFLIGHT_FD: st.builds(Inflight, st.just(0), st.just(0), small, st.sampled_from([0, 8, 64])).map(
        INFLIGHT.encode
    ),
    R.SET_INFLIGHT_FD: st.builds(Inflight, numbers, numbers, small, numbers.map(lambda size: size & 0xFFFF)).map(
        INFLIGHT.encode
    ),
    R.GET_CONFIG: small.map(lambda size: CONFIG.encode(Config(0, size, 0, bytes(size)))),
    R.IOTLB_MSG: st.builds(IotlbMessage, long, long, long, small, st.integers(0, 5)).map(IOTLB.encode),
    R.VRING_KICK: states.map(VRING_STATE.encode),
    R.SET_DEVICE_STATE_FD: st.builds(DeviceStateTransfer, small, st.integers(0, 1)).map(DEVICE_STATE.encode),
    R.SET_CONFIG: small.map(lambda size: CONFIG.encode(Config(0, size, 0, bytes(size)))),
}

Said = tuple[int, bytes, int]
"""A request, its payload, and how many descriptors go along."""

right = st.sampled_from(list(R)).flatmap(
    lambda request: st.tuples(st.just(int(request)), PAYLOADS.get(request, st.just(b"")), st.integers(0, 2))
)
wrong = st.tuples(st.integers(0, 60), st.binary(max_size=64), st.integers(0, 2))


def talk(messages: list[Said]) -> int:
    """A whole session with these messages; it is over afterwards, whatever they are. How many answers there were."""
    ours, theirs = socket.socketpair()
    session = Session(Echo(), Stream(theirs))
    failed: list[BaseException] = []

    def run() -> None:
        try:
            session.run()
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    memory = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(memory, 1 << 20)
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    pipe = os.pipe2(os.O_CLOEXEC)
    channel = socket.socketpair()
    given = {
        **dict.fromkeys((R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR), event),
        R.SET_DEVICE_STATE_FD: pipe[0],
        R.SET_BACKEND_REQ_FD: channel[0].fileno(),
    }
    stream = Stream(ours)
    with contextlib.suppress(OSError):
        for request, payload, count in messages:
            fds = [given.get(R(request), memory) if request in {*R} else memory] * count
            stream.send(Message(request, VERSION | NEED_REPLY, payload).encode(), fds)
    stream.shutdown(socket.SHUT_WR)
    ours.settimeout(PATIENCE)
    answers: Framer[Message] = Framer(Message)
    with contextlib.suppress(ConnectionError):
        while data := ours.recv(4096):
            answers.feed(data)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not failed
    stream.close()
    for fd in (memory, event, *pipe):
        os.close(fd)
    for end in channel:
        end.close()
    return len(list(answers.messages()))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(right, right, right, wrong), max_size=25))
def test_any_messages_end_in_order_and_leave_no_descriptor(messages: list[Said]) -> None:
    before = fd_count()
    talk([(int(R.SET_PROTOCOL_FEATURES), u64(ALL), 0), *messages])
    assert fd_count() == before


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_the_session_in_order(data: bytes) -> None:
    before = fd_count()
    ours, theirs = socket.socketpair()
    session = Session(Echo(), Stream(theirs))
    thread = Thread(target=session.run)
    thread.start()
    with contextlib.suppress(OSError):
        ours.sendall(data)
    ours.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert fd_count() == before


def test_a_session_of_right_messages_is_one() -> None:
    """Or all of those above would end with their first message."""
    kick = VRING_STATE.encode(VringState(0, 0))
    said = [(int(R.SET_PROTOCOL_FEATURES), u64(ALL), 0), (int(R.VRING_KICK), kick, 0), (int(R.GET_QUEUE_NUM), b"", 0)]
    assert talk(said) == 3


def test_a_header_alone_is_waited_for_and_no_more() -> None:
    talk([(int(R.GET_FEATURES), b"", 0), (99, b"", 2)])
    assert HEADER.size == 12
