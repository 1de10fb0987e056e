"""One device on its way between two real servers, with Python clients in QEMU's place: moved, and failing at each step.

The same steps with a guest, and what happens to it, are in avocado_tests/test_migration.py.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from userdev.errors import UserdevError, UserError
from vfio_user.client import Client
from vfio_user.harness.device import Device
from vfio_user.harness.interposition import Interposition
from vfio_user.harness.migration.coordinator import FAILURES
from vfio_user.harness.migration.guest_migration import choose_mode
from vfio_user.harness.migration.link import PAGE_SIZE, DeviceLink, SavedAgain, StateSpool
from vfio_user.harness.migration.report import Mode
from vfio_user.harness.scratch import Scratch
from vfio_user.harness.server import DeviceServer
from vfio_user.harness.site import Site
from vfio_user.migration.stream import digests_in

DMA_SOURCE, BAR0 = 0x80, 0
VALUE = 0x12345678


class Pair:
    """A device with a client on either side. The source's register has `VALUE`."""

    def __init__(self, stack: ExitStack, folder: Path, *, shares_memory: bool = True) -> None:
        self._stack, self._folder = stack, folder
        self._scratch = stack.enter_context(Scratch())
        self.clients: list[Client] = []
        self.source, self.destination = (self.another("edu", name) for name in ("here", "there"))
        for server in (self.source, self.destination):
            server.shares_memory = shares_memory
        self.link = DeviceLink("edu", 0, self.source, self.destination, patience=1.0)
        stack.callback(self.link.close)
        self.clients[0].store(BAR0, DMA_SOURCE, 8, VALUE)

    def another(self, device: str, name: str) -> DeviceServer:
        """A server more, with a client."""
        server = DeviceServer(
            Device.parse(device), Site(self._scratch, self._folder), name, interposition=Interposition()
        )
        self._stack.callback(server.stop)
        self.clients.append(self._stack.enter_context(Client.connect(str(server.path), timeout=30.0)))
        return server

    def value(self, side: int) -> int:
        return self.clients[side].load(BAR0, DMA_SOURCE, 8)

    def state(self, server: DeviceServer) -> str:
        return str(server.control.call("migration_state")["state"])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


STEPS: Mapping[str, Callable[[DeviceLink], object]] = MappingProxyType(
    {
        "await_state": DeviceLink.await_state,
        "prepare": DeviceLink.prepare,
        "pre_copy": DeviceLink.pre_copy,
        "confirm_source": DeviceLink.confirm_source,
        "stop": lambda link: link.stop().result(),
        "copy_rest": DeviceLink.copy_rest,
        "resend_dirty": lambda link: link.resend_dirty().result(),
        "load": lambda link: link.load().result(),
        "run": DeviceLink.run,
        "confirm": lambda link: link.confirm(link.destination, "RUNNING"),
    }
)


def kill_server(server: DeviceServer) -> None:
    server.kill()


def kill_interposer(server: DeviceServer) -> None:
    server.interposer.child.signal(signal.SIGKILL)
    server.interposer.child.wait(5)


FAILING = (
    # What happens to the destination, and before which step.
    ("await_state", kill_server),
    ("pre_copy", kill_interposer),
    ("copy_rest", kill_server),
    ("load", kill_interposer),
    ("run", kill_server),
    ("confirm", kill_server),
)


def move(link: DeviceLink, before: str = "", happens: Callable[[DeviceServer], None] | None = None) -> None:
    """Take every step; something may happen to the destination before one of them."""
    for name, step in STEPS.items():
        if name == before and happens is not None:
            happens(link.destination)
        step(link)


@pytest.mark.parametrize("shares_memory", [True, False], ids=["by descriptor", "in lines"])
def test_a_device_arrives_as_it_was(stack: ExitStack, tmp_path: Path, shares_memory: bool) -> None:
    pair = Pair(stack, tmp_path, shares_memory=shares_memory)
    move(pair.link)
    assert pair.value(1) == VALUE
    assert pair.state(pair.destination) == "RUNNING"


def test_whatever_fails_on_the_destination_the_source_goes_on(stack: ExitStack, tmp_path: Path) -> None:
    pair = Pair(stack, tmp_path)
    for before, happens in FAILING:
        destination = pair.another("edu", before)
        link = DeviceLink("edu", 0, pair.source, destination, patience=1.0)
        stack.callback(link.close)
        with pytest.raises(FAILURES):
            move(link, before, happens)
        link.return_to_source()
        assert pair.state(pair.source) == "RUNNING", before
        assert pair.value(0) == VALUE, before


def test_a_device_that_returned_can_be_migrated_again(stack: ExitStack, tmp_path: Path) -> None:
    pair = Pair(stack, tmp_path)
    for name in ("await_state", "prepare", "pre_copy", "confirm_source", "stop", "copy_rest"):
        STEPS[name](pair.link)
    pair.link.return_to_source()
    pair.clients[0].store(BAR0, DMA_SOURCE, 8, 0)
    pair.destination.control.call("migration_state", set="RUNNING")
    again = DeviceLink("edu", 0, pair.source, pair.destination)
    stack.callback(again.close)
    move(again)
    assert pair.value(1) == 0


def test_state_of_another_device_is_refused_and_the_source_goes_on(stack: ExitStack, tmp_path: Path) -> None:
    pair = Pair(stack, tmp_path)
    pair.link.destination = pair.another("edu --dma-mask 0xffff", "other")
    with pytest.raises(UserdevError):
        move(pair.link)
    pair.link.return_to_source()
    assert pair.value(0) == VALUE


def test_a_silent_server_is_given_up_in_time(stack: ExitStack, tmp_path: Path) -> None:
    pair = Pair(stack, tmp_path)
    pair.destination.child.pause()
    with pytest.raises(UserdevError, match=f"within {pair.link.patience:g} s"):
        pair.link.await_state()
    pair.destination.child.signal(signal.SIGCONT)


def test_a_device_that_left_pre_copy_by_itself_is_noticed(stack: ExitStack, tmp_path: Path) -> None:
    pair = Pair(stack, tmp_path)
    pair.link.await_state()
    pair.link.prepare()
    pair.source.control.call("migration_state", set="RUNNING")
    with pytest.raises(UserError, match="reset"):
        pair.link.confirm_source()


def test_a_client_that_migrates_its_devices_is_only_watched(stack: ExitStack, tmp_path: Path) -> None:
    pair = Pair(stack, tmp_path)
    assert choose_mode(Mode.AUTO, [pair.source]) is Mode.COORDINATED
    with pytest.raises(UserError):
        choose_mode(Mode.NATIVE, [pair.source])
    pair.clients[0].migration_support()
    assert choose_mode(Mode.AUTO, [pair.source]) is Mode.NATIVE
    assert choose_mode(Mode.NATIVE, [pair.source]) is Mode.NATIVE
    assert choose_mode(Mode.DIRECT, [pair.source]) is Mode.DIRECT


def test_what_qemu_moves_by_itself_is_left_to_it(stack: ExitStack, tmp_path: Path) -> None:
    """A vhost-user device, alone and beside one that is moved from here."""
    site = Site(stack.enter_context(Scratch()), tmp_path)
    rng = DeviceServer(Device.parse("vhost-user-rng"), site, "rng")
    stack.callback(rng.stop)
    assert choose_mode(Mode.AUTO, [rng]) is Mode.NATIVE
    assert choose_mode(Mode.AUTO, [rng, Pair(stack, tmp_path).source]) is Mode.COORDINATED
    assert choose_mode(Mode.AUTO, []) is Mode.COORDINATED


def test_state_that_was_handed_on_takes_no_memory() -> None:
    """It may be a disk's image; what comes later is found where it is."""
    spool = StateSpool()
    try:
        os.write(spool._write, b"early" * 100_000)
        assert len(os.read(spool._read, 500_000)) == 500_000
        held = os.fstat(spool._write).st_blocks
        spool.forget_handed_on()
        assert os.fstat(spool._write).st_blocks * 512 <= PAGE_SIZE < held * 512
        os.write(spool._write, b"late")
        assert os.read(spool._read, 100) == b"late"
        assert spool.size == 500_004
    finally:
        spool.close()


def test_two_states_that_differ_are_compared_by_the_names_of_their_parts(stack: ExitStack, tmp_path: Path) -> None:
    pair = Pair(stack, tmp_path)
    pair.clients[0].config_write(0x3C, b"\x05")
    here, there = (stack.enter_context(closing(SavedAgain(side, 1.0))) for side in (pair.source, pair.destination))
    assert here.digest() != there.digest()
    assert here.differences(there) == ["configuration space", "transfer"]


def test_a_state_of_somebody_elses_has_no_parts_to_name(stack: ExitStack) -> None:
    for content in (b"", b"\0" * 100, b"VFUSTATE\2\0\0\0" + b"\xff" * 50):
        assert digests_in(io.BytesIO(content)) == {}


def test_a_turn_takes_no_more_of_a_state_than_was_wanted_and_ends_where_there_is_no_more() -> None:
    mib = 1 << 20
    for has, limit, sizes in (
        (10 * mib, 5 * mib, [4 * mib, mib]),
        (10 * mib, None, [4 * mib] * 3),
        (mib, 5 * mib, [4 * mib]),
        (8 * mib, 8 * mib, [4 * mib, 4 * mib]),
        (0, 5 * mib, [4 * mib]),
    ):
        asked: list[int] = []
        left = [has]

        def call(command: str, *, size: int, raw: bool, asked: list[int] = asked, left: list[int] = left) -> Any:
            asked.append(size)
            taken = min(size, left[0])
            left[0] -= taken
            return {"raw": bytes(taken), "bytes": taken, "complete": not left[0]}

        server: Any = SimpleNamespace(shares_memory=False, control=SimpleNamespace(call=call))
        with closing(StateSpool()) as spool:
            assert spool.fill(server, limit) == spool.size == min(has, limit or has), (has, limit)
        assert asked == sizes, (has, limit)
