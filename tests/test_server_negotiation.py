"""VERSION as the server answers it, and the second socket that it may hand out with the answer."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.device_kit import descriptors_left
from userdev.errors import ProtocolError
from userdev.transport import Stream, close_all
from vfio_user.server.negotiation import Agreement, Offer, Twin, VersionAnswer, negotiate
from vfio_user.wire import (
    CURRENT,
    DRAFT_V6,
    REGION_MIGRATION,
    Capabilities,
    Command,
    Dialect,
    Message,
    decode_version,
    encode_version,
)
from vfio_user.wire.layouts import VERSION


def propose(
    minor: int, capabilities: Capabilities | None = None, dialect: Dialect = CURRENT
) -> tuple[Agreement | None, VersionAnswer]:
    payload = encode_version(dialect, minor, capabilities or Capabilities())
    message = Message(1, dialect.number(Command.VERSION), payload=payload)
    return negotiate(message, dialect, Offer(), migration_pgsize=4096)


@for_each([CURRENT, DRAFT_V6], [-1, 0, 1])
def test_the_smaller_minor_is_agreed_on(dialect: Dialect, above: int) -> None:
    smaller = dialect.minor + min(above, 0)
    agreement, answer = propose(dialect.minor + above, dialect=dialect)
    assert agreement is not None
    assert answer.message is not None
    assert agreement.minor == smaller
    assert decode_version(dialect, answer.message.payload).minor == smaller


@for_each_row(
    [
        (CURRENT, 65536, False),
        (CURRENT, 1024, False),
        (DRAFT_V6, 65536, True),
        (DRAFT_V6, 5000, True),
        (DRAFT_V6, 1024, True),
        (DRAFT_V6, 1000, False),
        (REGION_MIGRATION, 65536, True),
    ]
)
def test_other_pages_of_migration_than_ours_are_taken_where_the_smaller_of_both_is_used(
    dialect: Dialect, size: int, taken: bool
) -> None:
    agreement, answer = propose(0, Capabilities(migration_pgsize=size), dialect)
    assert (agreement is not None) is taken
    assert answer.message is not None
    assert answer.message.errno == (0 if taken else errno.EINVAL)


def offered() -> dict[str, Any]:
    """The capabilities in what a server answers a client that has what QEMU has."""
    numbers = Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20, pgsizes=4096, max_dma_maps=65535)
    _, answer = propose(0, replace(numbers, write_multiple=True, migration_pgsize=4096))
    assert answer.message is not None
    version, _, text = answer.message.payload.partition(b"{")
    assert len(version) == 4
    return dict(json.loads((b"{" + text).rstrip(b"\0"))["capabilities"])


def test_what_a_server_offers_has_no_page_size_that_qemu_refuses() -> None:
    """The known issue version-page-sizes: a bit each, and none is smaller than those of an x86 machine."""
    sizes = offered()["pgsizes"]
    assert sizes
    assert sizes % 4096 == 0


def test_what_a_server_offers_is_what_the_specification_has() -> None:
    """The known issue version-malformed: numbers, truth values, and migration an object with its page size."""
    found = offered()
    assert found.pop("migration") == {"pgsize": 4096}
    kinds = dict.fromkeys(("max_msg_fds", "max_data_xfer_size", "pgsizes", "max_dma_maps"), int)
    assert {name: type(value) for name, value in found.items()} == {
        name: {**kinds, "write_multiple": bool}.get(name) for name in found
    }


@for_each([64, 80, 100, 150, 200, 300])
def test_a_reply_is_no_longer_than_the_proposal_which_is_the_clients_room(size: int) -> None:
    """QEMU's buffer is as large as what it has proposed."""
    head, end = VERSION.pack(0, 1, tail=b'{"capabilities":{"max_msg_fds":8},"x":"'), b'"}\0'
    proposal = Message(1, 1, payload=head + b"x" * (size - len(head) - len(end)) + end)
    agreement, answer = negotiate(proposal, CURRENT, Offer(write_multiple=True), migration_pgsize=4096)
    assert agreement is not None
    assert answer.message is not None
    assert len(answer.message.payload) <= len(proposal.payload) == size


def test_a_short_proposal_is_nobodys_room() -> None:
    proposal = Message(1, 1, payload=VERSION.pack(0, 1, tail=b"{}\0"))
    _, answer = negotiate(proposal, CURRENT, Offer(), migration_pgsize=4096)
    assert answer.message is not None
    assert len(answer.message.payload) > 64


def test_a_twin_socket_is_handed_out_to_who_asks_for_one_and_can_receive_it() -> None:
    for dialect, offers, asks, fds, twin in (
        (CURRENT, True, True, 1, True),
        (CURRENT, True, True, None, True),
        (CURRENT, True, True, 16, True),
        (CURRENT, True, True, 0, False),
        (CURRENT, True, False, 1, False),
        (CURRENT, True, None, 1, False),
        (CURRENT, False, True, 1, False),
        (DRAFT_V6, True, True, 1, False),
    ):
        has = Capabilities(twin_socket=asks, max_msg_fds=fds, pgsizes=4096, max_dma_maps=65535, write_multiple=True)
        message = Message(1, dialect.number(Command.VERSION), payload=encode_version(dialect, 0, has))
        agreement, answer = negotiate(message, dialect, Offer(twin_socket=offers), migration_pgsize=None)
        case = dialect.name, offers, asks, fds
        assert agreement is not None, case
        assert answer.message is not None, case
        said = decode_version(dialect, answer.message.payload).capabilities
        assert (agreement.twin is not None, len(answer.message.fds)) == (twin, twin), case
        assert (bool(said.twin_socket), said.twin_socket_fd_index) == (twin, 0 if twin else None), case
        if agreement.twin is not None:
            agreement.twin.close()
        close_all(answer.message.fds)


@pytest.fixture
def twin() -> Iterator[tuple[Twin, Stream]]:
    ours, theirs = socket.socketpair()
    client, twin = Stream(theirs), Twin(Stream(ours))
    yield twin, client
    twin.close()
    client.close()


def test_the_twin_socket_brings_the_reply(twin: tuple[Twin, Stream]) -> None:
    server, client = twin
    request = Message(7, CURRENT.number(Command.DMA_READ), payload=bytes(16))
    client.send(request.reply(b"data").encode())
    assert server.exchange(request).payload == b"data"


def test_a_command_on_the_twin_socket_is_an_error(twin: tuple[Twin, Stream]) -> None:
    server, client = twin
    client.send(Message(7, 11, payload=bytes(16)).encode())
    with pytest.raises(ProtocolError) as wrong:
        server.exchange(Message(7, CURRENT.number(Command.DMA_READ), payload=bytes(16)))
    assert wrong.value.errno == errno.EPROTO


def test_a_reply_to_something_else_on_the_twin_socket_is_dropped_and_said_once(
    twin: tuple[Twin, Stream], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = twin
    client.send(Message(8, 11).reply(bytes(16)).encode() * 9 + Message(7, 11).reply(b"this").encode())
    assert server.exchange(Message(7, CURRENT.number(Command.DMA_READ), payload=bytes(16))).payload == b"this"
    assert len(caplog.records) == 1


def test_a_reply_on_the_twin_socket_whose_descriptors_are_lost_costs_nothing_behind_it(
    twin: tuple[Twin, Stream],
) -> None:
    server, client = twin
    request = Message(7, CURRENT.number(Command.DMA_READ), payload=bytes(16))
    client.send(request.reply(b"that").encode(), [client.fileno()])
    with descriptors_left(0), pytest.raises(ProtocolError) as lost:
        server.exchange(request)
    assert lost.value.errno == errno.EMFILE
    client.send(request.reply(b"this").encode())
    assert server.exchange(request).payload == b"this"


@for_each_row([(None, 1 << 20), (0, 1 << 20), (1, 1), (1 << 20, 1 << 20), (1 << 21, 1 << 20)])
def test_a_message_has_no_more_data_than_either_side_takes(said: int | None, used: int) -> None:
    assert Agreement(client=Capabilities(max_data_xfer_size=said)).data_per_message == used
