"""A device's state goes from one back-end to another through the front-end's pipe, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, cast
from zlib import crc32

import pytest

from tests.cases import for_each
from tests.vhost_frontend import PROTOCOL, FrontEnd, P, R
from userdev.declare.values import encode
from userdev.errors import ProtocolError
from vhost_user.backend import Server, back_end, misses, transfer
from vhost_user.device import Chain, Queues, VhostDevice, config_field, model_of, queue, saved, state
from vhost_user.frontend import BackEndError, Refused
from vhost_user.memory import IotlbMiss, Permission
from vhost_user.wire import NO_FD
from vhost_user.wire.payloads import DeviceStateTransfer

SAVE, LOAD = 0, 1


class Keeper(VhostDevice):
    """Keeps what it was given."""

    virtio_id = 42
    queues = Queues(1, size=64)
    count: int = state(0, bits=16)
    kept: bytes = state(b"")
    mode: int = config_field(1, 1, writable=True)

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.fails_at = ""

    @queue(0)
    def keep(self, chain: Chain) -> int:
        self.count += 1
        self.kept += chain.read()
        return 0

    def on_save(self) -> None:
        self._event("save")

    def on_check(self, values: Mapping[str, Any]) -> None:
        self._event("check")
        if values["count"] > 1000:
            raise ProtocolError("too much")

    def on_load(self) -> None:
        self._event("load")

    def on_reset(self) -> None:
        self._event("reset")

    def _event(self, name: str) -> None:
        self.events.append(name)
        if self.fails_at == name:
            raise RuntimeError("on purpose")


@pytest.fixture
def device() -> Keeper:
    return Keeper()


@pytest.fixture
def migrating(stranger: FrontEnd) -> FrontEnd:
    stranger.negotiate(protocol=PROTOCOL | P.DEVICE_STATE)
    assert stranger.has(P.DEVICE_STATE)
    stranger.share_memory()
    return stranger


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(the end to read from, the end to write to); a test may close either, whose number is another's by the end."""
    ends = os.pipe2(os.O_CLOEXEC)
    pipe = os.fstat(ends[0])
    yield ends
    for fd in ends:
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), pipe):
                os.close(fd)


def begin(front_end: FrontEnd, direction: int, fd: int, phase: int = 0) -> int:
    said: int = front_end.ask(R.SET_DEVICE_STATE_FD, DeviceStateTransfer(direction, phase), [fd])
    return said


def check(front_end: FrontEnd) -> int:
    error: int = front_end.ask(R.CHECK_DEVICE_STATE)
    return error


@pytest.mark.parametrize("size", [3, 1 << 20], ids=["short", "longer than a pipe"])
def test_a_state_is_what_the_other_device_had(migrating: FrontEnd, device: Keeper, tmp_path: Path, size: int) -> None:
    device.count, device.kept, device.mode = 7, bytes(range(256)) * (size // 256) + b"end", 0
    state = migrating.save_state()
    assert device.events == ["save"]
    other = Keeper()
    with Server(other, f"unix:{tmp_path}/o") as server, FrontEnd(str(server.listener.address)) as destination:
        destination.negotiate(protocol=PROTOCOL | P.DEVICE_STATE)
        destination.load_state(state)
        assert other.events == ["check", "load"]
        assert (other.count, other.kept, other.mode) == (device.count, device.kept, device.mode)
        destination.share_memory()
        queue = destination.queue()
        queue.start()
        queue.exchange(b"more")
        assert other.kept == device.kept + b"more"


class Now:
    """A watcher whose descriptors are always worth a try."""

    def watch(self, *_: Any, **__: Any) -> None: ...
    def unwatch(self, _: int) -> None: ...
    def call_soon(self, work: Any) -> None: ...
    def wait_for(self, *_: Any, **__: Any) -> bool:
        return True


def test_a_state_goes_whole_however_little_a_pipe_takes_or_gives_at_a_time() -> None:
    state = bytes(number * 7 & 0xFF for number in range(3 * (1 << 16) + 1234))
    for step in (1000, 4096, 5001):
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 13)
        saving, came = transfer.Saving(writer, Now(), state), bytearray()
        while saving.outcome is None:
            saving._go_on()
            came += os.read(reader, step)
        while piece := os.read(reader, step):
            came += piece
        os.close(reader)
        assert bytes(came) == state, step
        loaded: list[bytes] = []
        reader, writer = os.pipe()
        loading, left = transfer.Loading(reader, Now(), loaded.append, len(state)), memoryview(state)
        while left:
            left = left[os.write(writer, left[:step]) :]
            loading._go_on()
        os.close(writer)
        assert (loading.finish(), loaded) == (0, [state]), step


@for_each(("saves", "loads"))
def test_a_transfer_has_its_time_anew_with_every_byte(way: str) -> None:
    """A state of many bytes may come through a thin wire, as long as it comes."""
    now, device = [0.0], Keeper()
    device.kept = bytes(1 << 16)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "monotonic", lambda: now[0])
        served = back_end.BackEnd(model_of(device), Now(), lambda _: False)
        served.save_to(writer) if way == "saves" else served.load_from(reader)
        under_way = served._transfer
        assert under_way is not None
        for _ in range(5):
            now[0] += 0.9 * transfer.TRANSFER_SECONDS
            served.expire(now[0])
            assert under_way.outcome is None
            if way == "loads":
                os.write(writer, b"x")
            under_way._go_on()
            if way == "saves":
                os.read(reader, 4096)
            assert served.deadline == now[0] + transfer.TRANSFER_SECONDS
        now[0] += 0.5 * transfer.TRANSFER_SECONDS
        if way == "saves":
            under_way._go_on()
            now[0] += 0.5 * transfer.TRANSFER_SECONDS
        under_way._go_on()  # it cannot, and no byte is no progress
        now[0] += 0.5 * transfer.TRANSFER_SECONDS
        served.expire(now[0])
        assert served.check_transfer() == errno.ETIMEDOUT
        served.close()
    os.close(reader if way == "saves" else writer)


def test_a_transfer_that_has_ended_is_not_given_up_when_its_time_is_over(device: Keeper) -> None:
    """Its descriptor is another's by then."""
    served = back_end.BackEnd(model_of(device), Now(), lambda _: False)
    reader, writer = os.pipe()
    served.save_to(writer)
    assert served.check_transfer() == 0
    again = os.open(os.devnull, os.O_RDONLY)
    served.expire(monotonic() + 2 * transfer.TRANSFER_SECONDS)
    assert served.check_transfer() == 0
    os.fstat(again)
    os.close(again)
    os.close(reader)
    served.close()


def test_whatever_ends_a_transfer_under_way_closes_its_descriptor(device: Keeper) -> None:
    """The other end sees that nobody is there any more."""
    other_reader, other_writer = os.pipe()
    ends: dict[str, Callable[[back_end.BackEnd], None]] = {
        "the end of the session": lambda served: served.close(),
        "another owner": lambda served: served.begin_anew(),
        "a reset": lambda served: served.reset(device_too=False),
        "another transfer": lambda served: served.load_from(os.dup(other_reader)),
    }
    for name, end in ends.items():
        served = back_end.BackEnd(model_of(device), Now(), lambda _: False)
        reader, writer = os.pipe()
        served.load_from(reader)
        end(served)
        with pytest.raises(BrokenPipeError):
            os.write(writer, name.encode())
        os.close(writer)
        served.close()
    os.close(other_reader)
    os.close(other_writer)


def test_what_is_given_up_first_is_waited_for_until_then(device: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A translation or a state: a ring may be started while one goes on."""
    ring = cast(Any, object())
    for begun_missing, begun_moving in ((10.0, 15.0), (15.0, 10.0)):
        served = back_end.BackEnd(model_of(device), Now(), lambda _: False)
        monkeypatch.setattr(misses, "monotonic", lambda begun=begun_missing: begun)
        monkeypatch.setattr(transfer, "monotonic", lambda begun=begun_moving: begun)
        reader, writer = os.pipe()
        served.load_from(reader)
        assert served.deadline == begun_moving + transfer.TRANSFER_SECONDS
        served.vrings.misses.wait(ring, IotlbMiss(0, Permission.READ))
        assert served.deadline == min(begun_missing + misses.MISS_SECONDS, begun_moving + transfer.TRANSFER_SECONDS)
        served.drop_transfer()
        assert served.deadline == begun_missing + misses.MISS_SECONDS
        os.close(writer)
        served.close()


IDENTITY = {"device": "Keeper", "virtio_id": 42}
VALUES = {"count": 5, "kept": b"x", "mode": 1}
RIGHT = saved.to_bytes(IDENTITY, VALUES)


def packed(payload: bytes) -> bytes:
    """A payload with a right head."""
    return saved._HEAD.pack(saved.MAGIC, saved.VERSION, crc32(payload)) + payload


WRONG = {
    "nothing": b"",
    "a part of the head": RIGHT[:7],
    "cut off": RIGHT[:-1],
    "goes on": RIGHT + b"\0",
    "a byte is wrong": RIGHT.replace(b"x", b"y"),
    "no state of ours": b"NOTASTATE" + RIGHT[9:],
    "another version": RIGHT[:8] + b"\7" + RIGHT[9:],
    "of another class": saved.to_bytes({"device": "Disk", "virtio_id": 42}, VALUES),
    "of another type": saved.to_bytes({"device": "Keeper", "virtio_id": 2}, VALUES),
    "a value is missing": saved.to_bytes(IDENTITY, {"count": 5, "kept": b""}),
    "a value is unknown": saved.to_bytes(IDENTITY, {**VALUES, "more": 1}),
    "a value of another type": saved.to_bytes(IDENTITY, {**VALUES, "kept": 3}),
    "a value that is too large": saved.to_bytes(IDENTITY, {**VALUES, "count": 1 << 16}),
    "a value that the author refuses": saved.to_bytes(IDENTITY, {**VALUES, "count": 1001}),
    "no values": packed(encode({**IDENTITY})),
    "a number": packed(encode(4711)),
    "no encoding": packed(b"\xff\xff\xff"),
    "names that are none": packed(encode({**IDENTITY, "values": {1: 2}})),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_state_is_refused_whole(migrating: FrontEnd, device: Keeper, wrong: bytes) -> None:
    device.count, device.kept = 3, b"mine"
    with pytest.raises(Refused):
        migrating.load_state(wrong)
    assert (device.count, device.kept, device.mode) == (3, b"mine", 1)
    assert "load" not in device.events
    migrating.load_state(RIGHT)
    assert (device.count, device.kept) == (5, b"x")


@pytest.mark.parametrize("fails_at", ["check", "load"])
def test_a_device_that_fails_at_a_state_has_its_former_one(
    migrating: FrontEnd, device: Keeper, fails_at: str, caplog: pytest.LogCaptureFixture
) -> None:
    device.count, device.fails_at = 3, fails_at
    with pytest.raises(Refused) as refused:
        migrating.load_state(RIGHT)
    assert refused.value.errno == errno.EIO
    assert (device.count, device.kept) == (3, b"")
    assert "on purpose" in caplog.text


def test_what_a_device_makes_of_its_state_is_of_its_former_one_where_it_fails_at_another() -> None:
    """As vfio-user's devices have it: what `on_load` had begun to make is not left half done."""

    class Doubles(VhostDevice):
        virtio_id, queues = 42, Queues(1)
        count: int = state(3)

        def __init__(self) -> None:
            super().__init__()
            self.doubled = 6

        @queue(0)
        def nothing(self, chain: Chain) -> int:
            return 0

        def on_load(self) -> None:
            self.doubled = 2 * self.count
            if self.count > 100:
                raise RuntimeError("on purpose")

    source, device = Doubles(), Doubles()
    source.count = 1000
    with pytest.raises(ProtocolError):
        model_of(device).load(model_of(source).save())
    assert (device.count, device.doubled) == (3, 6)


def test_a_device_that_cannot_be_saved_refuses(migrating: FrontEnd, device: Keeper) -> None:
    for fails_at, count in (("save", 0), ("", -1)):
        device.fails_at, device.count = fails_at, count
        with pytest.raises(BackEndError):
            migrating.save_state()
        with pytest.raises(ProtocolError) as refused:
            model_of(device).save()
        assert refused.value.errno == errno.EIO, fails_at
    device.count = 1
    assert migrating.save_state()


def test_a_state_without_an_end_is_refused_where_it_is_too_long(
    migrating: FrontEnd, device: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(back_end, "MAX_STATE", 1 << 17)
    with pytest.raises(BackEndError):
        migrating.load_state(bytes(1 << 20))
    assert device.events == []
    assert check(migrating) == errno.EFBIG


@pytest.mark.parametrize(("more", "error"), [(0, 0), (-1, errno.EFBIG)])
def test_a_state_may_have_all_the_bytes_that_are_taken_and_none_more(
    migrating: FrontEnd,
    device: Keeper,
    pipe: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    more: int,
    error: int,
) -> None:
    monkeypatch.setattr(back_end, "MAX_STATE", len(RIGHT) + more)
    reader, writer = pipe
    assert begin(migrating, LOAD, reader) == NO_FD
    os.write(writer, RIGHT)
    os.close(writer)
    assert check(migrating) == error
    assert device.count == (0 if error else 5)


def test_messages_are_served_while_a_state_is_on_its_way(
    migrating: FrontEnd, device: Keeper, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    assert begin(migrating, LOAD, reader) == NO_FD
    os.write(writer, RIGHT[:10])
    migrating.settle()
    os.write(writer, RIGHT[10:])
    migrating.settle()
    assert device.count == 0  # nothing is believed before its end
    os.close(writer)
    assert check(migrating) == 0
    assert device.count == 5
    assert check(migrating) == 0


def test_a_socket_does_as_well(migrating: FrontEnd, device: Keeper) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert begin(migrating, LOAD, theirs.fileno()) == NO_FD
        ours.sendall(RIGHT)
        ours.shutdown(socket.SHUT_WR)
        assert check(migrating) == 0
    assert device.count == 5


def test_a_front_end_that_does_not_end_its_state_has_a_bound(
    migrating: FrontEnd, device: Keeper, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "CHECK_SECONDS", 0.05)
    migrating.timeout = 3
    reader, writer = pipe
    begin(migrating, LOAD, reader)
    os.write(writer, RIGHT)
    assert check(migrating) == errno.ETIMEDOUT
    assert device.events == []


def test_a_front_end_that_does_not_read_a_state_has_a_bound(
    migrating: FrontEnd, device: Keeper, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TRANSFER_SECONDS", 0.05)
    device.kept = bytes(1 << 20)
    reader, writer = pipe
    begin(migrating, SAVE, writer)
    os.close(writer)
    given_up = select.poll()
    given_up.register(reader, 0)
    assert given_up.poll(5000)
    assert check(migrating) == errno.ETIMEDOUT


def test_a_front_end_that_goes_away_with_a_state_under_way_is_survived(
    server: Server, migrating: FrontEnd, device: Keeper, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "CHECK_SECONDS", 3600.0)  # it is its going that ends it
    reader, writer = pipe
    begin(migrating, LOAD, reader)
    os.close(reader)
    os.write(writer, RIGHT[:10])
    migrating.send(R.CHECK_DEVICE_STATE)
    migrating.close()
    with FrontEnd(str(server.listener.address)) as other:
        other.negotiate()
        with pytest.raises(BrokenPipeError):  # whoever writes sees that nobody reads
            os.write(writer, RIGHT[10:])
    assert device.events == []


def test_a_state_is_for_rings_that_stand_still(migrating: FrontEnd, device: Keeper, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    queue = migrating.queue()
    queue.start()
    assert begin(migrating, SAVE, writer) & 0xFF
    assert begin(migrating, LOAD, reader) & 0xFF
    queue.stop()
    assert begin(migrating, LOAD, reader) == NO_FD
    queue.start()
    os.write(writer, RIGHT)
    os.close(writer)
    assert check(migrating) == errno.EBUSY
    assert device.events == []


def test_what_is_no_way_for_a_state_is_refused(migrating: FrontEnd, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert begin(migrating, SAVE, reader) & 0xFF
    assert begin(migrating, LOAD, writer) & 0xFF
    assert begin(migrating, LOAD, migrating.memory.fd) & 0xFF
    assert begin(migrating, LOAD, migrating.stream.fileno()) & 0xFF
    assert begin(migrating, 2, reader) & 0xFF
    assert begin(migrating, LOAD, reader, phase=1) & 0xFF
    assert check(migrating) == errno.EINVAL


def test_a_reset_forgets_a_state_under_way(migrating: FrontEnd, device: Keeper, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    begin(migrating, LOAD, reader)
    migrating.do(R.RESET_DEVICE)
    os.write(writer, RIGHT)
    os.close(writer)
    assert check(migrating) == errno.EINVAL
    assert device.events == ["reset"]
