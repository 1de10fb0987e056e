"""The front-end's own parts: memory that is taken and given back, both kinds of ring, the channel, a device's state."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each
from tests.descriptors import fd_count
from tests.vhost.reverse import Reverse
from tests.vhost.said import listening
from tests.vhost_frontend import FEATURES, PROTOCOL, USER, FrontEnd, P, R, V, split
from userdev.errors import UserError
from userdev.transport import Stream
from vhost_user.backend import Server
from vhost_user.frontend import BackEndError, BrokenQueue, Disconnected, GuestMemory, NoAnswer, NotOffered
from vhost_user.frontend.channel import Channel
from vhost_user.frontend.connection import Connection
from vhost_user.frontend.errors import Refused, WrongAnswer
from vhost_user.frontend.memory import PAGE, DirtyPages
from vhost_user.frontend.queue import Queue
from vhost_user.frontend.split import SplitDriver
from vhost_user.wire import (
    MAX_FDS,
    NO_FD,
    BackEndRequest,
    DeviceStatus,
    Message,
    Negotiated,
    acknowledge,
    encode_reply,
    encode_request,
)
from vhost_user.wire.payloads import VRING_F_LOG, VringAddress

RINGS = [
    V(0),
    V.EVENT_IDX,
    V.IN_ORDER,
    V.RING_PACKED,
    V.RING_PACKED | V.EVENT_IDX,
    V.RING_PACKED | V.IN_ORDER | V.INDIRECT_DESC,
]


def test_memory_is_sealed_and_given_back_is_taken_again() -> None:
    memory = GuestMemory(0x10000)
    for size in (0x1000, 0x20000):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    pieces = [memory.allocate(size) for size in (0x100, 0x2000, 1, 0)]
    assert len(set(pieces)) == 4
    memory.free(pieces[1])
    assert memory.allocate(0x2000) == pieces[1]
    for size, at in ((0x10000, None), (1, pieces[0]), (2, 0xFFFF)):
        with pytest.raises(MemoryError):
            memory.allocate(size, at=at)
    place = memory.allocate(0x10, at=0x8010)
    over = [
        (size, at) for at in range(0x8000, 0x8024) for size in (1, 0x10, 0x20) if at < 0x8020 and at + size > 0x8010
    ]
    for size, at in over:  # from before it, within it, over it and beyond it
        with pytest.raises(MemoryError):
            memory.allocate(size, at=at)
    before = memory.allocate(0x10, at=0x8000)
    assert {(place, 0x8020), (before, place)} <= memory.pieces
    assert memory.allocate(1, at=0x8020) == 0x8020
    memory.close()
    memory.close()


@pytest.mark.parametrize("features", RINGS, ids=lambda features: str(features) or "plain")
def test_rings_of_every_kind_are_gone_through_and_nothing_of_memory_is_kept(stranger: FrontEnd, features: V) -> None:
    stranger.negotiate(FEATURES | features)
    stranger.share_memory()
    ring = stranger.queue(size=16)
    ring.start()
    before = stranger.memory.pieces
    for count in (1, 8, 3, 8, 7, 8, 8):
        for number in range(count):
            ring.put(b"%d" % number, 20, indirect=V.INDIRECT_DESC in features)
        ring.notify()
        done = ring.wait_used(count)
        assert sorted(completion.data for completion in done) == [b"%d" % number for number in range(count)]
    assert stranger.memory.pieces == before
    ring.stop()


def test_a_request_that_has_no_room_leaves_ring_and_memory_as_they_were(front_end: FrontEnd) -> None:
    ring = front_end.queue(size=4)
    ring.put(b"a", 1)
    before = front_end.memory.allocate(1)
    front_end.memory.free(before)
    with pytest.raises(ValueError, match="2 of 4 left"):
        ring.put(b"a", b"b", 1)
    assert front_end.memory.allocate(1) == before
    ring.start()
    assert ring.wait_used()[0].data == b"a"


@pytest.mark.parametrize(("head", "written"), [(3, 0), (0, 99)])
def test_a_used_entry_that_cannot_be_right_breaks_the_queue(front_end: FrontEnd, head: int, written: int) -> None:
    before = front_end.memory.pieces
    ring = front_end.queue(size=8)
    ring.put(b"a", 1)
    used = split(ring).addresses.used
    front_end.memory[used + 4 : used + 12] = struct.pack("<II", head, written)
    front_end.memory[used + 2 : used + 4] = b"\1\0"
    with pytest.raises(BrokenQueue):
        ring.take_used()
    ring.close()
    assert front_end.memory.pieces == before


def test_where_a_ring_is_says_where_its_writes_are_marked_once_they_are(front_end: FrontEnd) -> None:
    ring = front_end.queue(size=8)
    descriptor, used, available = ring.driver.addresses
    places = (USER + descriptor, USER + used, USER + available)
    assert ring.addresses == VringAddress(0, 0, *places, 0)
    ring.logged = True
    assert ring.addresses == VringAddress(0, VRING_F_LOG, *places, used)


def test_a_used_index_that_jumps_breaks_the_queue(front_end: FrontEnd) -> None:
    ring = front_end.queue(size=8)
    ring.put(b"a", 1)
    used = split(ring).addresses.used
    front_end.memory[used + 2 : used + 4] = b"\2\0"
    with pytest.raises(BrokenQueue):
        ring.take_used()


def test_who_waits_for_a_call_hears_that_none_will_come(front_end: FrontEnd) -> None:
    """At once: a fuzzer waited a minute for each call of a device that had failed."""
    ring = front_end.queue(size=8)
    os.eventfd_write(ring.call_fd, 1)
    os.eventfd_write(ring.err_fd, 1)
    assert ring.await_call(), "what was told is told before it broke"
    with pytest.raises(BrokenQueue):
        ring.await_call()
    front_end.stream.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(Disconnected):
        ring.await_call()


def test_what_was_not_offered_is_said_by_its_name(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL)
    with pytest.raises(NotOffered, match="DEVICE_STATE was not negotiated"):
        stranger.save_state()
    with pytest.raises(NotOffered, match="does not offer RARP"):
        stranger.need(P.RARP)


def test_a_request_on_the_channel_is_acknowledged_where_it_asks_for_that() -> None:
    with Channel(timeout=5) as channel:
        theirs = os.dup(channel.theirs)
        message = encode_request(BackEndRequest.CONFIG_CHANGE_MSG, need_reply=True)
        os.write(theirs, message.encode())
        assert channel.next() == (BackEndRequest.CONFIG_CHANGE_MSG, None, True)
        assert os.read(theirs, 64) == Message(2, 5, bytes(8)).encode()
        channel.given()
        os.close(theirs)
        with pytest.raises(BackEndError, match="ended"):
            channel.next()


def test_what_a_back_end_maps_can_never_be_another_size() -> None:
    for made in (GuestMemory(0x10000), DirtyPages(9)):
        seals = fcntl.fcntl(made.fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        made.close()


def with_descriptors(count: int) -> Callable[[socket.socket], None]:
    """An answer that comes with so many."""

    def say(theirs: socket.socket) -> None:
        fds = [theirs.fileno()] * count
        socket.send_fds(theirs, [encode_reply(R.GET_FEATURES, 0).encode()], fds)

    return say


def half_a_header(theirs: socket.socket) -> None:
    theirs.send(bytes(5))
    theirs.close()


WRONG_BACK_ENDS: dict[str, tuple[Callable[[socket.socket], object], type[BackEndError], bool]] = {
    "answers nothing": (lambda theirs: None, NoAnswer, True),
    "has gone": (lambda theirs: theirs.close(), Disconnected, False),
    "says no more": (lambda theirs: theirs.shutdown(socket.SHUT_WR), Disconnected, False),
    "goes within a header": (half_a_header, Disconnected, False),
    "says half a message": (lambda theirs: theirs.send(encode_reply(R.GET_FEATURES, 0).encode()[:15]), NoAnswer, True),
    "says no message": (lambda theirs: theirs.send(b"\xff" * 30), WrongAnswer, True),
    "answers another request": (
        lambda theirs: theirs.send(encode_reply(R.GET_QUEUE_NUM, 1).encode()),
        WrongAnswer,
        False,
    ),
    "gives descriptors with what has none": (with_descriptors(MAX_FDS), WrongAnswer, False),
    "gives more descriptors than any message has": (with_descriptors(MAX_FDS + 1), WrongAnswer, True),
}
"""What one does before it is asked for its features, what that is, and whether the connection has ended by it."""


@for_each(WRONG_BACK_ENDS)
def test_what_a_back_end_does_wrong_is_told_and_where_no_answer_can_be_trusted_the_connection_ends(name: str) -> None:
    wrong, error, ended = WRONG_BACK_ENDS[name]
    before = fd_count()
    ours, theirs = socket.socketpair()
    with Connection(Stream(ours), timeout=0.03) as connection:
        wrong(theirs)
        with pytest.raises(error):
            connection.settle()
        assert (connection.stream.fileno() < 0) is ended
        if ended:
            with pytest.raises(Disconnected):
                connection.settle()
    theirs.close()
    assert fd_count() == before


def test_a_channel_that_is_refused_is_none() -> None:
    ours, theirs = socket.socketpair()
    with FrontEnd(Stream(ours), timeout=5) as front_end:
        front_end.offered = front_end.offered._replace(protocol_features=P.BACKEND_REQ)
        front_end.negotiated = Negotiated(V(0), P.BACKEND_REQ | P.REPLY_ACK)
        before = fd_count()
        for error in (22, 0, 22):
            theirs.send(acknowledge(R.SET_BACKEND_REQ_FD, error).encode())
            if not error:
                front_end.open_channel()
                continue
            with pytest.raises(Refused):
                front_end.open_channel()
            assert front_end.channel is None
            assert fd_count() == before
    theirs.close()


def test_a_back_end_that_takes_nothing_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with Connection(Stream(ours), timeout=0.03) as connection:
        with pytest.raises(NoAnswer, match="takes no message"):
            connection.send_bytes(bytes(4 << 20))
        with pytest.raises(Disconnected):
            connection.send(R.SET_OWNER)
    theirs.close()


def test_one_that_takes_no_connection_is_not_waited_for(tmp_path: Path) -> None:
    """Neither at first nor again; what was there before is closed as ever."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        ours, theirs = socket.socketpair()
        with FrontEnd(Stream(ours), timeout=0.05) as front_end:
            with pytest.raises(UserError, match="cannot connect"):
                FrontEnd(path, timeout=0.05)
            with pytest.raises(UserError, match="cannot connect"):
                front_end.reconnect(path)
        assert theirs.recv(1) == b""
        theirs.close()


@pytest.mark.parametrize("answer", [NO_FD | 5, 7])
def test_a_state_that_is_refused_is_told_with_its_number(
    stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    monkeypatch.setattr(stranger, "ask_for_fds", lambda *_, **__: (answer, []))
    monkeypatch.setattr(stranger, "need", lambda *_: None)
    with pytest.raises(BackEndError, match="SET_DEVICE_STATE_FD"):
        stranger.save_state()


def test_a_back_end_may_have_a_pipe_of_its_own_for_its_state(
    stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it answers with is used, and closed behind it."""

    def answer(request: R, value: object, fds: list[int], **_: object) -> tuple[int, list[int]]:
        reader, writer = os.pipe()
        os.write(writer, b"state")
        os.close(writer)
        return 0, [reader]

    stranger.negotiate()
    monkeypatch.setattr(stranger, "ask_for_fds", answer)
    monkeypatch.setattr(stranger, "ask", lambda *_, **__: 0)
    before = fd_count()
    for _ in range(2):
        assert stranger.save_state() == b"state"
        assert fd_count() == before


def test_a_back_end_that_writes_nothing_of_its_state_is_given_up(
    stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def keep(request: R, value: object, fds: list[int], **_: object) -> tuple[int, list[int]]:
        kept.append(os.dup(fds[0]))
        return NO_FD, []

    stranger.negotiate()
    stranger.timeout = 0.05
    monkeypatch.setattr(stranger, "ask_for_fds", keep)
    with pytest.raises(NoAnswer, match="state"):
        stranger.save_state()
    os.close(kept[0])


def test_a_state_goes_from_one_device_to_another(stranger: FrontEnd, device: Reverse) -> None:
    stranger.negotiate()
    device.done = 41
    state = stranger.save_state()
    device.done = 0
    stranger.load_state(state)
    assert device.done == 41


@pytest.mark.parametrize("indirect", [False, True])
def test_a_request_that_finds_no_room_takes_none(indirect: bool) -> None:
    memory = GuestMemory(1 << 16)
    driver = SplitDriver(memory, memory.allocate(SplitDriver.room(8), align=PAGE), 8, V.VERSION_1)
    connection: Any = None
    queue = Queue(connection, memory, 0, driver, lambda: None)
    before = memory.pieces
    for buffers, error in [([512, 1 << 20], MemoryError), ([1] * 9, ValueError)]:
        if indirect and error is ValueError:
            continue  # however many there are: they take one descriptor
        with pytest.raises(error):
            queue.put(*buffers, indirect=indirect)
        assert memory.pieces == before
    queue.close()
    memory.close()


def test_where_a_queue_was_stopped_is_known_until_it_runs_again(front_end: FrontEnd) -> None:
    queue = front_end.queue()
    known: list[int | None] = []
    for _ in range(3):
        queue.start()
        known.append(queue.base_at_stop)
        queue.exchange(b"abc", 3)
        queue.stop()
        known.append(queue.base_at_stop)
    assert known == [None, 1, None, 2, None, 3]


def test_a_queue_that_has_requests_is_kicked_when_it_is_enabled_unless_that_is_not_wanted(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    kicks: list[int] = []
    monkeypatch.setattr(Queue, "kick", lambda queue: kicks.append(queue.index))
    ring = front_end.queue()
    ring.start()
    assert kicks == [], "there is nothing to be told of"
    ring.put(b"ab", 2)
    ring.start(ring.stop(drain=False), kick=False)
    ring.enable(False)
    ring.enable(kick=False)
    assert kicks == []
    ring.enable()
    assert kicks == [0]
    ring.close()


def test_where_a_queue_was_stopped_counts_for_the_back_end_that_said_it_alone(
    server: Server, stranger: FrontEnd
) -> None:
    """Not for another, nor after a reset."""
    ways: list[Callable[[], None]] = [stranger.reset, lambda: stranger.reconnect(str(server.listener.address))]
    for way in ways:
        stranger.negotiate(protocol=PROTOCOL | P.STATUS)
        stranger.share_memory()
        ring = stranger.queue()
        ring.start()
        ring.exchange(b"ab", 2)
        known = [ring.stop(), ring.base_at_stop]
        way()
        assert [*known, ring.base_at_stop] == [1, 1, None]
        if stranger.has(P.CONFIGURE_MEM_SLOTS):
            stranger.take_memory()


def test_what_counts_until_a_reset_is_said_once_and_said_again_after_it(stranger: FrontEnd) -> None:
    """Whose it is, once per connection; that the driver is ready, whichever queue begins; features."""
    ready = DeviceStatus.DRIVER_OK
    with listening() as heard:
        for _ in range(2):
            stranger.negotiate(protocol=PROTOCOL | P.STATUS)
        stranger.share_memory()
        queues = [stranger.queue(0), stranger.queue(1)]
        stranger.start(*queues)
        queues[0].stop()
        queues[0].start()
        stranger.settle()
        assert heard.names.count("SET_OWNER") == 1
        assert sum(ready in DeviceStatus(said.value) for said in heard if said.name == "SET_STATUS") == 1
        stranger.reset()
        stranger.start(*queues)
        stranger.settle()
    assert heard.names[heard.names.index("RESET_DEVICE") + 1] == "SET_FEATURES"
    assert sum(ready in DeviceStatus(said.value) for said in heard if said.name == "SET_STATUS") == 2


def test_a_log_that_is_no_more_written_is_none_of_the_ring_either(front_end: FrontEnd) -> None:
    front_end.queue()
    front_end.share_log()
    with listening() as heard:
        for on in (True, False):
            front_end.log_writes(on)
        front_end.settle()
    assert [said.value.flags for said in heard if said.name == "SET_VRING_ADDR"] == [VRING_F_LOG, 0]


def test_memory_of_regions_that_are_no_whole_pages_is_refused_and_the_last_page_is_there_to_be_taken() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        GuestMemory(3 * PAGE, regions=2)
    memory = GuestMemory(4 * PAGE, regions=2)
    assert memory.allocate(PAGE, at=3 * PAGE) == 3 * PAGE
    memory.close()
