"""The controller's life: enabling, queues and their doorbells, interrupts, shutdown and every kind of reset."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nvme_kit import ACQ, AQA, ASQ, CC, CSTS, ENABLE, NSSR, PAGE, READY, Host, controller
from userdev_servers.nvme.spec import Admin, Io, Status

FATAL = 2
SHUTDOWN_COMPLETE = 8
SUBSYSTEM_RESET = 0x10
CAP = 0
SUBSYSTEM_RESETS = 1 << 36


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Host]:
    with controller(tmp_path) as (_, host):
        yield host


@pytest.fixture
def host(fresh: Host) -> Host:
    fresh.enable()
    return fresh


def test_capabilities_and_version_are_there_before_enabling(fresh: Host) -> None:
    capabilities = fresh.load(0, 8)
    assert capabilities & 0xFFFF == 2047
    assert capabilities >> 16 & 1  # queues have to be contiguous
    assert capabilities >> 37 & 1  # NVM command set
    assert (fresh.load(0), fresh.load(4)) == (capabilities & 0xFFFFFFFF, capabilities >> 32)
    assert fresh.load(8) == 0x00010400
    assert fresh.load(CSTS) == 0


@pytest.mark.parametrize(
    ("register", "width", "value"),
    [
        (CC, 4, ENABLE | 1 << 4),  # a command set that there is not
        (CC, 4, ENABLE | 5 << 7),  # pages of 128 KiB
        (CC, 4, ENABLE | 1 << 11),  # weighted round robin
        (AQA, 4, 0x001F0000),  # a submission queue of one entry
        (AQA, 4, 0x0000001F),  # a completion queue of one entry
    ],
)
def test_a_controller_that_cannot_be_enabled_so_says_that_it_failed(
    fresh: Host, register: int, width: int, value: int
) -> None:
    fresh.store(AQA, 4, 0x001F001F)
    fresh.store(ASQ, 8, fresh.allocate(PAGE))
    fresh.store(ACQ, 8, fresh.allocate(PAGE))
    fresh.store(register, width, value)
    if register != CC:
        fresh.store(CC, 4, ENABLE)
    assert fresh.load(CSTS) & (READY | FATAL) == FATAL
    fresh.store(CC, 4, 0)
    assert fresh.load(CSTS) == 0
    fresh.enable()


def test_admin_queues_outside_of_memory_are_fatal_when_they_are_used(fresh: Host) -> None:
    fresh.enable()
    fresh.disable()
    fresh.store(ASQ, 8, 0x1000)
    fresh.store(CC, 4, ENABLE)
    assert fresh.load(CSTS) == READY
    fresh.store(0x1000, 4, 1)
    fresh.until(lambda: bool(fresh.load(CSTS) & FATAL))
    fresh.disable()
    fresh.enable()
    assert fresh.admin.do(Admin.IDENTIFY, prp1=fresh.allocate(PAGE), cdw10=1).status == 0


@pytest.mark.parametrize(("doorbell", "value"), [(0x1000, 3), (0x1004, 3), (0x1008, 0xFFFFFFFF)])
def test_a_guest_that_takes_a_new_server_for_its_old_one_is_told_to_reset(
    fresh: Host, doorbell: int, value: int
) -> None:
    fresh.store(doorbell, 4, value)
    assert fresh.load(CSTS) == FATAL
    fresh.enable()
    assert fresh.load(CSTS) == READY


def test_queues_wrap_and_their_phase_turns(host: Host) -> None:
    queue = host.create_queues(entries=4)
    done = [queue.do(Io.FLUSH, nsid=1) for _ in range(11)]
    assert [each.status for each in done] == [0] * 11
    assert [each.sq_head for each in done] == [(place + 1) % 4 for place in range(11)]
    assert {each.sq_id for each in done} == {1}


def test_a_batch_of_commands_needs_one_doorbell(host: Host) -> None:
    queue = host.create_queues(entries=64)
    page = host.allocate(PAGE)
    cids = [queue.put(Io.READ, ring=False, nsid=1, prp1=page, cdw12=7) for _ in range(50)]
    queue.ring()
    assert [queue.wait(cid).status for cid in cids] == [0] * 50


def test_a_full_completion_queue_holds_commands_back(host: Host) -> None:
    queue = host.create_queues(entries=16, cq_entries=4)
    for _ in range(10):
        queue.put(Io.READ, ring=False, nsid=1, prp1=host.allocate(PAGE), cdw12=7)
    queue.ring()
    for expected in (3, 3, 3, 1):
        found: list[int] = []
        while len(found) < expected:
            host.client.wait_interrupt(host.vectors[1])
            found += [each.status for each in queue.take(acknowledge=False)]
        assert found == [0] * expected
        queue.acknowledge()


def test_two_submission_queues_share_a_completion_queue(host: Host) -> None:
    first = host.create_queues(1)
    other = host.allocate(PAGE)
    assert host.admin.do(Admin.CREATE_SQ, prp1=other, cdw10=15 << 16 | 2, cdw11=1 << 16 | 1).status == 0
    first.put(Io.FLUSH, nsid=1, cid=7)
    host.write(other, host.read(first.sq, 2) + b"\x08\x00" + host.read(first.sq + 4, 60))
    host.store(0x1010, 4, 1)
    assert {(done.sq_id, done.status) for done in (first.wait(7), first.wait(8))} == {(1, 0), (2, 0)}
    assert host.admin.do(Admin.DELETE_CQ, cdw10=1).status == Status.INVALID_QUEUE_DELETION


CREATE_CQ = {
    "number 0": ({"cdw10": 15 << 16}, Status.INVALID_QUEUE_ID),
    "a number above all": ({"cdw10": 15 << 16 | 9}, Status.INVALID_QUEUE_ID),
    "a number in use": ({"cdw10": 15 << 16 | 1}, Status.INVALID_QUEUE_ID),
    "one entry": ({"cdw10": 2}, Status.INVALID_QUEUE_SIZE),
    "more entries than there may be": ({"cdw10": 2048 << 16 | 2}, Status.INVALID_QUEUE_SIZE),
    "an odd address": ({"cdw10": 15 << 16 | 2, "prp1": 0x100010}, Status.INVALID_PRP_OFFSET),
    "not contiguous": ({"cdw10": 15 << 16 | 2, "cdw11": 2}, Status.INVALID_FIELD),
    "a vector that there is not": ({"cdw10": 15 << 16 | 2, "cdw11": 9 << 16 | 3}, Status.INVALID_INTERRUPT_VECTOR),
}


@pytest.mark.parametrize("name", CREATE_CQ)
def test_a_completion_queue_that_cannot_be_is_refused(host: Host, name: str) -> None:
    host.create_queues()
    fields, status = CREATE_CQ[name]
    assert host.admin.do(Admin.CREATE_CQ, **{"prp1": host.allocate(PAGE), "cdw11": 3, **fields}).status == status


CREATE_SQ = {
    "number 0": ({"cdw10": 15 << 16}, Status.INVALID_QUEUE_ID),
    "a number in use": ({"cdw10": 15 << 16 | 1}, Status.INVALID_QUEUE_ID),
    "one entry": ({"cdw10": 2}, Status.INVALID_QUEUE_SIZE),
    "no completion queue": ({"cdw10": 15 << 16 | 2, "cdw11": 2 << 16 | 1}, Status.CQ_INVALID),
    "a completion queue that there cannot be": (
        {"cdw10": 15 << 16 | 2, "cdw11": 0xFFFF << 16 | 1},
        Status.INVALID_QUEUE_ID,
    ),
    "the admin completion queue": ({"cdw10": 15 << 16 | 2, "cdw11": 1}, Status.INVALID_QUEUE_ID),
    "an odd address": ({"cdw10": 15 << 16 | 2, "prp1": 0x100040}, Status.INVALID_PRP_OFFSET),
    "not contiguous": ({"cdw10": 15 << 16 | 2, "cdw11": 1 << 16}, Status.INVALID_FIELD),
}


@pytest.mark.parametrize("name", CREATE_SQ)
def test_a_submission_queue_that_cannot_be_is_refused(host: Host, name: str) -> None:
    host.create_queues()
    fields, status = CREATE_SQ[name]
    done = host.admin.do(Admin.CREATE_SQ, **{"prp1": host.allocate(PAGE), "cdw11": 1 << 16 | 1, **fields})
    assert done.status == status


def test_queues_are_refused_until_the_sizes_of_their_entries_were_set(fresh: Host) -> None:
    """Section 3.1.5, of CC: a driver that forgets IOCQES or IOSQES gets no queue from other controllers either."""
    sizes = {"neither": 0, "of completions alone": 4 << 20, "of commands alone": 6 << 16, "others": 5 << 20 | 7 << 16}
    for name, configured in sizes.items():
        fresh.enable()
        fresh.store(CC, 4, configured | 1)
        cq = {"prp1": fresh.allocate(PAGE), "cdw10": 15 << 16 | 1, "cdw11": 1 << 16 | 3}
        has_completions = configured >> 20 == 4
        made = fresh.admin.do(Admin.CREATE_CQ, **cq).status
        assert made == (0 if has_completions else Status.INVALID_QUEUE_SIZE), name
        if has_completions:
            made = fresh.admin.do(Admin.CREATE_SQ, **cq | {"prp1": fresh.allocate(PAGE)}).status
            assert made == Status.INVALID_QUEUE_SIZE, name
        fresh.disable()


def test_vectors_are_masked_and_unmasked_each_by_itself(host: Host) -> None:
    masked, unmasked = 0x0C, 0x10
    host.store(masked, 4, 0b0110)
    host.store(masked, 4, 0b1000)
    host.store(unmasked, 4, 0b0010)
    assert (host.load(masked), host.load(unmasked)) == (0b1100, 0b1100)
    host.store(unmasked, 4, 0xFFFFFFFF)
    assert host.load(masked) == 0


@pytest.mark.parametrize("opcode", [Admin.DELETE_SQ, Admin.DELETE_CQ])
@pytest.mark.parametrize("number", [0, 5, 0xFFFF])
def test_a_queue_that_there_is_not_cannot_be_deleted(host: Host, opcode: int, number: int) -> None:
    assert host.admin.do(opcode, cdw10=number).status == Status.INVALID_QUEUE_ID


def test_all_64_queue_pairs_work_at_once_each_with_its_vector(tmp_path: Path) -> None:
    with controller(tmp_path, queues=64, vectors=65) as (_, host):
        host.enable(entries=256)
        pairs = [host.create_queues(number, entries=8, vector=number) for number in range(1, 65)]
        cids = [pair.put(Io.FLUSH, nsid=1) for pair in pairs]
        assert [pair.wait(cid).status for pair, cid in zip(pairs, cids, strict=True)] == [0] * 64
        assert host.admin.do(Admin.CREATE_CQ, prp1=host.allocate(PAGE), cdw10=7 << 16 | 65, cdw11=3).status == (
            Status.INVALID_QUEUE_ID
        )


def test_deleted_queues_can_be_created_again(host: Host) -> None:
    for _ in range(3):
        assert host.create_queues().do(Io.FLUSH, nsid=1).status == 0
        assert host.admin.do(Admin.DELETE_SQ, cdw10=1).status == 0
        assert host.admin.do(Admin.DELETE_CQ, cdw10=1).status == 0


def test_each_queue_interrupts_by_its_own_vector(host: Host) -> None:
    pairs = [host.create_queues(number, vector=number) for number in (1, 2, 3)]
    for pair in pairs:
        assert pair.do(Io.FLUSH, nsid=1).status == 0
    quiet = host.create_queues(4, vector=4)
    assert host.admin.do(Admin.DELETE_SQ, cdw10=4).status == 0
    assert host.admin.do(Admin.DELETE_CQ, cdw10=4).status == 0
    assert host.admin.do(Admin.CREATE_CQ, prp1=quiet.cq, cdw10=63 << 16 | 4, cdw11=4 << 16 | 1).status == 0
    assert host.admin.do(Admin.CREATE_SQ, prp1=quiet.sq, cdw10=63 << 16 | 4, cdw11=4 << 16 | 1).status == 0
    quiet.put(Io.FLUSH, nsid=1)
    host.until(lambda: bool(quiet.take()))
    assert host.vectors[4].take() == 0


def test_shadow_doorbells_take_the_place_of_registers(host: Host) -> None:
    values, events = host.allocate(PAGE), host.allocate(PAGE)
    assert host.admin.do(Admin.DOORBELL_BUFFER_CONFIG, prp1=values, prp2=events).status == 0
    queue = host.create_queues(entries=8)
    tail_at, head_at, event_at = values + 8, values + 12, events + 8
    for turn in range(20):
        cid = queue.put(Io.FLUSH, ring=False, nsid=1)
        host.write(tail_at, queue.tail.to_bytes(4, "little"))
        queue.ring()  # as the event index asked for
        done = queue.wait(cid)
        host.write(head_at, queue.head.to_bytes(4, "little"))
        assert (done.status, done.sq_head) == (0, (turn + 1) % 8)
        tail = queue.tail
        host.until(lambda: int.from_bytes(host.read(event_at, 4), "little") == tail)  # noqa: B023


def test_shadow_doorbells_count_and_not_what_the_register_says(host: Host) -> None:
    values, events = host.allocate(PAGE), host.allocate(PAGE)
    assert host.admin.do(Admin.DOORBELL_BUFFER_CONFIG, prp1=values, prp2=events).status == 0
    queue = host.create_queues(entries=8)
    cids = [queue.put(Io.FLUSH, ring=False, nsid=1) for _ in range(3)]
    host.write(values + 8, (3).to_bytes(4, "little"))
    host.store(0x1008, 4, 1)  # rung for the first, while the buffer says three
    assert [queue.wait(cid).status for cid in cids] == [0, 0, 0]


@pytest.mark.parametrize(("prp1", "prp2"), [(0x100200, 0x101000), (0x100000, 0x101004), (0x100000, 0x100000)])
def test_shadow_doorbells_are_whole_pages(host: Host, prp1: int, prp2: int) -> None:
    assert host.admin.do(Admin.DOORBELL_BUFFER_CONFIG, prp1=prp1, prp2=prp2).status == Status.INVALID_FIELD


@pytest.mark.parametrize("nowhere", ["values", "events"])
def test_shadow_doorbells_that_are_not_in_memory_are_refused_and_nothing_is_another(host: Host, nowhere: str) -> None:
    places = {"values": host.allocate(PAGE), "events": host.allocate(PAGE), nowhere: 0x10000}
    queue = host.create_queues(entries=8)
    done = host.admin.do(Admin.DOORBELL_BUFFER_CONFIG, prp1=places["values"], prp2=places["events"])
    assert (done.status, done.do_not_retry) == (Status.DATA_TRANSFER_ERROR, True)
    for pair in (queue, host.create_queues(2, entries=8)):
        assert [pair.do(Io.FLUSH, nsid=1).status for _ in range(10)] == [0] * 10


def test_a_shutdown_brings_everything_to_the_disk_and_says_when(host: Host) -> None:
    host.create_queues()
    assert host.write_blocks(0, bytes(4096)).status == 0
    host.store(CC, 4, ENABLE | 1 << 14)
    host.until(lambda: host.load(CSTS) & 0xC == SHUTDOWN_COMPLETE)
    host.disable()
    host.enable()
    assert host.load(CSTS) == READY


def test_a_shutdown_is_over_when_the_guest_says_so_and_not_before(host: Host) -> None:
    host.store(CC, 4, ENABLE | 1 << 14)
    host.until(lambda: host.load(CSTS) & 0xC == SHUTDOWN_COMPLETE)
    for again in (1 << 14, 2 << 14):
        host.store(CC, 4, ENABLE | again)
        assert host.load(CSTS) == READY | SHUTDOWN_COMPLETE
    host.store(CC, 4, ENABLE)
    assert host.load(CSTS) == READY


def test_a_reset_forgets_queues_and_features_and_keeps_the_data(host: Host) -> None:
    host.create_queues()
    assert host.write_blocks(0, b"kept" * 128).status == 0
    assert host.admin.do(Admin.SET_FEATURES, cdw10=8, cdw11=0x305).status == 0
    host.disable()
    assert host.load(ASQ, 8) == host.admin.sq  # the admin queue's registers are no part of the reset
    host.enable()
    assert host.admin.do(Admin.GET_FEATURES, cdw10=8).result == 0
    assert host.admin.do(Admin.DELETE_SQ, cdw10=1).status == Status.INVALID_QUEUE_ID
    host.create_queues()
    assert host.read_blocks(0, 512) == b"kept" * 128


def test_a_subsystem_reset_is_one_and_says_so(tmp_path: Path) -> None:
    with controller(tmp_path, subsystem_reset=True) as (_, host):
        assert host.load(CAP, 8) & SUBSYSTEM_RESETS
        host.enable()
        host.store(NSSR, 4, 0x12345678)
        assert host.load(CSTS) == READY
        host.store(NSSR, 4, 0x4E564D65)
        assert (host.load(CC), host.load(CSTS)) == (0, SUBSYSTEM_RESET)
        assert (host.load(AQA), host.load(ASQ, 8), host.load(ACQ, 8)) == (0, 0, 0), "only CC.EN leaves them as they are"
        host.enable()
        assert host.load(CSTS) == READY | SUBSYSTEM_RESET
        host.store(CSTS, 4, SUBSYSTEM_RESET)
        assert host.load(CSTS) == READY


def test_there_are_no_subsystem_resets_unless_they_are_asked_for(host: Host) -> None:
    assert not host.load(CAP, 8) & SUBSYSTEM_RESETS
    host.store(NSSR, 4, 0x4E564D65)
    assert host.load(CSTS) == READY
    assert host.load(NSSR) == 0


def test_ready_falls_when_the_last_command_has_left_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with controller(tmp_path) as (device, host):
        host.enable()
        queue = host.create_queues()
        go_on = threading.Event()
        monkeypatch.setattr(device.controller.namespaces[0].backing, "sync", lambda: go_on.wait(10) and None)
        queue.put(Io.FLUSH, nsid=1)
        host.store(CC, 4, 0)
        assert host.load(CSTS) & READY
        assert host.load(CC) == 0
        go_on.set()
        host.until(lambda: host.load(CSTS) == 0)
        host.enable()
        assert host.create_queues().do(Io.FLUSH, nsid=1).status == 0


@pytest.mark.parametrize("way", ["client", "flr"])
def test_a_reset_under_load_leaves_a_controller_that_works(host: Host, way: str) -> None:
    queue = host.create_queues(entries=64)
    for _ in range(60):
        queue.put(Io.FLUSH, ring=False, nsid=1)
    queue.ring()
    if way == "client":
        host.client.reset()
    else:
        express = 0x40
        assert host.client.config_read(express, 1) == b"\x10"
        control = int.from_bytes(host.client.config_read(express + 8, 2), "little")
        host.client.config_write(express + 8, (control | 1 << 15).to_bytes(2, "little"))
    host.until(lambda: host.load(CSTS) == 0)
    assert (host.load(CC), host.load(AQA), host.load(ASQ, 8)) == (0, 0, 0)
    host.enable()
    assert host.create_queues().do(Io.FLUSH, nsid=1).status == 0


@pytest.mark.parametrize("side", [0, 4], ids=["the tail of submissions", "the head of completions"])
def test_a_doorbell_that_lies_is_an_event_and_no_more(host: Host, side: int) -> None:
    queue = host.create_queues(entries=8)
    request = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
    host.store(0x1008 + side, 4, 8)  # beyond the end of the queue
    event = host.admin.wait(request)
    assert (event.result & 7, event.result >> 8 & 0xFF) == (0, 1)
    host.log_page(1, 64)
    request = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
    host.store(0x1000 + 8 * 5 + side, 4, 1)  # a queue that there is not
    assert host.admin.wait(request).result >> 8 & 0xFF == 0
    assert queue.do(Io.FLUSH, nsid=1).status == 0


def test_a_guest_is_interrupted_for_an_event(host: Host) -> None:
    request = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
    host.vectors[0].take()
    host.store(0x1000 + 8 * 5, 4, 1)  # a queue that there is not
    assert host.vectors[0].take() == 1
    assert [done.cid for done in host.admin.take()] == [request]


def test_a_client_that_goes_leaves_the_controller_to_the_next(tmp_path: Path) -> None:
    from userdev_servers.nvme import Nvme
    from vfio_user.client import Client
    from vfio_user.server import Server

    address = f"unix:{tmp_path / 'nvme.sock'}"
    device = Nvme(image=f"{tmp_path / 'disk.img'}:1M")
    with Server(device, address):
        for turn in range(3):
            host = Host(Client.connect(address))
            if turn:
                host.disable()
            host.enable()
            queue = host.create_queues()
            for _ in range(20):
                queue.put(Io.FLUSH, nsid=1)
            host.close()
    device.close()
