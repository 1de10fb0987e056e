"""What a guest asks for while something slow is under way: that ends once, and the controller is whole behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from struct import pack, unpack_from
from typing import NamedTuple

import pytest

from tests.nvme_kit import CC, CSTS, ENABLE, PAGE, READY, Host, QueuePair, controller
from userdev.control import ControlClient
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.spec import Admin, Feature, Io, Status
from vfio_user.wire import Command

FATAL = 2
MOMENT = 0.1
"""Seconds in which something would happen that must not."""
SHUTDOWN = 1 << 14


class Slow(NamedTuple):
    """A controller of three disks, of which whatever waits for the disk waits for `go_on`."""

    device: Nvme
    host: Host
    go_on: threading.Event
    begun: threading.Semaphore


class Completing(NamedTuple):
    """A command that is under way."""

    queue: QueuePair
    cid: int


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    images = ",".join(f"{tmp_path}/{name}.img:1M" for name in "abc")
    with controller(tmp_path, image=images, control=str(tmp_path / "control")) as (device, host):
        host.enable()
        host.create_queues()
        host.create_queues(2, vector=2)
        go_on, begun = threading.Event(), threading.Semaphore(0)

        def held(work: Callable[..., None]) -> Callable[..., None]:
            def waits(*arguments: int) -> None:
                begun.release()
                assert go_on.wait(10)
                work(*arguments)

            return waits

        for namespace in device.controller.namespaces:
            for name in ("sync", "discard"):
                monkeypatch.setattr(namespace.backing, name, held(getattr(namespace.backing, name)))
        yield Slow(device, host, go_on, begun)
        go_on.set()


def test_no_more_is_begun_than_the_completion_queue_has_room_for_beside_what_is_under_way(slow: Slow) -> None:
    queue = slow.host.create_queues(3, entries=16, cq_entries=4)
    first = [queue.put(Io.FLUSH, nsid=1) for _ in range(2)]
    for _ in first:
        assert slow.begun.acquire(timeout=10)
    more = [queue.put(Io.FLUSH, ring=False, nsid=1) for _ in range(5)]
    queue.ring()
    assert slow.begun.acquire(timeout=10)
    slow.host.identify(1)  # behind the doorbell
    assert not slow.begun.acquire(timeout=MOMENT)
    slow.go_on.set()
    assert [queue.wait(cid).status for cid in [*first, *more]] == [0] * 7


def delete_queues(host: Host) -> None:
    """The queue of what is under way, and then its completion queue: not before that has ended."""
    assert host.admin.do(Admin.DELETE_CQ, cdw10=1).status == Status.INVALID_QUEUE_DELETION
    host.admin.put(Admin.DELETE_SQ, ring=False, cdw10=1)
    host.admin.put(Admin.DELETE_CQ, cdw10=1)


def move(host: Host, nsid: int, action: int) -> None:
    page = host.allocate(PAGE)
    host.write(page, pack("<HH", 1, 0))
    host.admin.put(Admin.NAMESPACE_ATTACHMENT, nsid=nsid, cdw10=action, prp1=page)


def create(host: Host, blocks: int = 1024) -> int:
    page = host.allocate(PAGE)
    host.write(page, pack("<QQ10xB", blocks, blocks, 0))
    return host.admin.put(Admin.NAMESPACE_MANAGEMENT, ring=False, cdw10=0, prp1=page)


def deallocate(host: Host) -> int:
    """All of the first 8 blocks of namespace 1, by Dataset Management."""
    page = host.allocate(PAGE)
    host.write(page, pack("<IIQ", 0, 8, 0))
    return host.queues[1].put(Io.DATASET_MANAGEMENT, nsid=1, prp1=page, cdw11=1 << 2)


def in_queue(opcode: int, **fields: int) -> Callable[[Host], object]:
    return lambda host: host.admin.put(opcode, ring=True, cid=None, **fields)


def with_page(opcode: int, **fields: int) -> Callable[[Host], object]:
    return lambda host: host.admin.put(opcode, ring=True, cid=None, prp1=host.allocate(PAGE), **fields)


ASKED: Mapping[str, Callable[[Host], object]] = {
    "identify": with_page(Admin.IDENTIFY, cdw10=1),
    "a log": with_page(Admin.GET_LOG_PAGE, cdw10=127 << 16 | 2, nsid=0xFFFFFFFF),
    "a feature": in_queue(Admin.SET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE, cdw11=0),
    "an event": in_queue(Admin.ASYNC_EVENT_REQUEST),
    "abort": in_queue(Admin.ABORT, cdw10=1 << 16 | 1),
    "an opcode that there is not": in_queue(0x7F),
    "its queues deleted": delete_queues,
    "another queue deleted": in_queue(Admin.DELETE_SQ, cdw10=2),
    "its namespace detached": lambda host: move(host, 1, 1),
    "its namespace deleted": in_queue(Admin.NAMESPACE_MANAGEMENT, nsid=1, cdw10=1),
    "its namespace formatted": in_queue(Admin.FORMAT_NVM, nsid=1, cdw10=1 << 9),
    "all formatted": in_queue(Admin.FORMAT_NVM, nsid=0xFFFFFFFF, cdw10=1 << 9),
    "another flush": lambda host: host.queues[2].put(Io.FLUSH, nsid=1),
    "all flushed": lambda host: host.queues[2].put(Io.FLUSH, nsid=0xFFFFFFFF),
    "disabled": lambda host: host.store(CC, 4, 0),
    "shut down": lambda host: host.store(CC, 4, 0x00460001 | SHUTDOWN),
    "reset by its client": lambda host: host.client.submit(Command.DEVICE_RESET),
}
ENDED_WITH_IT = ("its queues deleted", "disabled", "reset by its client")
"""By the time that its completion would be looked for, there may be no queue for that any more."""


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_while_a_flush_is_under_way_leaves_all_whole(slow: Slow, asked: str) -> None:
    host, queue = slow.host, slow.host.queues[1]
    flush = queue.put(Io.FLUSH, nsid=1)
    assert slow.begun.acquire(timeout=10)
    ASKED[asked](host)
    slow.go_on.set()
    if asked not in ENDED_WITH_IT:
        assert queue.wait(flush).status == 0
        assert queue.take(acknowledge=False) == [], "it ended once"
    assert not host.load(CSTS) & FATAL
    assert len(queue.take(acknowledge=False)) <= 1
    host.disable()
    host.enable()
    assert host.create_queues().do(Io.FLUSH, nsid=3).status == 0
    assert host.load(CSTS) & (READY | FATAL) == READY


@pytest.mark.parametrize("instead", [ENABLE, 0], ids=["withdrawn", "disabled"])
def test_a_shutdown_that_is_over_before_the_disk_has_all_is_never_complete(slow: Slow, instead: int) -> None:
    host = slow.host
    host.store(CC, 4, ENABLE | SHUTDOWN)
    assert slow.begun.acquire(timeout=10)
    host.store(CC, 4, instead)
    slow.go_on.set()
    host.disable()
    assert host.load(CSTS) == 0
    host.enable()
    assert host.load(CSTS) == READY


def test_a_queue_is_deleted_when_all_its_commands_have_ended(slow: Slow) -> None:
    """Whose completions are there by then: the guest gives the memory to somebody else."""
    host, queue = slow.host, slow.host.queues[1]
    flushes = [queue.put(Io.FLUSH, nsid=1), queue.put(Io.FLUSH, nsid=2)]
    assert slow.begun.acquire(timeout=10)
    deleting = host.admin.put(Admin.DELETE_SQ, cdw10=1)
    slow.go_on.set()
    assert host.admin.wait(deleting).status == 0
    assert sorted(end.cid for end in queue.take(acknowledge=False)) == flushes


def test_two_namespaces_that_are_made_at_once_are_two(slow: Slow) -> None:
    host = slow.host
    for nsid in (2, 3):
        assert host.admin.do(Admin.NAMESPACE_MANAGEMENT, nsid=nsid, cdw10=1).status == 0
    made = [create(host), create(host), create(host)]
    host.admin.ring()
    assert slow.begun.acquire(timeout=10)
    slow.go_on.set()
    ends = [host.admin.wait(each) for each in made]
    assert [(end.status, end.result) for end in ends[:2]] == [(0, 2), (0, 3)]
    assert ends[2].status == Status.NAMESPACE_ID_UNAVAILABLE
    assert unpack_from("<4I", host.identify(0x10)) == (1, 2, 3, 0)


def test_nothing_is_written_to_blocks_that_are_about_to_be_zeros(slow: Slow) -> None:
    """It would be acknowledged, and lost. What is for another namespace goes on."""
    host, device = slow.host, slow.device
    format_ = host.admin.put(Admin.FORMAT_NVM, nsid=1, cdw10=1 | 1 << 9)
    assert slow.begun.acquire(timeout=10)
    for done in (host.write_blocks(0, b"\xff" * 4096), host.queues[1].do(Io.FLUSH, nsid=1)):
        assert (done.status, done.do_not_retry) == (Status.FORMAT_IN_PROGRESS, False)
    assert host.write_blocks(0, b"\xff" * 4096, nsid=2).status == 0
    slow.go_on.set()
    assert host.admin.wait(format_).status == 0
    assert host.read_blocks(0, 4096, shift=12) == bytes(4096)
    assert host.write_blocks(0, b"\xff" * 4096, shift=12).status == 0
    assert device.controller.namespaces[1].backing.read_bytes(4096, 0) == b"\xff" * 4096


def test_a_format_that_fails_lets_its_namespace_be_used_again(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    host, namespace = slow.host, slow.device.controller.namespaces[0]
    slow.go_on.set()

    def fail(*_: int) -> None:
        raise OSError(5, "broken")

    with monkeypatch.context() as broken:
        broken.setattr(namespace.backing, "discard", fail)
        assert host.admin.do(Admin.FORMAT_NVM, nsid=1, cdw10=1 | 1 << 9).status != 0
    assert namespace.shift == 9
    assert host.write_blocks(0, bytes(512)).status == 0


UNDER_WAY: Mapping[str, Callable[[Host], Completing]] = {
    "a flush": lambda host: Completing(host.queues[1], host.queues[1].put(Io.FLUSH, nsid=1)),
    "a flush of all": lambda host: Completing(host.queues[1], host.queues[1].put(Io.FLUSH, nsid=0xFFFFFFFF)),
    "a deallocation": lambda host: Completing(host.queues[1], deallocate(host)),
    "its format": lambda host: Completing(host.admin, host.admin.put(Admin.FORMAT_NVM, nsid=1, cdw10=1 << 9)),
}


@pytest.mark.parametrize("under_way", UNDER_WAY)
def test_what_was_begun_ends_before_the_host_has_taken_its_namespace(
    slow: Slow, under_way: str, tmp_path: Path
) -> None:
    host, queue = slow.host, slow.host.queues[1]
    begun = UNDER_WAY[under_way](host)
    assert slow.begun.acquire(timeout=10)
    with ControlClient(tmp_path / "control") as control, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(control.call, "detach", nsid=1)
        behind = queue.put(Io.WRITE, ring=False, nsid=1, prp1=host.allocate(PAGE))
        assert not wait([taken], MOMENT).done, "it is not taken from under what was begun"
        slow.go_on.set()
        assert taken.result(10) == {"attached": False}
        assert begun.queue.wait(begun.cid).status == 0
        queue.ring()
        assert queue.wait(behind).status == Status.INVALID_FIELD
        assert queue.do(Io.FLUSH, nsid=2).status == 0, "the others are as they were"
        assert control.call("attach", nsid=1) == {"attached": True}
    assert queue.do(Io.WRITE, nsid=1, prp1=host.allocate(PAGE)).status == 0
    assert host.load(CSTS) & (READY | FATAL) == READY


def test_what_was_begun_ends_before_the_host_has_resized_its_namespace(slow: Slow, tmp_path: Path) -> None:
    begun = UNDER_WAY["a deallocation"](slow.host)
    assert slow.begun.acquire(timeout=10)
    with ControlClient(tmp_path / "control") as control, ThreadPoolExecutor(1) as pool:
        resized = pool.submit(control.call, "resize", nsid=1, size="2M")
        assert not wait([resized], MOMENT).done, "it is not another size under what was begun"
        slow.go_on.set()
        assert resized.result(10) == {"size": 2 << 20}
    assert begun.queue.wait(begun.cid).status == 0
