"""What failed once can be used again, or says again that it cannot: readers, states, holds."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.cases import for_each
from tests.device_kit import open_fds
from tests.migration_device import Adder, get_state, read_all, read_data, save, set_state, write_data
from userdev.errors import ProtocolError, UserError
from userdev.relay.outlet import Outlet
from userdev.trace import Note, TraceReader, TraceWriter
from userdev.transport import BadFrame, Framer, Stream
from userdev_servers.blk import Blk
from userdev_servers.block.images import open_images
from userdev_servers.gpio import Gpio
from userdev_servers.net import Net
from userdev_servers.nvme import Nvme
from userdev_servers.rng import Rng
from vfio_user.device import PciDevice, PciExpress, PciIds, Quiesce, ResetKind
from vfio_user.device.standstill import Standstill
from vfio_user.interposer.trace.files import NAME, PROTOCOL
from vfio_user.migration import Migration
from vfio_user.testing import attached, find_capability, write_register
from vfio_user.wire import HEADER, Message
from vfio_user.wire.constants import MigrationState, RegionIndex

# Readers


def test_a_trace_that_is_damaged_is_not_read_on_behind_that(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    writer = TraceWriter(path, NAME, {})
    sizes = []
    for text in ("one", "two", "three"):
        writer.note(text)
        writer.flush()
        sizes.append(writer.size)
    writer.close()
    data = bytearray(path.read_bytes())
    data[sizes[0] + 24 : sizes[1]] = b"\xff" * (sizes[1] - sizes[0] - 24)  # the text of the second, behind its prefix
    reader = TraceReader(io.BytesIO(data), "trace", PROTOCOL)
    assert [entry.event for entry in reader if isinstance(entry, Note)] == ["one"]
    assert reader.truncated
    assert list(reader) == []


def test_a_stream_that_cannot_be_framed_says_so_each_time() -> None:
    framer: Framer[Message] = Framer(Message, max_message=4096)
    framer.feed(HEADER.pack(1, 1, 1 << 20, 0, 0) + bytes(100))
    for _ in range(2):
        with pytest.raises(BadFrame) as told:
            framer.next()
        assert told.value.fatal


class Disk:
    """Storage that cannot be read at times."""

    name = "disk"
    size = 1 << 16

    def __init__(self) -> None:
        self.fails: Exception | None = None

    def begin_saving(self) -> None:
        pass

    def next_data(self, offset: int) -> int:
        return offset

    def read(self, offset: int, size: int) -> bytes:
        if self.fails is not None:
            raise self.fails
        return b"\1" * size

    def take_written(self) -> list[tuple[int, int]]:
        return []

    def end(self) -> None:
        pass


class Kept(Adder):
    """A device with such a disk."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()

    def storages(self) -> Any:
        return [self.disk]


STATE_FAILURES: Mapping[str, Exception] = {
    "of the disk": OSError(errno.EIO, "the disk is broken"),
    "of the protocol": ProtocolError("cannot", errno.ENODATA),
    "of the author": RuntimeError("a defect"),
}


@for_each(STATE_FAILURES)
def test_a_state_that_cannot_be_read_is_not_at_its_end(failure: str) -> None:
    """An end without the last frame would be told where it is loaded, if at all. The next attempt is a new one."""
    device = Kept()
    migration = Migration(device)
    device.disk.fails = STATE_FAILURES[failure]
    set_state(migration, MigrationState.PRE_COPY)
    for _ in range(3):
        with pytest.raises((ProtocolError, RuntimeError)):
            read_all(migration)
    device.disk.fails = None
    with pytest.raises((ProtocolError, RuntimeError)):
        read_data(migration)
    set_state(migration, MigrationState.RUNNING)
    set_state(migration, MigrationState.PRE_COPY)
    assert b"\1" * 1000 in b"".join(iter(lambda: read_data(migration), b""))
    assert get_state(migration) is MigrationState.PRE_COPY


def test_a_state_that_was_refused_can_be_loaded_after_a_reset() -> None:
    source, target = Adder(), Adder()
    source.values["total"] = 7
    state = save(source)
    migration = Migration(target)
    target.fails["load"] = RuntimeError("not today")
    with pytest.raises((ProtocolError, RuntimeError)):
        take(migration, state)
    target.fails.clear()
    assert target.values["total"] == 0
    migration.was_reset()
    assert get_state(migration) is MigrationState.RUNNING
    take(migration, state)
    assert target.values["total"] == 7


def test_a_device_that_takes_its_own_state_back_finds_its_memory_as_it_was() -> None:
    """As it finds that of the state which it refuses then."""

    class Looks(Adder):
        def load_state(self, state: Mapping[str, Any]) -> None:
            seen.append((state["total"], self.ram[0]))
            if len(seen) == 1:
                raise RuntimeError("not today")
            super().load_state(state)

    seen: list[tuple[int, int]] = []
    source, target = Adder(), Looks()
    source.values["total"], source.ram[0] = 7, 77
    target.values["total"], target.ram[0] = 5, 55
    with pytest.raises(ProtocolError):
        take(Migration(target), save(source))
    assert seen == [(7, 77), (5, 55)]
    assert target.ram[0] == 55


@for_each(["a reset", "another client"])
def test_a_device_that_comes_out_of_error_runs_and_is_told_so(way: str) -> None:
    """It was stopped for a state that was refused, and would stand still for ever."""
    device = Adder()
    migration = Migration(device)
    set_state(migration, MigrationState.RESUMING)
    with pytest.raises(ProtocolError):
        set_state(migration, MigrationState.RUNNING)
    assert get_state(migration) is MigrationState.ERROR
    assert device.actions == ["stop"]
    if way == "a reset":
        migration.was_reset()
    else:
        migration.detach()
        migration.attach()
    assert get_state(migration) is MigrationState.RUNNING
    assert device.actions == ["stop", "start"]
    assert device.entered[-1] is MigrationState.RUNNING
    migration.was_reset()
    assert device.actions == ["stop", "start"], "there was nothing to come out of"


def take(migration: Migration, state: bytes) -> None:
    set_state(migration, MigrationState.RESUMING)
    write_data(migration, state)
    set_state(migration, MigrationState.RUNNING)


# Peers


def test_what_waits_for_a_peer_that_goes_is_dropped_with_its_descriptors_and_told_of() -> None:
    """Whoever waits for room in the outlet has waited enough."""
    before = open_fds()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outlet, told = Outlet(Stream(ours)), list[str]()
    reader, writer = os.pipe()
    outlet.send(bytes(1 << 22), [])
    outlet.send(b"behind it", [reader])
    outlet.when_taken(lambda: told.append("taken"))
    seen = [outlet.waiting]
    theirs.close()
    outlet.flush()
    seen.append(outlet.waiting)
    outlet.send(b"more", [writer])
    assert (outlet.broken, [*seen, outlet.waiting], told) == (True, [True, False, False], ["taken"])
    for fd in (reader, writer):
        os.close(fd)
    ours.close()
    assert open_fds() == before


# Holds


class Asked:
    """A device that is asked to stand still, and answers as the test says."""

    def __init__(self) -> None:
        self.answers: list[Quiesce | Exception | None] = []
        self.said: list[str] = []
        self.standstill = Standstill("device", self._ask, lambda: self.said.append("go on"), lambda work: work())

    def _ask(self) -> Quiesce | None:
        self.said.append("asked")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_an_answer_that_was_waited_for_no_longer_is_none_to_the_next_question() -> None:
    """Its client has gone, another has come, and the device is asked again before it has answered the first."""
    device = Asked()
    first, second = Quiesce(), Quiesce()
    device.answers = [first, second]
    gone = device.standstill.hold()
    device.standstill.give_up()
    assert gone.settled
    gone.release()
    waits = device.standstill.hold()
    settled: list[bool] = []
    for answer in (first, second):
        answer.done()
        settled.append(waits.settled)
    assert settled == [False, True], "the first is the answer to another question"
    waits.release()
    assert device.said == ["asked", "go on", "asked", "go on"]


@for_each(["at once", "later"])
def test_a_guest_may_ask_again_for_a_reset_at_which_its_device_failed(when: str) -> None:
    answers = [Quiesce(), Quiesce()]
    said: list[str] = []

    class Clumsy(PciDevice):
        ids = PciIds(vendor=1, device=2)
        capabilities = (PciExpress(flr=True),)

        def on_quiesce(self) -> Quiesce | None:
            return answers[len(said)] if when == "later" else None

        def on_reset(self, kind: ResetKind) -> None:
            said.append(kind.value)
            if len(said) == 1:
                raise RuntimeError("a reset that fails")

    device = Clumsy()
    control = find_capability(device, PciExpress.id) + PciExpress.DEVICE_CONTROL
    with attached(device) as link:
        for answer in answers:
            with nullcontext() if said else pytest.raises(RuntimeError):
                write_register(device, RegionIndex.CONFIG, control, 2, PciExpress.INITIATE_FLR)
                answer.done()
                link.run_deferred()
    assert said[:2] == ["flr", "flr"]
    device.close()


@for_each([False, True], ids=["at once", "later"])
def test_a_device_that_has_refused_is_asked_anew_and_whoever_was_refused_is_told_once(late: bool) -> None:
    device = Asked()
    first = Quiesce()
    device.answers = [first if late else ProtocolError("no", errno.EBUSY), None]
    refused = device.standstill.hold()
    told: list[object] = []
    refused.then(lambda: told.append(refused.refusal))
    if late:
        first.fail(errno.EBUSY)
    assert len(told) == 1
    assert isinstance(told[0], ProtocolError)
    good = device.standstill.hold()
    assert (good.settled, good.refusal, len(told)) == (True, None, 1)
    assert refused.refusal is told[0]
    good.release()
    assert device.said == ["asked", "asked", "go on"], "who was refused holds nothing"
    refused.release()
    assert device.said == ["asked", "asked", "go on"]


# Devices that do not begin

NOWHERE = "/nowhere/control"
NOT_BEGUN: Mapping[str, Callable[[str], object]] = {
    "a disk of two images": lambda image: Blk(image=f"{image},memory:1M"),
    "a disk of no such size": lambda image: Blk(image=f"{image}:1000"),
    "a disk with a control socket nowhere": lambda image: Blk(image=image, control=NOWHERE),
    "a card with a control socket nowhere": lambda _: Net(control=NOWHERE),
    "a card of no such address": lambda image: Net(mac="none", control=f"{image}.control"),
    "a source of nothing": lambda image: Rng(source=Path(f"{image}.empty")),
    "a controller of one image too many": lambda image: Nvme(image=f"{image},/nowhere/image"),
    "a controller of an image twice": lambda image: Nvme(image=f"{image},{image}"),
    "a controller with a control socket nowhere": lambda image: Nvme(image=image, control=NOWHERE),
    "lines with a control socket nowhere": lambda _: Gpio(control=NOWHERE),
}


@for_each(NOT_BEGUN)
def test_a_device_that_cannot_begin_leaves_nothing_and_its_image_to_the_next(name: str) -> None:
    with TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        image.write_bytes(bytes(1 << 20))
        image.with_suffix(".empty").touch()
        before, threads = open_fds(), {*threading.enumerate()}
        with pytest.raises(UserError):
            NOT_BEGUN[name](str(image))
        assert open_fds() <= before, "what ends meanwhile is another test's"
        assert {*threading.enumerate()} <= threads
        (backing,) = open_images(str(image), 512)
        backing.close()
        assert sorted(path.name for path in Path(folder).iterdir()) == ["image", "image.empty"]
