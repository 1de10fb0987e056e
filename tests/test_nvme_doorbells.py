"""Doorbells in a page that the guest has mapped: seen without a message, and by whichever server has the page next."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.cases import for_each
from tests.nvme_kit import ACQ, AQA, ASQ, CC, CSTS, ENABLE, PAGE, READY, Host, controller
from userdev.errors import UserError
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.doorbell_page import DoorbellPage
from userdev_servers.nvme.doorbells import LOOKS, Doorbells
from userdev_servers.nvme.model import MAX_QUEUES
from userdev_servers.nvme.queues import CompletionQueue, Shadow, SubmissionQueue
from userdev_servers.nvme.spec import Admin, Io
from vfio_user.client import Client, EventFd
from vfio_user.device import function_of
from vfio_user.server import Server
from vfio_user.testing import RecordingLink as Link
from vfio_user.wire.constants import IrqIndex, RegionFlags

FATAL = 2


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Host]:
    with controller(tmp_path, map_doorbells="memfd") as (_, host):
        host.enable()
        host.map_doorbells()
        yield host


def test_commands_are_done_without_a_message(mapped: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped.client, "region_write", None)
    queue = mapped.create_queues(entries=8)
    for turn in range(20):
        assert mapped.write_blocks(8 * turn, b"%04d" % turn * 1024).status == 0
    cids = [queue.put(Io.FLUSH, ring=False, nsid=1) for _ in range(7)]
    queue.ring()
    assert [queue.wait(cid).status for cid in cids] == [0] * 7
    assert [mapped.read_blocks(8 * turn, 512) for turn in range(20)] == [b"%04d" % turn * 128 for turn in range(20)]


def test_the_doorbells_of_every_queue_that_there_can_be_are_looked_at(tmp_path: Path) -> None:
    """Those of the last are at the end of the page."""
    with controller(tmp_path, map_doorbells="memfd", queues=MAX_QUEUES, vectors=MAX_QUEUES + 1) as (_, host):
        host.enable()
        host.map_doorbells()
        for number in (1, 2, MAX_QUEUES // 2, MAX_QUEUES):
            queue = host.create_queues(number, vector=number)
            assert queue.do(Io.FLUSH, nsid=1).status == 0
            assert queue.do(Io.FLUSH, nsid=1).status == 0


def test_nothing_can_be_mapped_unless_it_is_asked_for(tmp_path: Path) -> None:
    with controller(tmp_path) as (_, host):
        assert not host.client.region_info(0).flags & RegionFlags.MMAP
    with controller(tmp_path, map_doorbells="memfd") as (_, host):
        assert host.client.region_info(0).mappable == ((0x1000, 0x1000),)


def test_a_page_that_a_client_maps_can_never_be_another_size() -> None:
    page = DoorbellPage("memfd", 4, 2 * PAGE)
    for size in (PAGE, 3 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(page.fd, size)
    assert fcntl.fcntl(page.fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    page.close()


def test_a_page_in_a_file_that_its_client_makes_smaller_ends_no_server(tmp_path: Path) -> None:
    """Nobody can seal it; what the client has lost is its own affair."""
    page = DoorbellPage(str(tmp_path / "page"), 4, 2 * PAGE)
    os.ftruncate(page.fd, 0)
    page.store(0, 7)
    assert page.rung[0] == 7
    page.clear()
    assert list(page.rung) == [0] * 4
    page.close()


def test_a_client_that_does_not_map_rings_by_messages(tmp_path: Path) -> None:
    with controller(tmp_path, map_doorbells="memfd") as (_, host):
        host.enable()
        queue = host.create_queues(entries=16)
        assert [queue.do(Io.FLUSH, nsid=1).status for _ in range(21)] == [0] * 21
        host.map_doorbells()
        assert host.doorbells is not None
        assert [host.rung(pair.number) for pair in (host.admin, queue)] == [
            (pair.tail, pair.head) for pair in (host.admin, queue)
        ]
        assert queue.do(Io.FLUSH, nsid=1).status == 0
        host.doorbells.close()
        host.doorbells = None  # as QEMU stops using its mapping for a while after INTx
        assert queue.do(Io.FLUSH, nsid=1).status == 0


def test_a_full_completion_queue_goes_on_when_the_guest_has_made_room(mapped: Host) -> None:
    queue = mapped.create_queues(entries=16, cq_entries=4)
    for _ in range(10):
        queue.put(Io.FLUSH, ring=False, nsid=1)
    queue.ring()
    for expected in (3, 3, 3, 1):
        found = 0
        while found < expected:
            mapped.client.wait_interrupt(mapped.vectors[1])
            found += len(queue.take(acknowledge=False))
        assert found == expected
        queue.acknowledge()


# How often is looked


class Watched:
    """A controller that is enabled, with its client's clock in hand."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch, **options: object) -> None:
        self.now = 0.0
        patch.setattr("userdev_servers.nvme.doorbells.monotonic", lambda: self.now)
        self.device = Nvme(image=f"{path / 'disk.img'}:1M", map_doorbells="memfd", **options)  # type: ignore[arg-type]
        self.link = Link()
        function_of(self.device).attach(self.link)

    def enable(self) -> None:
        for offset, width, value in ((AQA, 4, 0x001F001F), (ASQ, 8, PAGE), (ACQ, 8, 2 * PAGE), (CC, 4, ENABLE)):
            function_of(self.device).region_write(0, offset, value.to_bytes(width, "little"))

    def next(self) -> float:
        """Do what is planned next; the pause before it."""
        [(pause, look)] = self.link.planned
        self.link.planned.clear()
        self.now += pause
        look()
        self.link.run_deferred()
        return pause


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    watched = Watched(tmp_path, monkeypatch, doorbell_interval=6)
    yield watched
    watched.device.close()


def test_an_idle_guest_is_looked_at_less_and_less_often(watched: Watched) -> None:
    watched.enable()
    assert [watched.next() for _ in range(LOOKS)] == [0] * LOOKS
    pauses = []
    while watched.now < 0.5:
        before = watched.now
        pauses.append(watched.next())
        assert pauses[-1] == min(max(0.001, before / 8), 0.006)
    assert pauses[:8] == [0.001] * 8
    assert pauses[-60:] == [0.006] * 60


def test_a_guest_that_rings_is_looked_at_often_again(watched: Watched) -> None:
    watched.enable()
    while not watched.next():
        pass
    assert watched.device.doorbells is not None
    watched.device.doorbells.page.rung[1] = 1  # the admin completion queue's
    watched.next()
    assert watched.device.controller.queues.completion[0].head == 1
    assert [watched.next() for _ in range(LOOKS)] == [0] * LOOKS


def test_a_guest_whose_command_has_ended_is_looked_at_at_once(watched: Watched) -> None:
    """A disk takes longer than the first pause; the next command need not wait for the look that was planned."""
    watched.enable()
    while not watched.next():
        pass
    [(_, late)] = watched.link.planned
    watched.link.planned.clear()
    watched.device.controller.background.submit(lambda: None, lambda outcome: None)
    watched.device.controller.drain()
    watched.link.run_deferred()
    assert watched.next() == 0
    late()
    assert len(watched.link.planned) == 1


def test_a_controller_that_is_not_enabled_is_not_looked_at(watched: Watched) -> None:
    assert not watched.link.planned
    watched.enable()
    function_of(watched.device).region_write(0, CC, bytes(4))
    watched.next()
    assert not watched.link.planned
    watched.enable()
    watched.next()
    assert len(watched.link.planned) == 1


def test_a_controller_that_stands_still_is_not_looked_at(watched: Watched) -> None:
    watched.enable()
    still = function_of(watched.device).hold_still()
    assert still.settled
    watched.next()
    assert not watched.link.planned
    still.release()
    assert len(watched.link.planned) == 1


@pytest.mark.parametrize(
    ("number", "shadow", "taken"), [(0, False, True), (0, True, True), (1, False, True), (1, True, False)]
)
def test_what_is_rung_before_a_stop_is_taken_over_but_where_the_guest_rings_elsewhere(
    watched: Watched, number: int, shadow: bool, taken: bool
) -> None:
    """Shadow doorbells are no matter of the administrator's queues."""
    watched.enable()
    queues, doorbells = watched.device.controller.queues, watched.device.doorbells
    assert doorbells is not None
    completion = queues.completion[number] = CompletionQueue(number, 2 * PAGE, 8, 0, interrupts=False)
    submission = queues.submission[number] = SubmissionQueue(number, PAGE, 8, completion)
    completion.shadow = submission.shadow = Shadow(4 * PAGE, 5 * PAGE) if shadow else None
    for rung, found in (((3, 2), (3, 2)), ((8, 8), (3, 2)), ((7, 7), (7, 7))):  # of queues of 8 entries
        doorbells.page.rung[2 * number], doorbells.page.rung[2 * number + 1] = rung
        doorbells.settle()
        assert (submission.tail, completion.head) == (found if taken else (0, 0))


# What is in the page, and should not be


def test_a_doorbell_that_lies_is_told_once(mapped: Host) -> None:
    queue = mapped.create_queues(entries=8)
    first = mapped.admin.put(Admin.ASYNC_EVENT_REQUEST)
    mapped.ring(2, 8)  # beyond the end of the queue
    event = mapped.admin.wait(first)
    assert (event.result & 7, event.result >> 8 & 0xFF) == (0, 1)
    mapped.log_page(1, 64)  # from here on it would be told again
    second = mapped.admin.put(Admin.ASYNC_EVENT_REQUEST)
    for _ in range(20):
        mapped.identify(1)
    assert second not in mapped.admin.arrived
    mapped.ring(2 * 5, 1)  # a queue that there is not
    assert mapped.admin.wait(second).result >> 8 & 0xFF == 0
    assert queue.do(Io.FLUSH, nsid=1).status == 0


def test_what_was_rung_for_a_queue_before_it_was_there_is_forgotten(mapped: Host) -> None:
    host = mapped
    for _ in range(2):
        queue = host.create_queues(entries=8)
        assert host.rung(1) == (0, 0)
        cids = [queue.put(Io.FLUSH, ring=False, nsid=1) for _ in range(3)]
        queue.ring()  # what was rung before, as it happens
        assert [queue.wait(cid).status for cid in cids] == [0] * 3
        assert [queue.do(Io.FLUSH, nsid=1).status for _ in range(5)] == [0] * 5
        assert host.admin.do(Admin.DELETE_SQ, cdw10=1).status == 0
        assert host.admin.do(Admin.DELETE_CQ, cdw10=1).status == 0
        host.ring(2, 3)
        host.ring(3, 2)


def test_a_reset_forgets_what_was_rung(mapped: Host) -> None:
    for reset in (mapped.disable, mapped.client.reset):
        queue = mapped.create_queues(entries=8)
        assert [queue.do(Io.FLUSH, nsid=1).status for _ in range(5)] == [0] * 5
        reset()
        assert mapped.doorbells is not None
        assert mapped.doorbells[:] == bytes(PAGE)
        mapped.enable()
        assert mapped.admin.do(Admin.IDENTIFY, prp1=mapped.allocate(PAGE), cdw10=1).status == 0


# With other ways to ring, and to be told


@for_each([True, False])
def test_shadow_doorbells_beside_a_mapped_page(rings: bool, tmp_path: Path) -> None:
    """Also where the register would have what it had already, after a turn of the queue, so that nothing changes."""
    with controller(tmp_path, map_doorbells="memfd", shadow_doorbells=True) as (_, host):
        host.enable()
        host.map_doorbells()
        values, wanted = host.allocate(PAGE), host.allocate(PAGE)
        assert host.admin.do(Admin.DOORBELL_BUFFER_CONFIG, prp1=values, prp2=wanted).status == 0
        queue = host.create_queues(entries=8, cq_entries=4)
        for _ in range(9):
            cids = [queue.put(Io.FLUSH, ring=False, nsid=1) for _ in range(5)]
            host.write(values + 8, queue.tail.to_bytes(4, "little"))
            if rings:
                queue.ring()
            while not queue.arrived.keys() >= set(cids):
                host.client.wait_interrupt(host.vectors[1])
                queue.take(acknowledge=rings)
                host.write(values + 12, queue.head.to_bytes(4, "little"))
            assert [queue.arrived.pop(cid).status for cid in cids] == [0] * 5


def test_the_line_falls_when_the_guest_has_taken_its_completions(tmp_path: Path) -> None:
    with controller(tmp_path, map_doorbells="memfd", msix=False, vectors=0) as (device, host), EventFd() as line:
        host.vectors.append(line)
        host.client.enable_irqs(IrqIndex.INTX, [line])
        host.enable()
        host.map_doorbells()
        for _ in range(3):
            cid = host.admin.put(Admin.IDENTIFY, prp1=host.allocate(PAGE), cdw10=1)
            host.client.wait_interrupt(line)
            assert [done.cid for done in host.admin.take()] == [cid]
            host.until(lambda: device.controller.queues.completion[0].head == host.admin.head and bool(host.load(CSTS)))
            host.client.unmask_irqs(IrqIndex.INTX)
            assert line.take() == 0


# Servers that follow


def look_no_more(device: Nvme, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest is quicker than any look from now on."""
    monkeypatch.setattr(device.doorbells, "_take", lambda: False)
    host.load(CSTS)  # answered when no look is under way


def put(host: Host, count: int = 5) -> list[int]:
    cids = [host.queues[1].put(Io.FLUSH, ring=False, nsid=1) for _ in range(count)]
    host.queues[1].ring()
    return cids


def test_with_the_state_of_another_page_no_doorbell_of_this_one_is_taken_for_rung() -> None:
    """One of a queue that the state has not got would be told to the guest as a bad one."""
    page = DoorbellPage("memfd", 8, 2 * PAGE)
    admin, cq = CompletionQueue(0, 0, 16), CompletionQueue(1, 0x1000, 16)
    sq = SubmissionQueue(1, 0x2000, 16, cq)
    sq.tail, cq.head = 5, 3
    queues: Any = SimpleNamespace(
        completion={0: admin, 1: cq}, submission={0: SubmissionQueue(0, 0x3000, 16, admin), 1: sq}
    )
    controller_of: Any = SimpleNamespace(queues=queues, state=SimpleNamespace(enabled=True))
    doorbells = Doorbells(page, controller_of, cast(Any, None), lambda *_: None, 0.01)
    saved = [[cq.save()], [sq.save()]]
    page.sign(saved)
    for theirs in (True, False):
        page.rung[2], page.rung[6] = 9, 4
        doorbells.load(saved if theirs else [[admin.save()], []])
        assert list(page.seen[2:4]) == [5, 3]
        assert (page.rung[2], page.rung[6]) == ((9, 4) if theirs else (5, 0)), theirs
        assert theirs or list(page.seen) == list(page.rung)
    page.close()


def test_what_is_rung_when_a_controller_is_about_to_move_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    with (
        controller(tmp_path, map_doorbells="memfd") as (device, source),
        controller(tmp_path / "b", str(tmp_path / "disk.img"), map_doorbells=str(tmp_path / "page")) as (other, target),
    ):
        source.enable()
        source.map_doorbells()
        source.create_queues(entries=8)
        assert source.queues[1].do(Io.FLUSH, nsid=1).status == 0
        look_no_more(device, source, monkeypatch)
        cids = put(source)
        state = source.client.save()
        assert device.digest() == device.digest()
        target.map_doorbells()
        target.client.load_state(state)
        assert target.rung(1) == (source.queues[1].tail, source.queues[1].head)
        assert device.digest() == other.digest()
        source.goes_on_at(target)
        assert [target.queues[1].wait(cid).status for cid in cids] == [0] * 5
        assert [target.queues[1].do(Io.FLUSH, nsid=1).status for _ in range(9)] == [0] * 9


@contextmanager
def replaced(path: Path) -> Iterator[Host]:
    """A guest with a queue, five commands of which it has rung when its server's state was saved; the server is gone.

    The state is in `path`.
    """
    device = Nvme(image=f"{path / 'disk.img'}:4M", map_doorbells=str(path / "page"))
    with Server(device, f"unix:{path / 'old.sock'}"):
        host = Host(Client.connect(f"unix:{path / 'old.sock'}"))
        host.enable()
        host.map_doorbells()
        host.create_queues(entries=8)
        assert [host.queues[1].do(Io.FLUSH, nsid=1).status for _ in range(6)] == [0] * 6
        (path / "state").write_bytes(host.client.save())
        put(host)
    device.close()
    try:
        yield host
    finally:
        host.close()


def test_a_server_that_replaces_another_finds_what_the_guest_rang_meanwhile(tmp_path: Path) -> None:
    with (
        replaced(tmp_path) as source,
        controller(tmp_path, map_doorbells=str(tmp_path / "page")) as (_, target),
    ):
        target.client.load_state((tmp_path / "state").read_bytes())
        target.doorbells, source.doorbells = source.doorbells, None
        cids = list(range(7, 12))
        assert target.rung(1) == (source.queues[1].tail, source.queues[1].head)
        source.goes_on_at(target)
        assert [target.queues[1].wait(cid).status for cid in cids] == [0] * 5
        assert [target.queues[1].do(Io.FLUSH, nsid=1).status for _ in range(9)] == [0] * 9


def test_a_page_of_former_times_says_nothing_to_a_controller_that_comes_from_elsewhere(tmp_path: Path) -> None:
    """There and back again: the first server's file has what was rung before the guest went."""
    (tmp_path / "b").mkdir()
    image = f"{tmp_path / 'disk.img'}"
    with replaced(tmp_path) as guest, controller(tmp_path / "b", image, map_doorbells="memfd") as (_, away):
        away.client.load_state((tmp_path / "state").read_bytes())
        guest.goes_on_at(away)
        queue = away.queues[1]
        queue.ring()
        assert [queue.wait(cid).status for cid in range(7, 12)] == [0] * 5
        assert [queue.do(Io.FLUSH, nsid=1).status for _ in range(4)] == [0] * 4
        with controller(tmp_path, map_doorbells=str(tmp_path / "page")) as (device, back):
            back.client.load_state(away.client.save())
            away.goes_on_at(back)
            back.map_doorbells()
            before = device.controller.queues.submission[1].tail
            assert [back.queues[1].do(Io.FLUSH, nsid=1).status for _ in range(4)] == [0] * 4
            assert before == queue.tail


def test_a_server_that_follows_one_that_was_killed_has_the_guest_reset_it(tmp_path: Path) -> None:
    with replaced(tmp_path), controller(tmp_path, map_doorbells=str(tmp_path / "page")) as (_, host):
        assert host.load(CSTS) == FATAL
        host.map_doorbells()
        host.enable()
        assert host.load(CSTS) == READY
        assert host.doorbells is not None
        assert host.doorbells[:] == bytes(PAGE)
        assert host.create_queues(entries=8).do(Io.FLUSH, nsid=1).status == 0


def test_a_client_that_resets_what_it_finds_finds_nothing(tmp_path: Path) -> None:
    with replaced(tmp_path), controller(tmp_path, map_doorbells=str(tmp_path / "page")) as (_, host):
        host.client.reset()
        assert host.load(CSTS) == 0


def test_a_file_has_the_doorbells_of_one_controller(tmp_path: Path) -> None:
    page = tmp_path / "page"
    with controller(tmp_path, map_doorbells=str(page)), pytest.raises(UserError, match="another server"):
        Nvme(image=f"{tmp_path / 'disk.img'}", map_doorbells=str(page))
    Nvme(image=f"{tmp_path / 'disk.img'}", map_doorbells=str(page)).close()


@for_each([b"x" * PAGE, None])
def test_a_file_that_cannot_have_doorbells_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is None:
        (tmp_path / "page").mkdir()
    else:
        (tmp_path / "page").write_bytes(content)
    with pytest.raises(UserError, match="page"):
        Nvme(image=f"{tmp_path / 'disk.img'}:1M", map_doorbells=str(tmp_path / "page"))
