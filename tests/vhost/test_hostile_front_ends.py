"""A front-end that does not mean well has its own session, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.device_kit import open_fds
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import MEMORY, PROTOCOL, USER, Disconnected, FrontEnd, P, Queue, R, no_fd, split
from vhost_user.backend import Server, Session
from vhost_user.backend import server as server_module
from vhost_user.wire import HEADER, VERSION, encode_request
from vhost_user.wire.payloads import DeviceStateTransfer, Inflight, Log, Region, VringState


def held() -> tuple[int, int]:
    """Descriptors of this process; and mappings of front-ends' memory and logs, and of regions of ours."""
    gc.collect()  # what tests before this one have raised keeps their frames
    return len(open_fds()), Path("/proc/self/maps").read_text().count("memfd:")


def test_nothing_of_a_front_end_is_left(server: Server, device: Reverse) -> None:
    def visit() -> None:
        with FrontEnd(str(server.listener.address)) as front_end:
            front_end.negotiate(protocol=PROTOCOL | P.CONFIG | P.BACKEND_REQ)
            front_end.share_memory()
            ring = front_end.queue()
            ring.start()
            front_end.share_log()
            front_end.set_inflight(front_end.ask_inflight())
            ring.exchange(b"ab", 2)
        assert server._serving is not None
        server._serving.join(10)
        assert not server._serving.is_alive()

    visit()
    before = held()
    for _ in range(3):
        visit()
    assert held() == before


def wrong_file(size: int = 4096) -> int:
    fd = os.memfd_create("wrong")
    os.ftruncate(fd, size)
    return fd


class Sayer:
    """What a front-end may say again and again, right or wrong; the number of its answer, 0 for what is done."""

    def __init__(self, front_end: FrontEnd, held: contextlib.ExitStack) -> None:
        self.front_end = front_end
        self.tell = front_end.tell
        self.ring = front_end.queue()
        self.log = front_end.share_log()
        self.inflight = front_end.ask_inflight()
        self.pipe = os.pipe()
        self.file, self.eventfd = wrong_file(), os.eventfd(0)
        self.memory = front_end.memory.regions[0]
        for fd in (*self.pipe, self.file, self.eventfd):
            held.callback(os.close, fd)

    def kick(self) -> int:
        return self.tell(R.SET_VRING_KICK, 0, [self.ring.kick_fd])

    def no_kick(self) -> int:
        return self.tell(R.SET_VRING_KICK, no_fd(0))

    def call(self) -> int:
        return self.tell(R.SET_VRING_CALL, 0, [self.ring.call_fd])

    def no_call(self) -> int:
        return self.tell(R.SET_VRING_CALL, no_fd(0))

    def err(self) -> int:
        return self.tell(R.SET_VRING_ERR, 0, [self.ring.err_fd])

    def dirty_log(self) -> int:
        return int(self.front_end.ask(R.SET_LOG_BASE, Log(self.log.size, 0), [self.log.fd]))

    def log_fd(self) -> int:
        return self.tell(R.SET_LOG_FD, None, [self.eventfd])

    def an_inflight_region(self) -> int:
        return self.tell(R.SET_INFLIGHT_FD, self.inflight.described, [self.inflight.fd])

    def ask_for_an_inflight_region(self) -> int:
        return int(self.front_end.ask(R.GET_INFLIGHT_FD, Inflight(0, 0, 1, 8)).mmap_size == 0)

    def a_channel(self) -> int:
        return int(self.front_end.open_channel() is None)

    def memory_table(self) -> int:
        return self.tell(R.SET_MEM_TABLE, (self.memory,), [self.front_end.memory.fd])

    def memory_region(self) -> int:
        return self.tell(R.ADD_MEM_REG, self.memory, [self.front_end.memory.fd])

    def another_owner(self) -> int:
        return self.tell(R.SET_OWNER)

    def a_transfer(self) -> int:
        self.tell(R.GET_VRING_BASE, VringState(0, 0))
        return int(self.front_end.ask(R.SET_DEVICE_STATE_FD, DeviceStateTransfer(1, 0), [self.pipe[0]]) & 0xFF)

    # Wrong ones

    def kick_that_is_none(self) -> int:
        return self.tell(R.SET_VRING_KICK, 0, [self.file])

    def call_of_a_ring_that_is_none(self) -> int:
        return self.tell(R.SET_VRING_CALL, 7, [self.eventfd])

    def err_that_is_none(self) -> int:
        return self.tell(R.SET_VRING_ERR, 0, [self.file])

    def log_beyond_its_file(self) -> int:
        return int(self.front_end.ask(R.SET_LOG_BASE, Log(8192, 0), [self.file]))

    def inflight_region_that_is_too_small(self) -> int:
        return self.tell(R.SET_INFLIGHT_FD, Inflight(64, 0, 1, 64), [self.file])

    def channel_that_is_none(self) -> int:
        return self.tell(R.SET_BACKEND_REQ_FD, None, [self.file])

    def table_beyond_its_file(self) -> int:
        return self.tell(R.SET_MEM_TABLE, (self.memory,), [self.file])

    def region_over_another(self) -> int:
        over = self.memory._replace(guest_address=4096, size=4096)
        return self.tell(R.ADD_MEM_REG, over, [self.file])

    def region_that_is_not_there(self) -> int:
        return self.tell(R.REM_MEM_REG, self.memory._replace(size=4096), [self.file])

    def transfer_through_a_file(self) -> int:
        return int(self.front_end.ask(R.SET_DEVICE_STATE_FD, DeviceStateTransfer(0, 0), [self.file]) & 0xFF)

    def request_that_was_not_negotiated(self) -> int:
        return self.tell(R.GPU_SET_SOCKET, None, [self.file])


RIGHT: Sequence[Callable[[Sayer], int]] = (
    Sayer.kick,
    Sayer.no_kick,
    Sayer.call,
    Sayer.no_call,
    Sayer.err,
    Sayer.dirty_log,
    Sayer.log_fd,
    Sayer.an_inflight_region,
    Sayer.ask_for_an_inflight_region,
    Sayer.a_channel,
    Sayer.memory_table,
    Sayer.memory_region,
    Sayer.a_transfer,
)
WRONG: Sequence[Callable[[Sayer], int]] = (
    Sayer.kick_that_is_none,
    Sayer.call_of_a_ring_that_is_none,
    Sayer.err_that_is_none,
    Sayer.log_beyond_its_file,
    Sayer.inflight_region_that_is_too_small,
    Sayer.channel_that_is_none,
    Sayer.table_beyond_its_file,
    Sayer.region_over_another,
    Sayer.region_that_is_not_there,
    Sayer.transfer_through_a_file,
    Sayer.request_that_was_not_negotiated,
)


def test_what_is_said_again_takes_the_place_of_what_was_said_before(server: Server) -> None:
    """And what is refused leaves nothing: neither a descriptor nor a mapping."""

    def holds() -> tuple[int, int]:
        front_end.settle()
        return len(open_fds()), Path("/proc/self/maps").read_text().count("memfd:")

    gc.collect()
    with contextlib.ExitStack() as held:
        front_end = held.enter_context(FrontEnd(str(server.listener.address)))
        front_end.negotiate(protocol=PROTOCOL | P.BACKEND_REQ | P.DEVICE_STATE)
        front_end.share_memory()
        sayer = Sayer(front_end, held)
        for say in (*RIGHT, *WRONG, Sayer.another_owner):
            counts = []
            for _ in range(3):
                assert bool(say(sayer)) is (say in WRONG), say.__name__
                counts.append(holds())
            assert len(set(counts)) == 1, (say.__name__, counts)


@pytest.mark.parametrize("garbage", [HEADER.pack(1, 1, 1 << 31), b"\xff" * 64, HEADER.pack(1, VERSION + 1, 0)])
def test_bytes_that_are_no_message_end_the_connection_and_the_next_is_served(server: Server, garbage: bytes) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.stream.send(garbage)
        with pytest.raises(Disconnected):
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
        before = len(open_fds())
        with contextlib.suppress(BrokenPipeError):
            for _ in range(10):
                front_end.stream.send(HEADER.pack(int(R.SET_OWNER), VERSION, 0), [front_end.memory.fd] * 100)
        with pytest.raises(Disconnected):
            front_end.receive()
        assert server._serving is not None
        server._serving.join(10)
        assert len(open_fds()) <= before


def test_a_second_front_end_is_hung_up_on(
    server: Server, front_end: FrontEnd, ring: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.05)
    with FrontEnd(str(server.listener.address)) as other:
        other.send(R.GET_FEATURES)
        with pytest.raises(Disconnected):
            other.receive()
    assert ring.exchange(b"ab", 2).data == b"ba"


def test_a_front_end_that_says_nothing_does_not_keep_others_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "FIRST_SECONDS", 0.1)
    with FrontEnd(str(server.listener.address)) as silent, pytest.raises(Disconnected):
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
    while split(ring).used_index == 0:
        session.free()
    session.free()
    front_end.settle()


def test_kicks_without_an_end_leave_the_connection_served(front_end: FrontEnd, ring: Queue) -> None:
    for _ in range(200):
        ring.kick()
        front_end.settle()
    assert ring.exchange(b"ab", 2).data == b"ba"


def test_a_front_end_that_stops_in_the_middle_of_a_message_has_its_rings_served(
    front_end: FrontEnd, ring: Queue
) -> None:
    """As one under SIGSTOP: what is said is waited for, what is in rings is done."""
    message = encode_request(R.SET_VRING_BASE, VringState(1, 3), need_reply=True).encode()
    front_end.send_bytes(message[:15])
    assert ring.exchange(b"ab", 2).data == b"ba"
    front_end.send_bytes(message[15:])
    assert front_end.receive().request == R.SET_VRING_BASE
    front_end.settle()


@pytest.mark.parametrize("began", [b"", HEADER.pack(int(R.GET_FEATURES), VERSION, 8)[:7]], ids=["nothing", "a part"])
def test_a_front_end_that_never_says_a_whole_message_keeps_nobody_away(
    server: Server, monkeypatch: pytest.MonkeyPatch, began: bytes
) -> None:
    monkeypatch.setattr(server_module, "FIRST_SECONDS", 0.1)
    with FrontEnd(str(server.listener.address)) as slow:
        slow.send_bytes(began)
        with pytest.raises(Disconnected):
            slow.receive()
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()


def test_a_thousand_descriptors_beside_part_of_a_message_end_the_connection_and_are_closed(server: Server) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate()
        front_end.settle()
        before = len(open_fds())
        message = HEADER.pack(int(R.SET_MEM_TABLE), VERSION, 264) + bytes(264)
        with contextlib.suppress(Disconnected):
            for at in range(5):  # the kernel takes 253 at a time
                front_end.send_bytes(message[at : at + 1], [front_end.memory.fd] * 200)
        with pytest.raises(Disconnected):
            front_end.receive()
        assert server._serving is not None
        server._serving.join(10)
        assert len(open_fds()) <= before
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()


HUGE = 1 << 63
OUTSIDE = [
    Region(0, HUGE, USER, 0),
    Region(HUGE, HUGE, USER, 0),
    Region(0, MEMORY, HUGE, HUGE),
    Region((1 << 64) - 1, MEMORY, USER, 0),
    Region(0, 0, USER, 0),
]


@pytest.mark.parametrize("region", OUTSIDE)
@pytest.mark.parametrize("request_", [R.ADD_MEM_REG, R.SET_MEM_TABLE])
def test_a_region_that_cannot_be_is_refused_and_rings_run_on(
    front_end: FrontEnd, ring: Queue, region: Region, request_: R
) -> None:
    said = (region,) if request_ is R.SET_MEM_TABLE else region
    assert front_end.tell(request_, said, [front_end.memory.fd]) == errno.EINVAL
    assert ring.exchange(b"ab", 2).data == b"ba"


@pytest.mark.parametrize("address", [0, USER - 16, USER + MEMORY - 16, USER + MEMORY, (1 << 64) - 16, USER + 8])
def test_a_ring_outside_of_memory_or_out_of_line_breaks_alone(front_end: FrontEnd, ring: Queue, address: int) -> None:
    other = front_end.queue(1)
    other.set_up()
    other.stop()
    front_end.do(R.SET_VRING_ADDR, other.addresses._replace(descriptor=address))
    front_end.do(R.SET_VRING_KICK, 1, [other.kick_fd])
    other.enable()
    assert other.wait_err()
    assert ring.exchange(b"ab", 2).data == b"ba"


def test_a_memory_table_that_comes_again_and_again_stops_no_ring(front_end: FrontEnd, ring: Queue) -> None:
    for number in range(50):
        ring.put(b"ab", 2)
        ring.kick()
        front_end.share_memory(as_table=True)
        assert [completion.data for completion in ring.wait_used()] == [b"ba"], number


@pytest.mark.parametrize("halted", ["the kick", "no kick at all"])
def test_kicks_that_come_faster_than_they_are_read_keep_no_message_waiting(
    front_end: FrontEnd, ring: Queue, halted: str
) -> None:
    """A counter that never is zero, and a ring that is looked at all the time."""
    if halted == "no kick at all":
        ring.stop()
        front_end.do(R.SET_VRING_KICK, no_fd(0))
        ring.enable()
    kicking, done = threading.Event(), threading.Event()

    def kick() -> None:
        while not done.is_set():
            os.eventfd_write(ring.kick_fd, 1)
            kicking.set()

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        assert kicking.wait(10)
        for _ in range(20):
            front_end.settle()
        assert ring.exchange(b"ab", 2).data == b"ba"
    finally:
        done.set()
        thread.join(10)
