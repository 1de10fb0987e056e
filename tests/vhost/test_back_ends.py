"""What real back-ends do, and one would not guess: our front-end goes on with each. Ours, made to do the same."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from tests.vhost.faults import Faulty
from tests.vhost.faults.rings import looks_at_new_kicks_alone
from tests.vhost_frontend import FEATURES, FrontEnd, R, V
from userdev.errors import ProtocolError
from userdev.process import Deadline
from userdev.transport import Stream
from vhost_user.backend import Server, Session
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.vring import Vring
from vhost_user.backend.vrings import Vrings
from vhost_user.frontend import BackEndError, Disconnected, GuestMemory, NoAnswer, queue
from vhost_user.wire import HEADER, NEED_REPLY, NO_FD, DeviceStatus, FrontEndRequest, Message, encode_reply
from vhost_user.wire.payloads import Config, Log, VringState

Does = Callable[[FrontEndRequest, Callable[..., Any]], None]


@pytest.fixture
def does(monkeypatch: pytest.MonkeyPatch) -> Does:
    """Have a back-end do something else at a request: a function of the back-end, the payload, the descriptors and
    what it would do otherwise.
    """
    return Faulty(monkeypatch).at


# 1


def forget_size(vring: Vring) -> None:
    vring.size = 0


def forget_addresses(vring: Vring) -> None:
    vring.addresses = None


def forget_call(vring: Vring) -> None:
    vring.call.set(None)


@pytest.mark.parametrize(
    "forgotten",
    [
        pytest.param([forget_call], id="qemu-storage-daemon 11.1.3 and virtiofsd 1.14.0"),
        pytest.param([forget_addresses, forget_call], id="passt 2026-10-02"),
        pytest.param([forget_size, forget_addresses], id="DPDK 25.11.4"),
    ],
)
def test_a_ring_is_started_again_whatever_its_back_end_has_forgotten_of_it(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch, forgotten: list[Callable[[Vring], None]]
) -> None:
    usual = Vrings.stop

    def stop(vrings: Vrings, vring: Vring) -> int:
        base = usual(vrings, vring)
        for forget in forgotten:
            forget(vring)
        return base

    monkeypatch.setattr(Vrings, "stop", stop)
    ring = front_end.queue()
    for _ in range(3):
        ring.start()
        assert ring.exchange(b"ab", 2).data == b"ba"
        ring.stop()


# 2


def test_what_is_under_way_is_waited_for_before_a_ring_is_stopped(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qemu-storage-daemon 11.1.3 answers GET_VRING_BASE at once, and writes the used ring afterwards."""
    usual = Vring.serve

    def serve_late(vring: Vring) -> None:
        if late.passed:  # until then messages are handled, and no request is
            usual(vring)

    late = Deadline(0.1)
    monkeypatch.setattr(Vring, "serve", serve_late)
    ring = front_end.queue()
    ring.start()
    for _ in range(20):
        ring.put(b"ab", 2)
    ring.kick()
    assert ring.stop() == 20
    assert len(ring.take_used()) == 20


# 3


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda log: log.size, id="qemu-storage-daemon 11.1.3 and passt 2026-10-02: its size"),
        pytest.param(lambda log: log, id="virtiofsd 1.14.0: the request's payload"),
        pytest.param(lambda log: None, id="DPDK 25.11.4: nothing"),
    ],
)
def test_a_log_is_shared_whatever_the_back_end_answers(
    front_end: FrontEnd, does: Does, answer: Callable[[Log], Any]
) -> None:
    def set_log(back_end: BackEnd, log: Log, fds: list[int], usual: Any) -> Any:
        usual(back_end, log, fds)
        return answer(log)

    does(R.SET_LOG_BASE, set_log)
    log = front_end.share_log()
    front_end.log_writes()
    ring = front_end.queue()
    ring.start()
    ring.exchange(b"ab", 2)
    assert log.pages()


# 4


def test_replies_may_keep_the_flag_that_asked_for_them(stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu-storage-daemon 11.1.3 (GET_FEATURES, GET_CONFIG, GET_VRING_BASE, SET_LOG_BASE), passt 2026-10-02: 0xd."""

    def reply(request: Any, value: Any = None, fds: list[int] | None = None) -> Message:
        message = encode_reply(request, value, fds)
        message.flags |= NEED_REPLY
        return message

    monkeypatch.setattr("vhost_user.backend.session.encode_reply", reply)
    stranger.negotiate()
    stranger.share_memory()
    stranger.share_log()
    ring = stranger.queue()
    ring.start()
    assert ring.exchange(b"ab", 2).data == b"ba"
    assert ring.stop() == 1


# 5


@pytest.fixture
def looks_at_kicks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_at_new_kicks_alone(Faulty(monkeypatch))


@pytest.mark.usefixtures("looks_at_kicks_alone")
def test_a_ring_that_has_requests_is_kicked_when_it_is_enabled(front_end: FrontEnd) -> None:
    """Virtiofsd 1.13.2, where a kick before ENABLE is lost; passt and vhost-device-vsock 0.3.0."""
    ring = front_end.queue()
    ring.put(b"ab", 2)
    ring.kick()
    ring.start()
    assert [completion.data for completion in ring.wait_used()] == [b"ba"]
    ring.enable(False)
    front_end.settle()
    ring.put(b"cd", 2)
    ring.kick()
    front_end.settle()  # the kick is looked at before ENABLE comes
    ring.enable()
    assert [completion.data for completion in ring.wait_used()] == [b"dc"]


# 6


def test_a_connection_is_owned_once(stranger: FrontEnd, does: Does) -> None:
    """Virtiofsd 1.14.0 and vhost-device-vsock 0.3.0, of rust-vmm, end it at a second SET_OWNER."""
    owners: list[None] = []

    def own(back_end: BackEnd, value: None, fds: list[int], usual: Any) -> None:
        if owners:
            raise ProtocolError("a second owner", fatal=True)
        owners.append(usual(back_end, value, fds))

    does(R.SET_OWNER, own)
    stranger.negotiate()
    stranger.negotiate(FEATURES | V.EVENT_IDX)
    stranger.share_memory()


# 7


def test_regions_lie_on_pages_and_are_taken_back_without_a_descriptor(server: Server, does: Does) -> None:
    """Virtiofsd 1.14.0, of rust-vmm; qemu-storage-daemon 11.1.3 and DPDK 25.11.4 refuse an offset of 0x200 too."""

    def add(back_end: BackEnd, region: Any, fds: list[int], usual: Any) -> None:
        if region.mmap_offset % 4096:
            raise ProtocolError("an offset that is no page's")
        usual(back_end, region, fds)

    def remove(back_end: BackEnd, region: Any, fds: list[int], usual: Any) -> None:
        if fds:
            raise ProtocolError("a descriptor with REM_MEM_REG", fatal=True)
        usual(back_end, region, fds)

    does(R.ADD_MEM_REG, add)
    does(R.REM_MEM_REG, remove)
    with FrontEnd(str(server.listener.address), memory=GuestMemory(0x30000, regions=3)) as front_end:
        front_end.negotiate()
        front_end.share_memory()
        front_end.take_memory()
        front_end.share_memory()
        ring = front_end.queue()
        ring.start()
        assert ring.exchange(b"ab", 2).data == b"ba"


def test_memory_that_is_no_whole_pages_is_not_made() -> None:
    for size, regions in ((0x10200, 1), (0x10000, 3), (0, 1), (0x9000, 9)):
        with pytest.raises(ValueError, match="whole pages"):
            GuestMemory(size, regions=regions)


# 8


@pytest.mark.parametrize("together", [True, False])
def test_the_driver_says_that_it_is_ready(stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    """DPDK 25.11.4, net_vhost, starts no ring before SET_STATUS with DRIVER_OK, where STATUS was agreed on."""
    usual = Session._serve_rings

    def serve_rings(session: Session) -> None:
        if DeviceStatus.DRIVER_OK in session._back_end.status:
            usual(session)

    monkeypatch.setattr(Session, "_serve_rings", serve_rings)
    stranger.negotiate()
    stranger.share_memory()
    rings = [stranger.queue(0), stranger.queue(1)]
    if together:
        stranger.start(*rings)
    else:
        for ring in rings:
            ring.start()
    assert [ring.exchange(b"ab", 2).data for ring in rings] == [b"ba", b"ba"]
    assert stranger.status() == 0xF


# 9


def test_configuration_is_read_from_its_beginning_and_as_long_as_it_is(stranger: FrontEnd, does: Does) -> None:
    """qemu-storage-daemon 11.1.3 begins at 0 whatever the offset, and gives nothing where more is asked than it has."""

    def get_config(back_end: BackEnd, wanted: Config, fds: list[int], _: Any) -> Config:
        space = back_end.model.config.read()
        data = space[: wanted.size] if wanted.size <= len(space) else b""
        return wanted._replace(size=len(data), data=data)

    does(R.GET_CONFIG, get_config)
    stranger.negotiate()
    assert stranger.read_config(9) == (7).to_bytes(8, "little") + b"\1"
    with pytest.raises(BackEndError, match="10 bytes"):
        stranger.read_config(10)


# 10


def test_version_1_is_agreed_on_unless_told_otherwise(stranger: FrontEnd, does: Does) -> None:
    """qemu-storage-daemon 11.1.3 ends a connection that goes without."""

    def set_features(back_end: BackEnd, value: int, fds: list[int], usual: Any) -> None:
        if not value & V.VERSION_1:
            raise ProtocolError("no VERSION_1", fatal=True)
        usual(back_end, value, fds)

    does(R.SET_FEATURES, set_features)
    stranger.negotiate()
    stranger.share_memory()
    stranger.log_writes()


# 11


def test_a_back_end_that_serves_another_front_end_is_given_up_in_time(tmp_path: Path) -> None:
    """qemu-storage-daemon 11.1.3, vhost-device-vsock 0.3.0: connect() succeeds, and nobody answers."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen()
        with FrontEnd(path, timeout=0.05) as front_end:
            with pytest.raises(NoAnswer, match="GET_FEATURES"):
                front_end.negotiate()
            with pytest.raises(Disconnected):  # a late answer is nobody's
                front_end.negotiate()


# 12


def test_descriptors_are_always_given(front_end: FrontEnd, does: Does) -> None:
    """Of all that were seen, DPDK 25.11.4 alone polls a ring without a kick; others accept that, and do nothing."""
    said: list[int] = []

    def note(back_end: BackEnd, value: int, fds: list[int], usual: Any) -> None:
        said.append(value)
        usual(back_end, value, fds)

    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        does(request, note)
    ring = front_end.queue(1)
    ring.start()
    ring.stop()
    ring.start()
    assert said == [1] * 6
    assert not any(value & NO_FD for value in said)


# 13


def test_what_was_agreed_on_is_said_again_after_a_reset(stranger: FrontEnd, does: Does) -> None:
    """rust-vmm's (virtiofsd 1.14.0) forgets features at RESET_DEVICE: a packed ring would be taken for a split one."""

    def forget(back_end: BackEnd, value: None, fds: list[int], usual: Any) -> None:
        usual(back_end, value, fds)
        back_end.agree(features=V(0))

    does(R.RESET_DEVICE, forget)
    stranger.negotiate(FEATURES | V.RING_PACKED)
    stranger.share_memory()
    for _ in range(2):
        ring = stranger.queue()
        ring.start(1 << 15 | 1 << 31)
        assert ring.exchange(b"ab", 2).data == b"ba"
        ring.stop()
        stranger.reset()


# What cannot be right, of any of them


def test_an_answer_for_another_queue_is_none(front_end: FrontEnd, does: Does) -> None:
    def get_base(back_end: BackEnd, said: VringState, fds: list[int], usual: Any) -> VringState:
        answer: VringState = usual(back_end, said, fds)
        return answer._replace(vring=1)

    does(R.GET_VRING_BASE, get_base)
    ring = front_end.queue()
    ring.start()
    with pytest.raises(BackEndError, match="queue 1"):
        ring.stop()


@pytest.mark.parametrize("answer", [b"\xff" * 12, b"\1\0\0\0\1\0\0\0\0\0\0\0", b"\1\0\0\0\5\0\0\0\3\0\0\0abc"])
def test_an_answer_that_is_none_is_one_error(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs, FrontEnd(Stream(ours), timeout=5) as front_end:
        theirs.send(answer)
        with pytest.raises(BackEndError):
            front_end.negotiate()


def test_a_driver_that_is_not_called_does_not_find_its_requests_by_chance(
    stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they have come back meanwhile: a guest would wait for ever."""

    def serve_late(vring: Vring) -> None:
        if waits.is_set():
            vring.call.signal = lambda: None
            usual(vring)
            served.set()

    def wait(fds: list[int], seconds: float, **more: int) -> set[int]:
        waits.set()
        assert served.wait(60)
        return poll(fds, 0.0, **more)

    usual, poll = Vring.serve, queue._poll
    waits, served = Event(), Event()
    stranger.negotiate()
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    assert ring.wait_call()
    monkeypatch.setattr(Vring, "serve", serve_late)
    monkeypatch.setattr(queue, "_poll", wait)
    with pytest.raises(NoAnswer, match="call"):
        ring.exchange(b"ab", 2)


def test_an_answer_that_trickles_has_one_deadline() -> None:
    """Each byte alone would come in time."""
    ours, theirs = socket.socketpair()
    over = Event()

    def trickle() -> None:
        theirs.send(HEADER.pack(R.GET_FEATURES, 5, 4000))
        with suppress(BrokenPipeError):
            while not over.wait(0.01):
                theirs.send(b"\0")

    with theirs, FrontEnd(Stream(ours), timeout=0.1) as front_end:
        thread = Thread(target=trickle)
        thread.start()
        with pytest.raises(NoAnswer):
            front_end.settle()
        over.set()
        thread.join()
