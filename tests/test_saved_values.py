"""Saved values that the device cannot have, of every state of every device that ships.

Each value of a busy device is spoiled in every way that comes to mind; a device refuses to become that, or works.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any, NamedTuple

import pytest

from tests.cases import for_each_row
from tests.device_kit import CONFIG
from userdev.declare.declared import declarations
from userdev.declare.state import State
from userdev.errors import DeclarationError
from userdev_servers.edu import BUFFER, RUN, TO_RAM, Edu
from userdev_servers.gpio import ALL, Gpio
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.spec import Admin, EventType, Feature, LogPage
from vfio_user import Client as Vmm
from vfio_user import PciDevice, PciIds, ProtocolError, state
from vfio_user.client import RemoteError
from vfio_user.device import function_of
from vfio_user.server import Server
from vfio_user.testing import RecordingLink, read_register, write_register
from vfio_user.wire.constants import MigrationState

NUMBERS = (-1, 1, 2, 3, 5, 99, 1 << 8, 1 << 16, 1 << 32, 1 << 64, 1 << 200)
OTHERS: tuple[Any, ...] = (None, True, 0.5, float("nan"), "", "x", "é", b"", b"x", [], (), {}, [None], ["x"], {"x": 1})
JUNK = (*NUMBERS, *OTHERS)


def spoiled(value: Any, depth: int = 0) -> Iterator[Any]:
    """Values that are almost this one, or not at all."""
    yield from (junk for junk in JUNK if type(junk) is not type(value) or junk != value)
    match value:
        case int():
            yield from (value ^ 1 << bit for bit in range(32))
        case str() | bytes() if value:
            yield from (value[1:], value * 2)
        case list():
            yield from ([*value, junk] for junk in JUNK)
            yield from (value[:at] + value[at + 1 :] for at in range(len(value)))
            yield from (value + value[at : at + 1] * 5000 for at in range(len(value)))
            yield from ([*value[:at], bad, *value[at + 1 :]] for at, item in enumerate(value) for bad in spoiled(item))
        case dict():
            yield from (value | {key: 1} for key in (*NUMBERS, None, "x", b"x"))
            yield from (value | {key: junk} for key in value for junk in JUNK)


class Driver:
    """A driver of one controller without a socket: its admin queue, in the memory of the client."""

    SQ, CQ, DATA, IO_SQ, IO_CQ = 0x1000, 0x2000, 0x4000, 0x6000, 0x7000
    ENTRIES = 32

    def __init__(self, device: Nvme) -> None:
        self.device = device
        self.link = RecordingLink(memory=bytearray(0x10000))
        function_of(device).attach(self.link)
        device.dma.map(0, len(self.link.memory), 3)
        self.tail = self.head = self.cid = 0
        self.phase = 1

    def enable(self) -> None:
        self.tail = self.head = 0
        self.phase = 1
        self.link.memory[self.SQ : self.DATA] = bytes(self.DATA - self.SQ)
        write_register(self.device, CONFIG, 4, 2, 0x0006)
        for offset, width, value in (
            (0x14, 4, 0),
            (0x24, 4, (self.ENTRIES - 1) * 0x10001),
            (0x28, 8, self.SQ),
            (0x30, 8, self.CQ),
            (0x14, 4, 0x00460001),
        ):
            write_register(self.device, 0, offset, width, value)
            self.link.run_deferred()
        assert read_register(self.device, 0, 0x1C, 4) & 3 == 1

    def put(self, opcode: int, **fields: int) -> None:
        words = [fields.get(f"cdw{number}", 0) for number in range(10, 16)]
        self.cid += 1
        entry = pack(
            "<BBHIQQQQ6I",
            *(opcode, 0, self.cid, fields.get("nsid", 0), 0, 0, fields.get("prp1", self.DATA), 0),
            *words,
        )
        self.link.memory[self.SQ + 64 * self.tail : self.SQ + 64 * self.tail + 64] = entry
        self.tail = (self.tail + 1) % self.ENTRIES
        write_register(self.device, 0, 0x1000, 4, self.tail)
        for _ in range(100):
            if not self.link.deferred:
                break
            self.link.run_deferred()

    def do(self, opcode: int, **fields: int) -> int:
        """The status of a command."""
        self.put(opcode, **fields)
        while True:
            cid, status = unpack_from("<HH", self.link.memory, self.CQ + 16 * self.head + 12)
            assert status & 1 == self.phase, f"command {opcode:#x} is not answered"
            self.head = (self.head + 1) % self.ENTRIES
            self.phase ^= not self.head
            write_register(self.device, 0, 0x1004, 4, self.head)
            self.link.run_deferred()
            if cid == self.cid:
                return int(status >> 1)


def busy_edu(path: Path) -> Edu:
    device = Edu()
    for offset, value in ((0x04, 5), (0x20, 0x80), (0x08, 6), (0x28, 2), (0x80, BUFFER), (0x88, 0x100), (0x90, 4)):
        write_register(device, 0, offset, 4, value)
    return device


def use_edu(device: Edu, *, goes_on: bool) -> None:
    """All registers answer, and both DMA and the factorial are done."""
    link = RecordingLink()
    function_of(device).attach(link)
    device.dma.map(0, len(link.memory), 3)
    link.run_deferred()
    for offset in (0x00, 0x04, 0x08, 0x20, 0x24, 0x28, 0x80, 0x88, 0x90, 0x98):
        read_register(device, 0, offset, 4)
    write_register(device, CONFIG, 4, 2, 0x0004)
    for offset, value in ((0x20, 0x80), (0x08, 5), (0x80, BUFFER), (0x88, 0x100), (0x90, 4), (0x98, RUN | TO_RAM)):
        write_register(device, 0, offset, 4, value)
    device.buffer[:4] = b"abcd"
    link.run_deferred()
    assert read_register(device, 0, 0x08, 4) == 120
    assert read_register(device, 0, 0x98, 4) & RUN == 0
    assert link.memory[0x100:0x104] == b"abcd"


def busy_gpio(path: Path) -> Gpio:
    device = Gpio(inputs=0x55AA)
    read_register(device, 2, 2, 1)
    write_register(device, 2, 0, 1, 0x81)
    device.set_inputs(1)
    return device


def use_gpio(device: Gpio, *, goes_on: bool) -> None:
    """All ports answer and can be driven, and a changed input interrupts."""
    function_of(device).attach(RecordingLink())
    assert all(read_register(device, 2, offset, 1) <= 0xFF for offset in range(8))
    write_register(device, 2, 0, 1, 0x12)
    write_register(device, 2, 4, 1, 0x34)
    assert device.outputs == 0x3412
    read_register(device, 2, 2, 1)
    device.set_inputs(device.inputs ^ ALL)
    assert read_register(device, 2, 6, 1)
    write_register(device, 2, 1, 1, 0xFF)
    assert not read_register(device, 2, 6, 1)


def busy_nvme(path: Path) -> Nvme:
    """Something of everything: an I/O queue, features, failed commands, events that wait and requests for events."""
    device = new_nvme(path)
    driver = Driver(device)
    driver.enable()
    assert driver.do(Admin.CREATE_CQ, prp1=driver.IO_CQ, cdw10=0xF0001, cdw11=3) == 0
    assert driver.do(Admin.CREATE_SQ, prp1=driver.IO_SQ, cdw10=0xF0001, cdw11=0x10001) == 0
    for feature, value in (
        (Feature.TEMPERATURE_THRESHOLD, 0x160),
        (Feature.INTERRUPT_VECTOR_CONFIG, 1),
        (Feature.ASYNC_EVENT_CONFIG, 0x1FF),
        (Feature.TIMESTAMP, 0),
        (Feature.VOLATILE_WRITE_CACHE, 1),
    ):
        assert driver.do(Admin.SET_FEATURES, cdw10=feature, cdw11=value) == 0
    assert driver.do(0xFF) != 0
    driver.put(Admin.ASYNC_EVENT_REQUEST)
    device.controller.namespace_changed(device.controller.namespaces[0])
    device.controller.namespace_changed(device.controller.namespaces[0])
    driver.put(Admin.ASYNC_EVENT_REQUEST)
    assert (device.events, device.event_types_sent) == ([[EventType.NOTICE, 0, LogPage.CHANGED_NAMESPACES]], [2])
    assert device.event_requests
    device.driver = driver  # type: ignore[attr-defined]  # where its driver has got to
    return device


def new_nvme(path: Path) -> Nvme:
    return Nvme(image=f"{path / 'disk.img'}:1M", queues=2)


def use_nvme(device: Nvme, *, goes_on: bool) -> None:
    """Log pages, features, Identify and a bad command: for the driver that goes on, and for one that begins anew."""
    driver = Driver(device)
    for is_new in [False, True] if goes_on else [True]:
        if is_new:
            driver.enable()
        else:
            driver.tail, driver.head, driver.phase = device.saved_queues[1][0][5], *device.saved_queues[0][0][6:]
        for page in (LogPage.ERRORS, LogPage.SMART, LogPage.FIRMWARE, LogPage.CHANGED_NAMESPACES):
            assert driver.do(Admin.GET_LOG_PAGE, nsid=0xFFFFFFFF, cdw10=127 << 16 | page) == 0
        for feature in Feature:
            assert driver.do(Admin.GET_FEATURES, cdw10=feature) == 0
        for cns, nsid in ((0, 1), (1, 0), (2, 0)):
            assert driver.do(Admin.IDENTIFY, nsid=nsid, cdw10=cns) == 0
        assert driver.do(0xFF) & 0x7FF == 1
        device.controller.namespace_changed(device.controller.namespaces[0])
        driver.put(Admin.ASYNC_EVENT_REQUEST)
        assert driver.do(Admin.GET_LOG_PAGE, nsid=0xFFFFFFFF, cdw10=127 << 16 | LogPage.ERRORS) == 0


class Shipped(NamedTuple):
    busy: Callable[[Path], Any]
    new: Callable[[Path], Any]
    use: Callable[..., None]
    """Raises unless the device works as specified."""


SHIPPED = {
    Edu: Shipped(busy_edu, lambda path: Edu(), use_edu),
    Gpio: Shipped(busy_gpio, lambda path: Gpio(), use_gpio),
    Nvme: Shipped(busy_nvme, new_nvme, use_nvme),
}
OF_THE_QUEUES = {"saved_queues", "status", "configuration", "shadow_buffers", "admin_sizes", "admin_sq", "admin_cq"}
"""Where their driver goes on with them they are another's."""
EVERY = [(kind, value.name) for kind in SHIPPED for value in declarations(kind, State)]


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind.__name__}.{name}" for kind, name in EVERY])
def test_a_saved_value_is_refused_or_the_device_works(
    kind: type[PciDevice], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = SHIPPED[kind]
    source = shipped.busy(tmp_path)
    good = function_of(source).save_state()
    source.close()
    target = shipped.new(tmp_path)
    before, refused = target.digest(), 0
    for bad in spoiled(good["values"][name]):
        refusal = None
        try:
            function_of(target).load_state({**good, "values": {**good["values"], name: bad}})
        except ProtocolError as error:
            refusal = error
        if refusal is not None:
            assert (refusal.errno, name in str(refusal)) == (errno.EINVAL, True)
            refused += 1
            continue
        caplog.clear()
        try:
            function_of(target).check_savable()
            shipped.use(target, goes_on=name not in OF_THE_QUEUES)
        except Exception as error:
            raise AssertionError(f"{name} became {bad!r:.200}") from error
        assert not [each for each in caplog.records if each.exc_info or each.levelno >= logging.ERROR], repr(bad)
        target.close()
        target = shipped.new(tmp_path)
    assert refused, "nothing was refused"
    assert target.digest() == before, "refusing has changed something"
    function_of(target).load_state(good)
    target.close()


def test_a_stream_with_such_a_value_is_refused_and_the_client_is_served_on(tmp_path: Path) -> None:
    lying = Edu()
    function = function_of(lying)
    told = function.save_state

    def lie() -> dict[str, Any]:
        saved = told()
        saved["values"]["transfer"] = []
        return saved

    function.save_state = lie  # type: ignore[method-assign]
    with Server(lying, str(tmp_path / "source")), Vmm.connect(str(tmp_path / "source")) as client:
        stream = client.save()
    edu = Edu()
    with Server(edu, str(tmp_path / "target")), Vmm.connect(str(tmp_path / "target")) as client:
        with pytest.raises(RemoteError) as refused:
            client.load_state(stream)
        assert refused.value.errno == errno.EINVAL
        client.reset()
        client.store(0, 0x04, 4, 5)
        assert client.load(0, 0x04, 4) == 0xFFFFFFFA


class Dial(PciDevice):
    """Points to one of so many places, and hears of it when it has to stand still."""

    ids = PciIds(1, 2)
    at: int = state(0, check=lambda dial, value: value < dial.places)
    way: list[int] = state([], bits=8)

    def __init__(self) -> None:
        super().__init__()
        self.places = 4
        self.asked = 0

    def on_quiesce(self) -> None:
        self.asked += 1


@for_each_row([("at", 4), ("way", [1, 256])])
def test_who_has_come_to_a_value_that_it_cannot_have_says_so_before_it_is_stopped(
    name: str, value: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dial = Dial()
    with Server(dial, str(tmp_path / "socket")), Vmm.connect(str(tmp_path / "socket")) as client:
        setattr(dial, name, value)
        caplog.set_level(logging.DEBUG)
        for wanted in (MigrationState.PRE_COPY, MigrationState.STOP_COPY):
            with pytest.raises(RemoteError) as refused:
                client.set_migration_state(wanted)
            assert refused.value.errno == errno.EIO
        assert client.migration_state() is MigrationState.RUNNING
        assert dial.asked == 0
    assert f"Dial cannot be saved: {name}" in caplog.text


def test_a_default_that_the_device_cannot_have_is_refused_with_its_name() -> None:
    with pytest.raises(DeclarationError, match=r"Wide\.total has a default"):

        class Wide(PciDevice):
            total: int = state(256, bits=8)
