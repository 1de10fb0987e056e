"""What outlives what: acknowledged writes a SIGKILL, everything a migration, the server whatever a guest says."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.nvme_kit import ACQ, AQA, ASQ, BASE, CC, CSTS, ENABLE, PAGE, READY, Host, controller
from userdev.errors import ProtocolError
from userdev_servers.block.backing import WouldBlock
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.spec import Admin, Feature, Io
from vfio_user.client import Client, Disconnected, GuestMemory
from vfio_user.device import NoClient, function_of
from vfio_user.server import Server
from vfio_user.testing import RecordingLink as Link
from vfio_user.wire.constants import IrqIndex

FUA = 1 << 30


@contextmanager
def server_process(path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Host]]:
    """A controller in a process of its own, which may be killed."""
    address = path / "nvme.sock"
    arguments = ["--socket-path", str(address), "--image", f"{path / 'disk.img'}:4M"]
    process = subprocess.Popen([sys.executable, "-m", "vfio_user", "serve", "nvme", *arguments], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        assert b"listening" in process.stderr.readline()
        host = Host(Client.connect(f"unix:{address}"))
        try:
            yield process, host
        finally:
            host.close()
    finally:
        process.kill()
        process.communicate()


@for_each(["fua", "flush"], [20, 57, 130])
def test_after_a_kill_every_acknowledged_write_is_there(acknowledged_by: str, after: int, tmp_path: Path) -> None:
    """The server is killed while commands are under way; what it had acknowledged is in the image all the same."""
    acknowledged = 0
    with server_process(tmp_path) as (process, host):
        host.enable()
        queue = host.create_queues(entries=32)
        buffer = host.allocate(PAGE)
        killer = threading.Timer(after / 1000, process.send_signal, [signal.SIGKILL])
        killer.start()
        try:
            for number in range(1, 8192):
                host.write(buffer, pack("<Q", number).ljust(512, b"."))
                control = FUA if acknowledged_by == "fua" else 0
                host.transfer(Io.WRITE, number, buffer, 512, control=control)
                if acknowledged_by == "flush":
                    queue.do(Io.FLUSH, nsid=1)
                acknowledged = number
        except (Disconnected, ConnectionError, OSError):
            pass
        killer.join()
        assert process.wait(60) == -signal.SIGKILL
    content = (tmp_path / "disk.img").read_bytes()
    for number in range(1, acknowledged + 1):
        assert content[number * 512 :][:8] == pack("<Q", number)


def test_the_image_can_be_served_again_after_a_kill(tmp_path: Path) -> None:
    with server_process(tmp_path) as (process, host):
        host.enable()
        host.create_queues()
        assert host.write_blocks(5, b"kept" * 128, control=FUA).status == 0
        process.kill()
        process.wait()
    with controller(tmp_path) as (_, host):
        host.enable()
        host.create_queues()
        assert host.read_blocks(5, 512) == b"kept" * 128


@contextmanager
def second(path: Path, **options: object) -> Iterator[tuple[Nvme, Host]]:
    """The other host of a migration: the same image, a server of its own."""
    (path / "b").mkdir()
    with controller(path / "b", f"{path / 'disk.img'}") as (device, host):
        yield device, host


def move(source: Host, target: Host) -> None:
    """Migrate the controller, and let the guest's memory and driver follow."""
    state = source.client.save()
    target.client.load_state(state)
    source.goes_on_at(target)


def test_a_migrated_controller_goes_on_where_it_was(tmp_path: Path) -> None:
    with controller(tmp_path) as (device, source), second(tmp_path) as (other, target):
        source.enable()
        source.create_queues(1, entries=8)
        source.create_queues(2, entries=16, vector=2)
        for _ in range(5):
            assert source.write_blocks(64, b"before" * 256).status == 0
        source.admin.do(Admin.SET_FEATURES, cdw10=Feature.INTERRUPT_COALESCING, cdw11=0x1234)
        source.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=0xFF)
        request = source.admin.put(Admin.ASYNC_EVENT_REQUEST)
        source.admin.do(Admin.GET_FEATURES, cdw10=6)
        move(source, target)
        assert device.digest() == other.digest()
        assert target.read_blocks(64, 1536) == b"before" * 256
        assert target.write_blocks(128, b"after" * 1024).status == 0
        assert other.statistics.writes == device.statistics.writes + 1, "no command is carried out twice"
        assert target.queues[2].do(Io.FLUSH, nsid=1).status == 0
        assert target.admin.do(Admin.GET_FEATURES, cdw10=Feature.INTERRUPT_COALESCING).result == 0x1234
        target.admin.do(Admin.SET_FEATURES, cdw10=Feature.TEMPERATURE_THRESHOLD, cdw11=300)
        assert target.admin.wait(request).result & 7 == 1
        assert target.identify(1)[4:24] == device.serial.encode().ljust(20)
    content = (tmp_path / "disk.img").read_bytes()
    assert content[64 * 512 :][:1536] == b"before" * 256
    assert content[128 * 512 :][:5120] == b"after" * 1024


def test_commands_under_way_are_ended_before_a_controller_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with controller(tmp_path) as (device, source), second(tmp_path) as (_, target):
        source.enable()
        queue = source.create_queues()
        slow = threading.Event()
        sync = device.controller.namespaces[0].backing.sync
        monkeypatch.setattr(device.controller.namespaces[0].backing, "sync", lambda: (slow.wait(5), sync())[1])
        cids = [queue.put(Io.FLUSH, nsid=1) for _ in range(6)]
        threading.Timer(0.1, slow.set).start()
        move(source, target)
        moved = target.queues[1]
        moved.take()
        assert [moved.arrived[cid].status for cid in cids] == [0] * 6
        assert moved.do(Io.FLUSH, nsid=1).status == 0


class Posting(NoClient):
    """A session that has not come yet to what threads have posted."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []

    def call_soon(self, work: Callable[[], None]) -> None:
        self.posted.append(work)


def test_a_controller_stands_still_when_the_guest_has_been_told_of_its_commands(tmp_path: Path) -> None:
    """Not when their threads have ended: what is told after the state was saved is lost."""
    device = Nvme(image=f"{tmp_path / 'disk.img'}:1M")
    function_of(device).link = session = Posting()
    told: list[Exception | None] = []
    device.controller.background.submit(lambda: None, told.append)
    device.controller.background.wait()
    still = function_of(device).hold_still()
    assert not still.settled
    before: list[list[Exception | None]] = []
    still.then(lambda: before.append(list(told)))
    assert not before
    for work in session.posted:
        work()
    assert before == [[None]]
    device.close()


def test_commands_that_no_server_has_fetched_are_carried_out_by_the_next(tmp_path: Path) -> None:
    """A full completion queue keeps commands in the submission queue, and they move with the guest's memory."""
    with controller(tmp_path) as (_, source), second(tmp_path) as (_, target):
        source.enable()
        queue = source.create_queues(entries=16, cq_entries=4)
        cids = [queue.put(Io.FLUSH, ring=False, nsid=1) for _ in range(8)]
        queue.ring()
        source.client.wait_interrupt(source.vectors[1])
        move(source, target)
        assert [target.queues[1].wait(cid).status for cid in cids] == [0] * 8


def test_shadow_doorbells_and_namespaces_move_too(tmp_path: Path) -> None:
    with controller(tmp_path) as (_, source), second(tmp_path) as (_, target):
        source.enable()
        values, events = source.allocate(PAGE), source.allocate(PAGE)
        assert source.admin.do(Admin.DOORBELL_BUFFER_CONFIG, prp1=values, prp2=events).status == 0
        queue = source.create_queues(entries=8)
        assert source.admin.do(Admin.FORMAT_NVM, nsid=1, cdw10=1).status == 0
        move(source, target)
        moved = target.queues[1]
        cids = [moved.put(Io.FLUSH, ring=False, nsid=1) for _ in range(3)]
        target.write(values + 8, moved.tail.to_bytes(4, "little"))
        target.store(0x1008, 4, 1)
        assert [moved.wait(cid).status for cid in cids] == [0, 0, 0]
        assert target.identify(0, 1)[26] == 1
        assert queue.number == moved.number


def test_pages_that_a_read_filled_are_dirty(tmp_path: Path) -> None:
    with controller(tmp_path) as (_, host):
        host.enable()
        queue = host.create_queues()
        host.write_blocks(0, bytes(8192))
        at = host.allocate(8192)
        untouched = host.allocate(PAGE)
        host.client.start_logging(PAGE, [(BASE, host.memory.size)])
        assert host.transfer(Io.READ, 0, at, 8192).status == 0
        dirty = host.client.report_logging(BASE, host.memory.size, PAGE)
        pages = set(dirty.pages())
        assert {at, at + PAGE, queue.cq} <= pages
        assert not {untouched, queue.sq} & pages


def test_pages_that_a_read_fills_after_a_report_are_dirty_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with controller(tmp_path) as (device, host):
        host.enable()
        host.create_queues()
        at = host.allocate(8192)
        backing = device.controller.namespaces[0].backing
        reading, reported = threading.Event(), threading.Event()

        def not_in_the_cache(*_: object) -> None:
            raise WouldBlock

        def read_late(pieces: object, offset: int, read: Callable[..., None] = backing.read) -> None:
            reading.set()
            assert reported.wait(60)
            read(pieces, offset)

        monkeypatch.setattr(backing, "try_read", not_in_the_cache)
        monkeypatch.setattr(backing, "read", read_late)
        host.client.start_logging(PAGE, [(BASE, host.memory.size)])
        cid = host.queues[1].put(Io.READ, nsid=1, prp1=at, prp2=at + PAGE, cdw12=15)
        assert reading.wait(60)
        host.client.report_logging(BASE, host.memory.size, PAGE)
        reported.set()
        assert host.queues[1].wait(cid).status == 0
        assert {at, at + PAGE} <= set(host.client.report_logging(BASE, host.memory.size, PAGE).pages())


def test_saved_state_that_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    device = Nvme(image=f"{tmp_path / 'disk.img'}:1M")
    good = function_of(device).save_state()
    before = device.digest()
    bad_queues = [[[0]], []], [[], [[1, 0, 8, 5, 0, 0]]], [[[0, 0, 0, 0, 1, 0, 0, 1]], []]
    for name, value in (
        *(("saved_queues", value) for value in bad_queues),
        ("saved_namespaces", []),
        ("saved_namespaces", [[1, 1, 1 << 40, 9]]),
        ("saved_namespaces", [[1, 1, 8, 10]]),
        ("shadow_buffers", [4096]),
        ("shadow_buffers", [4096, "8192"]),
        ("serial", 7),
    ):
        with pytest.raises(ProtocolError):
            function_of(device).load_state({**good, "values": {**good["values"], name: value}})
        assert device.digest() == before
    function_of(device).load_state(good)
    device.close()


@for_each_row([(9, 3), (12, 2)])
def test_a_saved_namespace_is_as_large_as_its_image_at_most(shift: int, blocks: int, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(blocks << shift))
    device = Nvme(image=str(tmp_path / "disk.img"), block_size=1 << shift)
    good = function_of(device).save_state()
    for more in (1, 0):
        values = {**good["values"], "saved_namespaces": [[1, 1, blocks + more, shift]]}
        with pytest.raises(ProtocolError, match="cannot hold") if more else nullcontext():
            function_of(device).load_state({**good, "values": values})
    device.close()


@for_each(range(6))
def test_no_command_of_random_bytes_harms_the_server(seed: int, tmp_path: Path) -> None:
    """Whatever stands in the queues, each command is answered, and memory that was not given stays as it was."""
    chance = random.Random(seed)
    with controller(tmp_path) as (device, host):
        host.enable(entries=64)
        host.create_queues(entries=64)
        guard = bytes(chance.randbytes(PAGE))
        host.client.dma_unmap(BASE, host.memory.size)
        half = host.memory.size // 2
        host.client.dma_map(BASE, host.memory, size=half)
        host.write(BASE + half, guard)
        addresses = [0, BASE, BASE + 512, BASE + half - 512, BASE + half, 2**64 - 4096, chance.getrandbits(64)]
        for _ in range(300):
            fields = {name: chance.choice(addresses) for name in ("prp1", "prp2", "mptr")}
            fields |= {f"cdw{n}": chance.choice([0, 1, 7, 0xFFFF, chance.getrandbits(32)]) for n in range(10, 16)}
            fields |= {
                "flags": chance.choice([0, 0, 0x40, 0x80, 0xFF]),
                "nsid": chance.choice([0, 1, 1, 2, 0xFFFFFFFF]),
            }
            io = chance.random() < 0.6
            opcode = chance.choice([*Io, 0x7F]) if io else chance.choice([*SAFE_ADMIN, 0x7F])
            queue = host.queues[1 if io else 0]
            if fields["prp1"] in (BASE, BASE + 512) or fields["prp2"] in (BASE, BASE + 512):
                fields["prp1"] = fields["prp2"] = BASE + (1 << 20)  # not over the queues themselves
            queue.do(opcode, **fields)
        assert host.read(BASE + half, PAGE) == guard
        assert host.load(CSTS) & 3 == 1
        assert host.queues[1].do(Io.FLUSH, nsid=1).status == 0
        assert device.enabled


SAFE_ADMIN = [
    Admin.GET_LOG_PAGE,
    Admin.IDENTIFY,
    Admin.GET_FEATURES,
    Admin.FORMAT_NVM,
    Admin.ABORT,
    Admin.DELETE_SQ + 0x60,
]
"""Those that leave the queues as they are, and end."""


def test_a_server_ends_cleanly_with_commands_under_way(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'nvme.sock'}"
    device = Nvme(image=f"{tmp_path / 'disk.img'}:1M")
    with Server(device, address):
        host = Host(Client.connect(address))
        host.enable()
        queue = host.create_queues(entries=64)
        for _ in range(60):
            queue.put(Io.FLUSH, ring=False, nsid=1)
        queue.ring()
    host.close()
    device.close()


@for_each([{}, {"map_doorbells": "memfd", "shadow_doorbells": True}], ids=["shadow", "both"])
def test_an_end_of_the_client_leaves_shadow_doorbells_to_the_next(options: dict[str, Any], tmp_path: Path) -> None:
    """It maps its memory piece by piece: until the buffers come there is nothing to look at, and nothing is fatal."""
    with controller(tmp_path, **options) as (_, host), GuestMemory(1 << 20) as elsewhere:
        host.enable()
        values, events = host.allocate(PAGE), host.allocate(PAGE)
        assert host.admin.do(Admin.DOORBELL_BUFFER_CONFIG, prp1=values, prp2=events).status == 0
        queue = host.create_queues(entries=8)
        host.client.close()
        host.client = Client.connect(f"unix:{tmp_path / 'nvme.sock'}")
        assert host.load(CSTS) == READY
        host.client.dma_map(BASE + (1 << 30), elsewhere)
        assert host.load(CSTS) == READY
        host.client.dma_map(BASE, host.memory)
        host.client.enable_irqs(IrqIndex.MSIX, host.vectors)
        cids = [queue.put(Io.FLUSH, ring=False, nsid=1) for _ in range(3)]
        host.write(values + 8, queue.tail.to_bytes(4, "little"))
        host.store(0x1008, 4, queue.tail)
        assert [queue.wait(cid).status for cid in cids] == [0, 0, 0]
        assert host.load(CSTS) == READY


def test_work_that_went_with_a_client_does_not_keep_the_next_ones_from_being_begun(tmp_path: Path) -> None:
    """A doorbell was rung, and the client had gone before the work for it was done."""
    device = Nvme(image=f"{tmp_path / 'disk.img'}:1M")
    function_of(device).attach(Link())
    for offset, width, value in ((AQA, 4, 0x001F001F), (ASQ, 8, PAGE), (ACQ, 8, 2 * PAGE), (CC, 4, ENABLE)):
        function_of(device).region_write(0, offset, value.to_bytes(width, "little"))
    function_of(device).region_write(0, 0x1000, (1).to_bytes(4, "little"))
    function_of(device).detach()
    link = Link()
    function_of(device).attach(link)
    function_of(device).region_write(0, 0x1000, (2).to_bytes(4, "little"))
    assert link.deferred
    function_of(device).detach()
    device.close()
