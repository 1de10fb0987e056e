"""Admin commands: what the controller says of itself, features, logs, events, formats and namespaces."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.nvme_kit import PAGE, Host, controller
from userdev.errors import UserError
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.features import TEMPERATURE
from userdev_servers.nvme.spec import Admin, Feature, Io, LogPage, Status

NAMESPACE_NOTICES = 0x100


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with controller(tmp_path) as (_, host):
        host.enable()
        yield host


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Host]:
    """A controller with three namespaces."""
    images = ",".join(f"{tmp_path / name}:1M" for name in "abc")
    with controller(tmp_path, images, control=str(tmp_path / "control")) as (_, host):
        host.enable()
        yield host


def test_identify_tells_what_the_controller_is(host: Host) -> None:
    data = host.identify(1)
    assert unpack_from("<H", data) == (0x4E58,)
    assert data[4:24].startswith(b"vfu-")
    assert data[24:64].rstrip() == b"vfio-user NVMe"
    assert data[77] == 8  # transfers of 1 MiB
    assert unpack_from("<I", data, 80) == (0x00010400,)
    assert data[512:514] == b"\x66\x44"
    assert unpack_from("<I", data, 516) == (1,)
    assert unpack_from("<Q", data, 280) == (4 << 20,)


def test_two_controllers_can_be_told_apart_and_one_is_always_the_same(tmp_path: Path) -> None:
    def serial(name: str) -> str:
        device = Nvme(image=f"{tmp_path / name}:1M")
        device.close()
        return device.serial

    assert serial("a") != serial("b")
    assert serial("a") == serial("a")


def test_identify_describes_a_namespace(host: Host) -> None:
    data = host.identify(0, 1)
    assert unpack_from("<QQQ", data) == (8192, 8192, 8192)
    assert (data[25], data[26]) == (1, 0)
    assert (data[130], data[134]) == (9, 12)  # block sizes
    identifiers = host.identify(3, 1)
    assert (identifiers[0], identifiers[1], identifiers[4:20]) == (2, 16, data[104:120])


def test_lists_of_namespaces_begin_above_the_one_asked_for(three: Host) -> None:
    assert unpack_from("<4I", three.identify(2, 0)) == (1, 2, 3, 0)
    assert unpack_from("<4I", three.identify(2, 1)) == (2, 3, 0, 0)
    assert unpack_from("<4I", three.identify(2, 3)) == (0, 0, 0, 0)
    assert unpack_from("<HH", three.identify(0x13)) == (1, 0)


ADMIN = {
    "an opcode that there is not": ({"opcode": 0x7E}, Status.INVALID_OPCODE),
    "half of a fused command": ({"opcode": Admin.IDENTIFY, "cdw10": 1, "flags": 2}, Status.INVALID_FIELD),
    "a scatter gather list, which is for I/O commands": (
        {"opcode": Admin.IDENTIFY, "cdw10": 1, "flags": 1 << 6, "prp2": PAGE},
        Status.INVALID_FIELD,
    ),
    "an unknown data structure": ({"opcode": Admin.IDENTIFY, "cdw10": 0x77}, Status.INVALID_FIELD),
    "a namespace that there is not": ({"opcode": Admin.IDENTIFY, "nsid": 9}, Status.INVALID_NAMESPACE),
    "namespace 0": ({"opcode": Admin.IDENTIFY, "nsid": 0}, Status.INVALID_NAMESPACE),
    "identify to nowhere": ({"opcode": Admin.IDENTIFY, "cdw10": 1, "prp1": 0x1000}, Status.DATA_TRANSFER_ERROR),
    "identify to an odd byte": ({"opcode": Admin.IDENTIFY, "cdw10": 1, "prp1": 0x100001}, Status.INVALID_PRP_OFFSET),
    "an unknown log page": ({"opcode": Admin.GET_LOG_PAGE, "cdw10": 0xF0}, Status.INVALID_LOG_PAGE),
    "behind a log page": ({"opcode": Admin.GET_LOG_PAGE, "cdw10": 2, "cdw12": 512}, Status.INVALID_FIELD),
    "an odd place of a log page": ({"opcode": Admin.GET_LOG_PAGE, "cdw10": 2, "cdw12": 2}, Status.INVALID_FIELD),
    **{
        f"log page {page} of one namespace": (
            {"opcode": Admin.GET_LOG_PAGE, "cdw10": page, "nsid": 1},
            Status.INVALID_FIELD,
        )
        for page in LogPage
    },
    "an unknown feature": ({"opcode": Admin.GET_FEATURES, "cdw10": 0x77}, Status.INVALID_FIELD),
    "an unknown feature to set": ({"opcode": Admin.SET_FEATURES, "cdw10": 0x77}, Status.INVALID_FIELD),
    "a feature of a namespace that there is not": (
        {"opcode": Admin.SET_FEATURES, "cdw10": Feature.ARBITRATION, "nsid": 9},
        Status.INVALID_NAMESPACE,
    ),
    "a feature to save": (
        {"opcode": Admin.SET_FEATURES, "cdw10": 1 << 31 | Feature.VOLATILE_WRITE_CACHE},
        Status.FEATURE_NOT_SAVEABLE,
    ),
    "no queues": ({"opcode": Admin.SET_FEATURES, "cdw10": 7, "cdw11": 0xFFFFFFFF}, Status.INVALID_FIELD),
    "a format that there is not": ({"opcode": Admin.FORMAT_NVM, "nsid": 1, "cdw10": 7}, Status.INVALID_FORMAT),
    "cryptographic erase": ({"opcode": Admin.FORMAT_NVM, "nsid": 1, "cdw10": 2 << 9}, Status.INVALID_FIELD),
    "a format of nothing": ({"opcode": Admin.FORMAT_NVM, "nsid": 5}, Status.INVALID_NAMESPACE),
    "more of a log page than one command moves": (
        {"opcode": Admin.GET_LOG_PAGE, "cdw10": 0xFFFF << 16 | LogPage.ERRORS, "cdw11": 4},
        Status.INVALID_FIELD,
    ),
    "an abort in a queue that there is not": ({"opcode": Admin.ABORT, "cdw10": 3}, Status.INVALID_FIELD),
    "a namespace action that there is not": (
        {"opcode": Admin.NAMESPACE_MANAGEMENT, "cdw10": 7, "nsid": 1},
        Status.INVALID_FIELD,
    ),
    "an attachment to nobody": (
        {"opcode": Admin.NAMESPACE_ATTACHMENT, "cdw10": 1, "nsid": 1},
        Status.CONTROLLER_LIST_INVALID,
    ),
}


@for_each(ADMIN)
def test_a_malformed_admin_command_is_refused(name: str, host: Host) -> None:
    fields, status = ADMIN[name]
    fields = {"prp1": host.allocate(2 * PAGE), **fields}
    done = host.admin.do(fields.pop("opcode"), **fields)
    assert (done.status, done.do_not_retry) == (status, True)
    assert host.identify(1)[24:28] == b"vfio"


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (Feature.ARBITRATION, 0x07070703),
        (Feature.TEMPERATURE_THRESHOLD, 0x150),
        (Feature.TEMPERATURE_THRESHOLD, 1 << 20 | 0x110),
        (Feature.VOLATILE_WRITE_CACHE, 0),
        (Feature.INTERRUPT_COALESCING, 0x0A04),
        (Feature.INTERRUPT_VECTOR_CONFIG, 1 << 16 | 3),
        (Feature.WRITE_ATOMICITY, 1),
        (Feature.ASYNC_EVENT_CONFIG, 0x11F),
    ],
)
def test_a_feature_keeps_what_it_is_given_until_reset(host: Host, feature: int, value: int) -> None:
    default = host.admin.do(Admin.GET_FEATURES, cdw10=feature, cdw11=value).result
    assert host.admin.do(Admin.SET_FEATURES, cdw10=feature, cdw11=value).status == 0
    seen = host.admin.do(Admin.GET_FEATURES, cdw10=feature, cdw11=value).result
    assert seen == (value & 0xFFFF if feature == Feature.TEMPERATURE_THRESHOLD else value)
    for select in (1, 2):  # by default, and as saved: nothing can be
        assert host.admin.do(Admin.GET_FEATURES, cdw10=feature | select << 8, cdw11=value).result == default
    assert host.admin.do(Admin.GET_FEATURES, cdw10=feature | 3 << 8, cdw11=value).result == 1 << 2, "it can be changed"
    assert host.admin.do(Admin.GET_FEATURES, cdw10=feature | 4 << 8).status == Status.INVALID_FIELD
    host.disable()
    host.enable()
    assert host.admin.do(Admin.GET_FEATURES, cdw10=feature, cdw11=value).result == default


def test_the_number_of_queues_is_settled_before_they_are_made(host: Host) -> None:
    assert host.admin.do(Admin.SET_FEATURES, cdw10=7, cdw11=0x00030003).result == 0x00070007
    host.create_queues()
    assert host.admin.do(Admin.SET_FEATURES, cdw10=7, cdw11=0x00030003).status == Status.COMMAND_SEQUENCE_ERROR


def test_the_clock_goes_on_from_what_it_is_set_to(host: Host) -> None:
    page = host.allocate(PAGE)
    host.write(page, pack("<Q", 1_000_000))
    assert host.admin.do(Admin.SET_FEATURES, cdw10=Feature.TIMESTAMP, prp1=page).status == 0
    began = time.monotonic()
    assert host.admin.do(Admin.GET_FEATURES, cdw10=Feature.TIMESTAMP, prp1=page).status == 0
    (value,) = unpack_from("<Q", host.read(page, 8))
    assert value >> 49 & 7 == 1  # set by the host
    assert 1_000_000 <= value & (1 << 48) - 1 <= 1_000_000 + (time.monotonic() - began) * 1000 + 5000


def test_smart_counts_what_was_done(host: Host) -> None:
    host.create_queues()
    for _ in range(3):
        assert host.write_blocks(0, bytes(1 << 20)).status == 0
    host.read_blocks(0, 4096)
    host.queues[1].do(Io.READ, nsid=7)
    log = host.log_page(LogPage.SMART)
    assert unpack_from("<H", log, 1) == (323,)
    read, written, reads, writes = (int.from_bytes(log[at : at + 16], "little") for at in range(32, 96, 16))
    assert (read, written, reads, writes) == (1, 7, 1, 3)  # 6144 sectors in thousands, rounded up
    assert int.from_bytes(log[176:192], "little") == 1


def test_errors_are_logged_newest_first_and_survive_a_reset(host: Host) -> None:
    queue = host.create_queues()
    queue.do(Io.READ, nsid=9)
    queue.do(Io.READ, nsid=1, cdw10=0x7FFFFFFF, prp1=host.allocate(PAGE))
    host.disable()
    host.enable()
    entries = host.log_page(LogPage.ERRORS, 128)
    newest, oldest = (unpack_from("<QHHHHQI", entries, at) for at in (0, 64))
    assert (newest[0], newest[1], newest[3] >> 1 & 0x7FF, newest[5]) == (2, 1, Status.LBA_OUT_OF_RANGE, 0x7FFFFFFF)
    assert (oldest[0], oldest[3] >> 1 & 0x7FF, oldest[6]) == (1, Status.INVALID_NAMESPACE, 9)


def test_a_log_page_can_be_read_in_parts(host: Host) -> None:
    whole = host.log_page(LogPage.COMMAND_EFFECTS, 4096)
    page = host.allocate(PAGE)
    done = host.admin.do(Admin.GET_LOG_PAGE, prp1=page, cdw10=63 << 16 | LogPage.COMMAND_EFFECTS, cdw12=1024)
    assert (done.status, host.read(page, 256)) == (0, whole[1024:1280])
    assert host.log_page(LogPage.FIRMWARE)[:16] == b"\x01\0\0\0\0\0\0\0" + b"1.0".ljust(8)


def test_more_of_a_log_page_than_there_is_goes_where_its_pages_are_listed(host: Host) -> None:
    """The data pointer is of what is asked for: a list of pages in memory, which no data may go to."""
    pages = [host.allocate(PAGE) for _ in range(3)]
    listed = host.put_list(pages[1:])
    before = host.read(listed, PAGE)
    words = (3 * PAGE - 0x800) // 4 - 1
    fields = {"prp1": pages[0] + 0x800, "prp2": listed, "cdw10": words << 16 | LogPage.COMMAND_EFFECTS}
    assert host.admin.do(Admin.GET_LOG_PAGE, **fields).status == 0
    assert host.read(listed, PAGE) == before
    effects = host.log_page(LogPage.COMMAND_EFFECTS, 4096)
    assert host.read(pages[0] + 0x800, 0x800) + host.read(pages[1], PAGE) == effects.ljust(0x1800, b"\0")


def test_what_is_not_offered_is_not_in_the_log_of_effects(tmp_path: Path) -> None:
    with controller(tmp_path, shadow_doorbells=False) as (_, host):
        host.enable()
        effects = unpack_from("<256I", host.log_page(LogPage.COMMAND_EFFECTS, 4096))
        assert not effects[Admin.DOORBELL_BUFFER_CONFIG]
        assert effects[Admin.FORMAT_NVM]


def test_event_requests_wait_and_are_limited(host: Host) -> None:
    requests = [host.admin.put(Admin.ASYNC_EVENT_REQUEST) for _ in range(4)]
    assert host.admin.do(Admin.ASYNC_EVENT_REQUEST).status == Status.TOO_MANY_EVENT_REQUESTS
    assert not set(requests) & host.admin.arrived.keys()
    done = host.admin.do(Admin.ABORT, cdw10=requests[1] << 16)
    assert (done.status, done.result) == (0, 0)
    assert host.admin.wait(requests[1]).status == Status.ABORT_REQUESTED
    assert host.admin.do(Admin.ABORT, cdw10=requests[1] << 16).result == 1


def test_waiting_event_requests_take_no_place_in_the_queue(tmp_path: Path) -> None:
    with controller(tmp_path) as (_, host):
        host.enable(entries=4)
        for _ in range(4):
            host.admin.put(Admin.ASYNC_EVENT_REQUEST)
            assert host.admin.do(Admin.GET_FEATURES, cdw10=6).status == 0


def test_heat_is_told_once_until_the_log_is_read(host: Host) -> None:
    host.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=0xFF)
    request = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
    second = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
    host.admin.do(Admin.SET_FEATURES, cdw10=Feature.TEMPERATURE_THRESHOLD, cdw11=300)
    assert host.admin.wait(request).result == LogPage.SMART << 16 | 1 << 8 | 1
    host.admin.do(Admin.SET_FEATURES, cdw10=Feature.TEMPERATURE_THRESHOLD, cdw11=301)
    assert second not in host.admin.arrived
    assert host.log_page(LogPage.SMART, retain=True)[0] == 2
    assert second not in host.admin.arrived
    assert host.log_page(LogPage.SMART)[0] == 2
    assert host.admin.wait(second).result & 0xFF == 1


def test_it_is_too_hot_from_the_upper_threshold_on_and_too_cold_down_to_the_lower(host: Host) -> None:
    """Section 5.21.1.4: greater than or equal to, and less than or equal to."""
    lower = 1 << 20
    for threshold, value, warned in (
        (0, TEMPERATURE + 1, 0),
        (0, TEMPERATURE, 2),
        (0, TEMPERATURE - 1, 2),
        (0, 0xFFFF, 0),
        (lower, TEMPERATURE - 1, 0),
        (lower, TEMPERATURE, 2),
        (lower, TEMPERATURE + 1, 2),
    ):
        host.admin.do(Admin.SET_FEATURES, cdw10=Feature.TEMPERATURE_THRESHOLD, cdw11=threshold | value)
        assert host.log_page(LogPage.SMART)[0] == warned, (threshold, value)


def test_any_part_of_a_log_that_is_read_counts_as_the_log(host: Host) -> None:
    page = host.allocate(PAGE)
    host.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=0xFF)
    for warm, offset in enumerate((0, 4, 508)):
        event = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
        host.admin.do(Admin.SET_FEATURES, cdw10=Feature.TEMPERATURE_THRESHOLD, cdw11=300 + warm)
        assert event in host.admin.arrived, offset
        read = host.admin.do(Admin.GET_LOG_PAGE, nsid=0xFFFFFFFF, cdw10=LogPage.SMART, cdw12=offset, prp1=page)
        assert read.status == 0, offset


@pytest.mark.parametrize(("place", "size"), [(0, 512), (1, 4096)])
def test_format_makes_zeros_of_blocks_of_the_size_asked_for(host: Host, tmp_path: Path, place: int, size: int) -> None:
    host.create_queues()
    assert host.write_blocks(0, b"\xff" * 65536).status == 0
    assert host.admin.do(Admin.FORMAT_NVM, nsid=1, cdw10=place | 1 << 9).status == 0
    assert (tmp_path / "disk.img").read_bytes() == bytes(4 << 20)
    data = host.identify(0, 1)
    assert (unpack_from("<Q", data)[0], data[26]) == ((4 << 20) // size, place)
    assert host.write_blocks(1, b"\x11" * 4096, shift=9 + 3 * place).status == 0
    assert (tmp_path / "disk.img").read_bytes()[size : size + 4096] == b"\x11" * 4096


@for_each([9, 8, 7, 1])
def test_a_format_of_larger_blocks_and_back_leaves_a_namespace_as_large_as_it_was(blocks: int, tmp_path: Path) -> None:
    """What is no whole block at the end is not used meanwhile; where no block is left the format is refused."""
    with controller(tmp_path, f"{tmp_path / 'odd'}:{blocks * 512}") as (_, host):
        host.enable()
        outcome = host.admin.do(Admin.FORMAT_NVM, nsid=1, cdw10=1).status
        assert outcome == (0 if blocks >= 8 else Status.INVALID_FORMAT)
        assert unpack_from("<Q", host.identify(0, 1))[0] == (1 if blocks >= 8 else blocks)
        assert host.admin.do(Admin.FORMAT_NVM, nsid=1).status == 0
        assert unpack_from("<Q", host.identify(0, 1))[0] == blocks


def attach(host: Host, nsid: int, action: int) -> int:
    page = host.allocate(PAGE)
    host.write(page, pack("<HH", 1, 0))
    return host.admin.do(Admin.NAMESPACE_ATTACHMENT, nsid=nsid, cdw10=action, prp1=page).status


def test_a_detached_namespace_is_there_and_cannot_be_used(three: Host) -> None:
    three.create_queues()
    assert attach(three, 2, 1) == 0
    assert attach(three, 2, 1) == Status.NAMESPACE_NOT_ATTACHED
    assert unpack_from("<3I", three.identify(2)) == (1, 3, 0)
    assert unpack_from("<3I", three.identify(0x10)) == (1, 2, 3)
    assert three.identify(0, 2) == bytes(4096)
    assert three.identify(0x11, 2)[:8] == pack("<Q", 2048)
    assert three.write_blocks(0, bytes(512), nsid=2).status == Status.INVALID_FIELD
    assert attach(three, 2, 0) == 0
    assert attach(three, 2, 0) == Status.NAMESPACE_ALREADY_ATTACHED
    assert three.write_blocks(0, bytes(512), nsid=2).status == 0


def create(
    host: Host, blocks: int, place: int = 0, capacity: int | None = None, protection: int = 0
) -> tuple[int, int]:
    page = host.allocate(PAGE)
    host.write(page, pack("<QQ10xB2xB", blocks, blocks if capacity is None else capacity, place, protection))
    done = host.admin.do(Admin.NAMESPACE_MANAGEMENT, cdw10=0, prp1=page)
    return done.status, done.result


def test_a_namespace_can_be_deleted_and_made_again(three: Host, tmp_path: Path) -> None:
    three.create_queues()
    assert three.write_blocks(0, b"\xff" * 4096, nsid=2).status == 0
    assert create(three, 1024)[0] == Status.NAMESPACE_ID_UNAVAILABLE
    assert three.admin.do(Admin.NAMESPACE_MANAGEMENT, nsid=2, cdw10=1).status == 0
    assert unpack_from("<3I", three.identify(0x10)) == (1, 3, 0)
    assert unpack_from("<Q", three.identify(1), 296) == (1 << 20,)
    assert create(three, 4096)[0] == Status.INSUFFICIENT_CAPACITY
    assert create(three, 128, capacity=64)[0] == Status.THIN_PROVISIONING_NOT_SUPPORTED
    assert create(three, 128, place=5)[0] == Status.INVALID_FORMAT
    assert create(three, 128, protection=1)[0] == Status.INVALID_FORMAT
    assert create(three, 128, place=1) == (0, 2)
    assert attach(three, 2, 0) == 0
    assert unpack_from("<Q", three.identify(0, 2)) == (128,)
    assert three.read_blocks(0, 4096, nsid=2, shift=12) == bytes(4096)


def ask(path: Path, **request: Any) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(connection.makefile().readline())
        return answer["result"] if answer["ok"] else answer


def test_a_namespace_grows_while_it_is_in_use_and_the_guest_is_told(tmp_path: Path) -> None:
    with controller(tmp_path, control=str(tmp_path / "control")) as (_, host):
        host.enable()
        host.create_queues()
        host.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=NAMESPACE_NOTICES)
        request = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
        assert host.write_blocks(8192, bytes(512)).status == Status.LBA_OUT_OF_RANGE
        assert ask(tmp_path / "control", command="resize", nsid=1, size="8M") == {"size": 8 << 20}
        assert host.admin.wait(request).result == LogPage.CHANGED_NAMESPACES << 16 | 2
        assert unpack_from("<2I", host.log_page(LogPage.CHANGED_NAMESPACES, 4096)) == (1, 0)
        assert unpack_from("<2I", host.log_page(LogPage.CHANGED_NAMESPACES, 4096)) == (0, 0)
        assert unpack_from("<Q", host.identify(0, 1)) == (16384,)
        assert host.write_blocks(8192, bytes(512)).status == 0
        known = ask(tmp_path / "control", command="namespaces")["namespaces"]
        assert [(each["nsid"], each["size"]) for each in known] == [(1, 8 << 20)]
        assert "error" in ask(tmp_path / "control", command="resize", nsid=3, size="8M")
        assert "error" in ask(tmp_path / "control", command="resize", nsid=1, size="a lot")
        assert "error" in ask(tmp_path / "control", command="dance")
    assert not (tmp_path / "control").exists()


@for_each([512, 4096])
def test_a_namespace_that_shrinks_and_grows_is_as_large_as_it_was_made_last(block_size: int, tmp_path: Path) -> None:
    shift = block_size.bit_length() - 1
    with controller(tmp_path, control=str(tmp_path / "control"), block_size=block_size) as (device, host):
        host.enable()
        host.create_queues()
        assert host.write_blocks(0, b"\x11" * block_size, shift=shift).status == 0
        for size in (8 << 20, 2 << 20, 4096, 6 << 20):
            assert ask(tmp_path / "control", command="resize", nsid=1, size=str(size)) == {"size": size}
            blocks = size // block_size
            assert unpack_from("<3Q", host.identify(0, 1)) == (blocks, blocks, blocks), size
            assert host.write_blocks(blocks - 1, b"\x22" * block_size, shift=shift).status == 0, size
            beyond = host.write_blocks(blocks, bytes(block_size), shift=shift)
            assert beyond.status == Status.LBA_OUT_OF_RANGE, size
            assert device.controller.namespaces[0].size == size
        assert (tmp_path / "disk.img").stat().st_size == 8 << 20, "nothing of the image was cut"


def test_a_log_that_could_not_be_sent_counts_as_unread(three: Host, tmp_path: Path) -> None:
    """A guest that gave a bad pointer finds the same when it asks again, and is told of nothing twice meanwhile."""
    three.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=NAMESPACE_NOTICES)
    requests = [three.admin.put(Admin.ASYNC_EVENT_REQUEST) for _ in range(2)]
    ask(tmp_path / "control", command="detach", nsid=2)
    assert three.admin.wait(requests[0]).result == LogPage.CHANGED_NAMESPACES << 16 | 2
    for pointer in (3, 1 << 50):
        words = 127 << 16 | LogPage.CHANGED_NAMESPACES
        assert three.admin.do(Admin.GET_LOG_PAGE, prp1=pointer, nsid=0xFFFFFFFF, cdw10=words).status != 0
    assert unpack_from("<2I", three.log_page(LogPage.CHANGED_NAMESPACES, 4096)) == (2, 0)
    ask(tmp_path / "control", command="attach", nsid=2)
    assert three.admin.wait(requests[1]).result == LogPage.CHANGED_NAMESPACES << 16 | 2


def test_the_host_takes_a_namespace_and_gives_it_back_and_the_guest_is_told(three: Host, tmp_path: Path) -> None:
    outside = tmp_path / "control"
    three.create_queues()
    three.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=NAMESPACE_NOTICES)
    assert three.write_blocks(0, b"kept" * 128, nsid=2).status == 0
    for command, active, status in (("detach", (1, 3, 0), Status.INVALID_FIELD), ("attach", (1, 2, 3), 0)):
        request = three.admin.put(Admin.ASYNC_EVENT_REQUEST)
        assert ask(outside, command=command, nsid=2) == {"attached": command == "attach"}
        assert three.admin.wait(request).result == LogPage.CHANGED_NAMESPACES << 16 | 2
        assert unpack_from("<2I", three.log_page(LogPage.CHANGED_NAMESPACES, 4096)) == (2, 0)
        assert unpack_from("<3I", three.identify(2)) == active
        assert three.queues[1].do(Io.FLUSH, nsid=2).status == status
        assert f"is {command}ed already" in ask(outside, command=command, nsid=2)["error"]["what"]
        known = ask(outside, command="namespaces")["namespaces"]
        assert [each["attached"] for each in known] == [True, command == "attach", True]
    assert three.read_blocks(0, 512, nsid=2) == b"kept" * 128


def test_the_guest_can_attach_what_the_host_detached(three: Host, tmp_path: Path) -> None:
    assert ask(tmp_path / "control", command="detach", nsid=1) == {"attached": False}
    assert attach(three, 1, 0) == 0
    assert ask(tmp_path / "control", command="detach", nsid=1) == {"attached": False}


def test_no_namespace_that_was_deleted_can_be_attached_by_the_host(three: Host, tmp_path: Path) -> None:
    assert three.admin.do(Admin.NAMESPACE_MANAGEMENT, nsid=2, cdw10=1).status == 0
    for nsid in (2, 4, 0, "1", None, True):
        assert "error" in ask(tmp_path / "control", command="attach", nsid=nsid)


def test_a_namespace_stays_detached_over_resets_and_is_seen_so_by_the_next_driver(three: Host, tmp_path: Path) -> None:
    ask(tmp_path / "control", command="detach", nsid=3)
    three.disable()
    three.enable()
    assert unpack_from("<3I", three.identify(2)) == (1, 2, 0)
    three.client.reset()
    three.enable()
    assert unpack_from("<3I", three.identify(2)) == (1, 2, 0)


@for_each_row(
    [
        ({}, "no image"),
        ({"image": "nowhere/disk.img"}, "nowhere"),
        ({"image": "{}/new.img"}, "new.img"),
        ({"image": "{}/new.img:0M"}, "0M"),
        ({"image": "{}/new.img:1M", "queues": 65}, "65"),
        ({"image": "{}/new.img:1M", "block_size": 1024}, "1024"),
    ]
)
def test_options_that_cannot_be_are_refused_with_a_reason(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        name: value.format(tmp_path) if isinstance(value, str) else value for name, value in options.items()
    }
    with pytest.raises(UserError, match=said):
        Nvme(**given)
