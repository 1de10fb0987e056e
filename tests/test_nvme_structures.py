"""What an NVMe controller says of itself, byte for byte, and each field of a command at, below and above its bound.

Offsets and bits are those of the NVM Express base specification 1.4: what a structure does not name here is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from struct import pack, unpack_from

import pytest

from tests.cases import for_each
from tests.nvme_kit import PAGE, Host, controller
from userdev_servers.nvme.spec import Admin, Feature, Io, LogPage, Status

ALL = 0xFFFFFFFF


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with controller(tmp_path, ",".join(f"{tmp_path / name}:1M" for name in "abc"), serial="abc") as (_, host):
        host.enable()
        host.create_queues()
        yield host


def laid_out(size: int, fields: dict[int, bytes]) -> bytes:
    """Bytes at their offsets, and zeros."""
    data = bytearray(size)
    for offset, content in fields.items():
        data[offset : offset + len(content)] = content
    return bytes(data)


FORMATS = {128: pack("<HBBHBB", 0, 9, 0, 0, 12, 0)}


def unique(nsid: int, size: int) -> bytes:
    return sha256(f"abc {nsid}".encode()).digest()[:size]


def namespace(nsid: int) -> dict[int, bytes]:
    identifiers = {104: unique(nsid, 16), 120: unique(nsid, 8)}
    return {
        0: pack("<QQQ", 2048, 2048, 2048),
        25: b"\1",
        33: b"\x09",
        48: pack("<Q", 1 << 20),
        **identifiers,
        **FORMATS,
    }


CONTROLLER: dict[int, bytes] = {
    0: pack("<HH", 0x4E58, 0x4E58),
    4: b"abc".ljust(20),
    24: b"vfio-user NVMe".ljust(40),
    64: b"1.0".ljust(8),
    77: b"\x08",
    80: pack("<I", 0x10400),
    92: pack("<I", 0x100),
    111: b"\1",
    256: pack("<HBB", 1 << 1 | 1 << 3 | 1 << 8, 3, 3),
    260: bytes([0b11, 0b110, 63]),
    266: pack("<HH", 0x157, 0x175),
    280: pack("<Q", 3 << 20),
    512: b"\x66\x44",
    516: pack("<IH", 3, 1 | 1 << 2 | 1 << 3 | 1 << 6),
    525: b"\7",
    536: pack("<I", 1 | 1 << 16),
    768: b"nqn.2014-08.org.nvmexpress:vfio-user:abc",
    2048: pack("<H", 2500),
}


def test_the_controller_is_what_the_table_says(host: Host) -> None:
    found = host.identify(1)
    vendor = found[:4]
    assert found[4:] == laid_out(PAGE, CONTROLLER)[4:]
    assert vendor[:2] == b"\x58\x4e"


STRUCTURES: dict[str, tuple[int, int, bytes]] = {
    "a namespace": (0x00, 2, laid_out(PAGE, namespace(2))),
    "what all namespaces have": (0x00, ALL, laid_out(PAGE, {25: b"\1", **FORMATS})),
    "active namespaces": (0x02, 0, laid_out(PAGE, {0: pack("<III", 1, 2, 3)})),
    "those behind the first": (0x02, 1, laid_out(PAGE, {0: pack("<II", 2, 3)})),
    "those behind the last": (0x02, 3, bytes(PAGE)),
    "those behind any that may be": (0x02, ALL - 2, bytes(PAGE)),
    "identifiers": (
        0x03,
        3,
        laid_out(PAGE, {0: b"\2\x10\0\0" + unique(3, 16) + b"\1\x08\0\0" + unique(3, 8)}),
    ),
    "allocated namespaces": (0x10, 1, laid_out(PAGE, {0: pack("<II", 2, 3)})),
    "an allocated namespace": (0x11, 3, laid_out(PAGE, namespace(3))),
    "controllers of a namespace": (0x12, 1, laid_out(PAGE, {0: pack("<HH", 1, 0)})),
    "controllers": (0x13, 0, laid_out(PAGE, {0: pack("<HH", 1, 0)})),
    "controllers from another number on": (0x13 | 1 << 16, 0, bytes(PAGE)),
}


@for_each(STRUCTURES)
def test_a_structure_is_what_the_specification_has(name: str, host: Host) -> None:
    cns, nsid, expected = STRUCTURES[name]
    assert host.identify(cns, nsid) == expected


def test_a_namespace_that_is_not_attached_is_described_where_all_are(host: Host) -> None:
    page = host.allocate(PAGE)
    host.write(page, pack("<HH", 1, 0))
    assert host.admin.do(Admin.NAMESPACE_ATTACHMENT, nsid=2, cdw10=1, prp1=page).status == 0
    assert host.identify(0x00, 2) == bytes(PAGE)
    assert host.identify(0x11, 2) == laid_out(PAGE, namespace(2))
    assert host.identify(0x02, 0) == laid_out(PAGE, {0: pack("<II", 1, 3)})
    assert host.identify(0x10, 0) == laid_out(PAGE, {0: pack("<III", 1, 2, 3)})
    assert host.identify(0x12, 2) == bytes(PAGE)
    assert unpack_from("<Q", host.identify(1), 296) == (0,)


def effects() -> bytes:
    changes_namespace = 1 | 1 << 2 | 1 << 3
    admin = {int(command): 1 for command in Admin} | {
        0x80: 1 | 1 << 1 | 1 << 2 | 1 << 16,
        0x0D: changes_namespace,
        0x15: changes_namespace,
    }
    io = {int(command): 1 for command in Io} | {0x01: 3, 0x08: 3, 0x09: 3}
    fields = {4 * code: pack("<I", bits) for code, bits in admin.items()}
    return laid_out(PAGE, fields | {1024 + 4 * code: pack("<I", bits) for code, bits in io.items()})


LOGS: dict[str, tuple[int, bytes]] = {
    "firmware": (LogPage.FIRMWARE, laid_out(512, {0: b"\1", 8: b"1.0".ljust(8)})),
    "effects": (LogPage.COMMAND_EFFECTS, effects()),
    "changed namespaces": (LogPage.CHANGED_NAMESPACES, bytes(4096)),
    "errors": (LogPage.ERRORS, bytes(4096)),
    "health": (
        LogPage.SMART,
        laid_out(512, {1: pack("<H", 0x143), 3: b"\x64\x0a", 112: b"\1"}),
    ),
}


@for_each(LOGS)
def test_a_log_page_is_what_the_specification_has(name: str, host: Host) -> None:
    number, expected = LOGS[name]
    assert host.log_page(number, len(expected)) == expected


def test_an_error_is_logged_whole(host: Host) -> None:
    """With its first block where it was an I/O command."""
    host.queues[1].do(Io.READ, nsid=2, cdw10=0x89ABCDEF, cdw11=0x1234567, prp1=host.allocate(PAGE))
    host.admin.do(Admin.IDENTIFY, nsid=7, cdw10=0x77, cdw11=9, prp1=host.allocate(PAGE))
    second, first = host.log_page(LogPage.ERRORS, 128)[:64], host.log_page(LogPage.ERRORS, 128)[64:]
    count, queue, _, status, place, block, nsid = unpack_from("<QHHHHQI", first)
    assert (count, queue, place, block, nsid) == (1, 1, 0xFFFF, 0x1234567_89ABCDEF, 2)
    assert status >> 1 & 0xFF == int(Status.LBA_OUT_OF_RANGE) & 0xFF
    count, queue, _, _, place, block, nsid = unpack_from("<QHHHHQI", second)
    assert (count, queue, place, block, nsid) == (2, 0, 0xFFFF, 0, 7)
    assert first[32:] == second[32:] == bytes(32)


def sensor(number: int, which: int) -> dict[str, int]:
    return {"cdw10": Feature.TEMPERATURE_THRESHOLD, "cdw11": 0x150 | number << 16 | which << 20}


GOOD, BAD = Status.SUCCESS, Status.INVALID_FIELD
BOUNDS: dict[str, tuple[int, dict[str, int], int]] = {
    "a log page from 0 on": (Admin.GET_LOG_PAGE, {"cdw10": 2 | 3 << 16, "cdw12": 0}, GOOD),
    "from its last word on": (Admin.GET_LOG_PAGE, {"cdw10": 2, "cdw12": 508}, GOOD),
    "from its end on": (Admin.GET_LOG_PAGE, {"cdw10": 2, "cdw12": 512}, BAD),
    "from 4 GiB on": (Admin.GET_LOG_PAGE, {"cdw10": 2, "cdw13": 1}, BAD),
    "from its first byte on": (Admin.GET_LOG_PAGE, {"cdw10": 2, "cdw12": 1}, BAD),
    "health of all": (Admin.GET_LOG_PAGE, {"cdw10": 2, "nsid": ALL}, GOOD),
    "health of a namespace": (Admin.GET_LOG_PAGE, {"cdw10": 2, "nsid": 1}, BAD),
    "the sensor": (Admin.SET_FEATURES, sensor(0, 0), GOOD),
    "its other threshold": (Admin.SET_FEATURES, sensor(0, 1), GOOD),
    "a threshold that it has not": (Admin.SET_FEATURES, sensor(0, 2), BAD),
    "nor this": (Admin.SET_FEATURES, sensor(0, 3), BAD),
    "all sensors": (Admin.SET_FEATURES, sensor(0xF, 0), GOOD),
    "all sensors to get": (Admin.GET_FEATURES, sensor(0xF, 0), BAD),
    "a second sensor": (Admin.SET_FEATURES, sensor(1, 0), BAD),
    "a second sensor to get": (Admin.GET_FEATURES, sensor(1, 0), BAD),
    "a feature's default": (Admin.GET_FEATURES, {"cdw10": Feature.ARBITRATION | 1 << 8}, GOOD),
    "what is supported of it": (Admin.GET_FEATURES, {"cdw10": Feature.ARBITRATION | 3 << 8}, GOOD),
    "what no selection is": (Admin.GET_FEATURES, {"cdw10": Feature.ARBITRATION | 4 << 8}, BAD),
    "the last vector": (Admin.SET_FEATURES, {"cdw10": Feature.INTERRUPT_VECTOR_CONFIG, "cdw11": 8}, GOOD),
    "one behind it": (Admin.SET_FEATURES, {"cdw10": Feature.INTERRUPT_VECTOR_CONFIG, "cdw11": 9}, BAD),
    "one behind it to get": (Admin.GET_FEATURES, {"cdw10": Feature.INTERRUPT_VECTOR_CONFIG, "cdw11": 9}, BAD),
    "no submission queues": (Admin.SET_FEATURES, {"cdw10": 7, "cdw11": 0xFFFF}, BAD),
    "no completion queues": (Admin.SET_FEATURES, {"cdw10": 7, "cdw11": 0xFFFF0000}, BAD),
    "a feature of a namespace": (
        Admin.SET_FEATURES,
        {"cdw10": Feature.ARBITRATION, "nsid": 1},
        Status.FEATURE_NOT_PER_NAMESPACE,
    ),
    "a feature of all": (Admin.SET_FEATURES, {"cdw10": Feature.ARBITRATION, "nsid": ALL}, GOOD),
    "namespaces behind the last number": (Admin.IDENTIFY, {"cdw10": 2, "nsid": ALL - 1}, Status.INVALID_NAMESPACE),
    "namespaces behind all": (Admin.IDENTIFY, {"cdw10": 2, "nsid": ALL}, Status.INVALID_NAMESPACE),
    "namespaces behind the one before": (Admin.IDENTIFY, {"cdw10": 2, "nsid": ALL - 2}, GOOD),
    "allocated behind the last number": (Admin.IDENTIFY, {"cdw10": 0x10, "nsid": ALL - 1}, Status.INVALID_NAMESPACE),
    "the last namespace": (Admin.IDENTIFY, {"cdw10": 0, "nsid": 3}, GOOD),
    "one behind it to identify": (Admin.IDENTIFY, {"cdw10": 0, "nsid": 4}, Status.INVALID_NAMESPACE),
}


@for_each(BOUNDS)
def test_a_field_may_have_what_is_within_its_bounds(name: str, host: Host) -> None:
    opcode, fields, expected = BOUNDS[name]
    done = host.admin.do(opcode, **{"prp1": host.allocate(2 * PAGE), **fields})
    assert done.status == expected
    assert host.identify(1)[24:28] == b"vfio"


def test_the_last_block_can_be_read_and_none_behind_it(host: Host) -> None:
    page = host.allocate(PAGE)
    for first, blocks, expected in (
        (2047, 1, GOOD),
        (2040, 8, GOOD),
        (2047, 2, Status.LBA_OUT_OF_RANGE),
        (2048, 1, Status.LBA_OUT_OF_RANGE),
        (1 << 32, 1, Status.LBA_OUT_OF_RANGE),
        ((1 << 64) - 1, 1, Status.LBA_OUT_OF_RANGE),
        ((1 << 64) - 1, 2, Status.LBA_OUT_OF_RANGE),
    ):
        for opcode in (Io.READ, Io.WRITE, Io.WRITE_ZEROES, Io.COMPARE):
            done = host.transfer(opcode, first, page, blocks << 9)
            assert done.status == expected, (opcode.name, first, blocks)
