"""VERSION: what is proposed, what is taken, and who is refused (docs/protocol.md 3)."""

from __future__ import annotations

import dataclasses
import json
import string
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from userdev.errors import ProtocolError
from vfio_user.wire import CURRENT, DRAFT_V6, REGION_MIGRATION, Capabilities, decode_version, encode_version
from vfio_user.wire.capabilities import ALL

QEMU = (
    b'{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,'
    b'"migration":{"max_bitmap_size":268435456,"pgsize":4096},"write_multiple":true}}\0'
)
LIBVFIO_USER = (
    b'{ "capabilities": { "max_msg_fds": 8, "max_data_xfer_size": 1048576, '
    b'"migration": { "pgsize": 4096 }, "twin_socket": { "supported": true, "fd_index": 0 } } }\0'
)


def payload(json: bytes, *, major: int = 0, minor: int = 0) -> bytes:
    return major.to_bytes(2, "little") + minor.to_bytes(2, "little") + json


CAPABILITIES = st.builds(
    Capabilities,
    max_msg_fds=st.none() | st.integers(0, 1024),
    max_data_xfer_size=st.none() | st.integers(0, 1 << 40),
    pgsizes=st.none() | st.integers(0, (1 << 64) - 1),
    max_dma_maps=st.none() | st.integers(0, 1 << 32),
    write_multiple=st.none() | st.booleans(),
    twin_socket=st.booleans(),
    twin_socket_fd_index=st.none() | st.integers(0, 1023),
    migration_pgsize=st.none() | st.integers(0, 1 << 40),
    migration_max_bitmap_size=st.none() | st.integers(0, 1 << 40),
)


@given(capabilities=CAPABILITIES, minor=st.integers(0, 0xFFFF))
def test_what_is_said_is_what_is_heard(capabilities: Capabilities, minor: int) -> None:
    for dialect in (CURRENT, REGION_MIGRATION):
        heard = decode_version(dialect, encode_version(dialect, minor, capabilities))
        assert (heard.major, heard.minor, heard.capabilities) == (0, minor, capabilities)


def test_qemus_proposal_is_understood() -> None:
    assert decode_version(CURRENT, payload(QEMU)).capabilities == Capabilities(
        max_msg_fds=16,
        max_data_xfer_size=1 << 20,
        pgsizes=4096,
        max_dma_maps=65535,
        write_multiple=True,
        migration_pgsize=4096,
        migration_max_bitmap_size=256 << 20,
    )


def test_libvfio_users_reply_is_understood() -> None:
    heard = decode_version(CURRENT, payload(LIBVFIO_USER, minor=2))
    assert heard.minor == 2
    assert heard.capabilities == Capabilities(
        max_msg_fds=8,
        max_data_xfer_size=1 << 20,
        twin_socket=True,
        twin_socket_fd_index=0,
        migration_pgsize=4096,
    )


@for_each([b"", b"{}\0", b"[]\0", b'{"capabilities":{}}\0', b'{"new":1}\0'])
def test_what_is_not_said_has_its_default(text: bytes) -> None:
    heard = decode_version(CURRENT, payload(text)).capabilities
    assert heard == Capabilities()
    assert (heard.fds_per_message, heard.data_per_message) == (1, 1 << 20)


@for_each_row(
    [
        ({"twin_socket": {}}, Capabilities(twin_socket=False)),
        ({"twin_socket": {"fd_index": 3}}, Capabilities(twin_socket=False, twin_socket_fd_index=3)),
        ({"twin_socket": {"supported": True}}, Capabilities(twin_socket=True)),
        ({"migration": {}}, Capabilities()),
        ({"migration": {"pgsize": 4096}}, Capabilities(migration_pgsize=4096)),
        ({"migration": {"max_bitmap_size": 256}}, Capabilities(migration_max_bitmap_size=256)),
    ]
)
def test_what_an_object_does_not_say_has_its_default(said: dict[str, object], heard: Capabilities) -> None:
    data = payload(json.dumps({"capabilities": said}).encode() + b"\0")
    assert decode_version(CURRENT, data).capabilities == heard


@for_each_row(
    [
        ("max_msg_fds", 1024),
        ("max_data_xfer_size", (1 << 64) - 1),
        ("pgsizes", (1 << 64) - 1),
        ("max_dma_maps", (1 << 64) - 1),
        ("twin_socket.fd_index", 1023),
        ("migration.pgsize", (1 << 64) - 1),
        ("migration.max_bitmap_size", (1 << 64) - 1),
    ]
)
def test_a_number_has_its_bounds_and_what_is_outside_is_named(path: str, most: int) -> None:
    def said(number: int) -> bytes:
        inside, _, name = path.rpartition(".")
        capability = {inside: {name: number}} if inside else {name: number}
        return payload(json.dumps({"capabilities": capability}).encode() + b"\0")

    for number in (0, most):
        capabilities = dataclasses.asdict(decode_version(CURRENT, said(number)).capabilities)
        assert number in [value for value in capabilities.values() if value is not False]
    for number in (-1, most + 1):
        with pytest.raises(ProtocolError, match=rf"\b{path}\b"):
            decode_version(CURRENT, said(number))


def test_a_peer_that_says_its_limits_is_held_to_them() -> None:
    heard = Capabilities(max_msg_fds=0, max_data_xfer_size=4096)
    assert (heard.fds_per_message, heard.data_per_message) == (0, 4096)


def test_capabilities_nobody_knows_are_ignored() -> None:
    heard = decode_version(CURRENT, payload(b'{"capabilities":{"max_msg_fds":2,"warp":{"x":[1]}}}\0'))
    assert heard.capabilities == Capabilities(max_msg_fds=2)


def test_json_at_the_offset_that_the_draft_prints_is_found() -> None:
    """The draft puts the data at 22 where its own sizes give 20."""
    heard = decode_version(DRAFT_V6, payload(b"\0\0" + b'{"capabilities":{"max_fds":3}}\0'))
    assert heard.capabilities.max_msg_fds == 3


@for_each(
    [
        b"",
        b"\0",
        b"\0\0\0",
        payload(QEMU, major=1),
        payload(QEMU[:-1]),
        payload(b"{\0"),
        payload(b"nonsense\0"),
        payload(b"\xff\xfe{\0}\0\0"),
        payload(b"{\0}\0\0"),
        payload(b'{"capabilities":"\xff"}\0'),
        payload(b"[" * 100_000 + b"\0"),
        payload(b'{"capabilities":"x"}\0'),
        payload(b'{"capabilities":null}\0'),
        payload(b'{"capabilities":{"max_msg_fds":"x"}}\0'),
        payload(b'{"capabilities":{"max_msg_fds":-1}}\0'),
        payload(b'{"capabilities":{"max_msg_fds":1025}}\0'),
        payload(b'{"capabilities":{"max_msg_fds":1.5}}\0'),
        payload(b'{"capabilities":{"max_msg_fds":true}}\0'),
        payload(b'{"capabilities":{"max_data_xfer_size":"x"}}\0'),
        payload(b'{"capabilities":{"max_data_xfer_size":-5}}\0'),
        payload(b'{"capabilities":{"migration":3}}\0'),
        payload(b'{"capabilities":{"migration":{"pgsize":"x"}}}\0'),
        payload(b'{"capabilities":{"twin_socket":true}}\0'),
        payload(b'{"capabilities":{"twin_socket":{"supported":1}}}\0'),
        payload(b'{"capabilities":{"write_multiple":1}}\0'),
    ]
)
def test_what_is_malformed_is_fatal_and_einval(wrong: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_version(CURRENT, wrong)
    assert (caught.value.errno, caught.value.fatal) == (22, True)


@given(st.binary(max_size=64) | st.text(string.printable, max_size=64).map(lambda t: b"\0\0\0\0{" + t.encode() + b"\0"))
def test_noise_is_a_proposal_or_the_one_error(noise: bytes) -> None:
    for dialect in (CURRENT, DRAFT_V6):
        with suppress(ProtocolError):
            assert decode_version(dialect, noise).major == 0


@for_each_row(
    [
        (CURRENT, "max_msg_fds", True),
        (CURRENT, "max_fds", False),
        (DRAFT_V6, "max_fds", True),
        (DRAFT_V6, "max_msg_fds", False),
        (REGION_MIGRATION, "max_msg_fds", True),
    ]
)
def test_a_peer_of_another_dialect_is_told_apart_by_its_keys(dialect, key: str, taken: bool) -> None:  # type: ignore[no-untyped-def]
    data = payload(json.dumps({"capabilities": {key: 4}}).encode() + b"\0")
    if taken:
        assert decode_version(dialect, data).capabilities.max_msg_fds == 4
    else:
        with pytest.raises(ProtocolError):
            decode_version(dialect, data)


def test_a_reply_is_made_to_fit_the_room_that_the_client_has() -> None:
    """QEMU's forks of 2022 read the reply into 104 bytes of payload; what is left out has a default."""
    everything = Capabilities(16, 1 << 20, 4096, 65535, migration_pgsize=4096)
    full = encode_version(CURRENT, 0, everything)
    for limit in (len(full), 104, 90, 70):
        reply = encode_version(CURRENT, 0, everything, limit=limit)
        assert len(reply) <= limit
        heard = decode_version(CURRENT, reply).capabilities
        assert heard.max_msg_fds == 16
        assert reply[-1:] == b"\0"
    with pytest.raises(ProtocolError):
        encode_version(CURRENT, 0, everything, limit=20)


def test_a_limit_below_the_default_is_said_however_little_room_there_is() -> None:
    """A peer that is not told sends as much as the default allows, and one such message ends the session."""
    said = Capabilities(max_msg_fds=16, pgsizes=4096, max_dma_maps=65535, migration_pgsize=4096)
    for most, is_said in {4096: True, (1 << 20) - 1: True, 1 << 20: False, 1 << 21: False}.items():
        reply = encode_version(CURRENT, 0, replace(said, max_data_xfer_size=most), limit=70)
        heard = decode_version(CURRENT, reply).capabilities
        assert heard.max_data_xfer_size == (most if is_said else None), most


@for_each([CURRENT, REGION_MIGRATION, DRAFT_V6])
def test_no_more_is_left_out_than_there_is_no_room_for(dialect) -> None:  # type: ignore[no-untyped-def]
    """A payload that is just as long as the room is sent as it is."""
    everything = Capabilities(16, 1 << 20, 4096, 65535, True, migration_pgsize=4096, migration_max_bitmap_size=1 << 28)
    full = encode_version(dialect, 0, everything)
    assert encode_version(dialect, 0, everything, limit=len(full)) == full
    for room in range(40, len(full)):
        with suppress(ProtocolError):
            fits = encode_version(dialect, 0, everything, limit=room)
            assert len(fits) <= room
            assert encode_version(dialect, 0, everything, limit=len(fits)) == fits


def test_every_capability_is_read_and_written() -> None:
    assert {field.name for field in dataclasses.fields(Capabilities)} == ALL
