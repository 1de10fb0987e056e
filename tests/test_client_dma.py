"""What a server asks of its client's memory: served meanwhile, and answered as its dialect has it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import pytest

from tests.cases import for_each_row
from tests.scripted_server import ScriptedServer
from tests.test_client_exchange import BOTH_COUNTS, mapping_of, talking
from userdev.errors import ProtocolError
from vfio_user.client import AddressSpace, GuestMemory, Mapping
from vfio_user.wire import (
    DIALECTS,
    DRAFT_V6,
    REPLY,
    Capabilities,
    Command,
    Dialect,
    Message,
)
from vfio_user.wire.constants import DmaFlags
from vfio_user.wire.layouts import DMA_ACCESS, DMA_ACCESS_32, DMA_ENTRY_V6, DMA_MAP


def test_memory_without_a_descriptor_is_mapped_at_no_offset_of_a_file() -> None:
    def echo(server: ScriptedServer, message: Message) -> Message:
        return message.reply(message.payload)

    for shared, offset in ((True, 0x1000), (False, 0)):
        with GuestMemory(0x2000, shared=shared) as ram, talking(echo) as (client, server):
            client.dma_map_all([Mapping(0x4000, 0x1000, ram, 0x1000)])
            asked = DMA_MAP.unpack(server.received[-1].payload)
            assert (asked.offset, asked.addr, asked.size) == (offset, 0x4000, 0x1000), shared


def test_no_map_has_more_descriptors_than_the_server_takes() -> None:
    """Four ranges, the second without memory to share: so many in each table of the draft, and of them with one."""

    def done(server: ScriptedServer, message: Message) -> Message:
        return message.reply()

    expected = {0: [(4, 0)], 1: [(2, 1), (1, 1), (1, 1)], 2: [(3, 2), (1, 1)], 3: [(4, 3)]}
    for most, tables in expected.items():
        limit = Capabilities(max_msg_fds=most)
        with (
            GuestMemory(0x1000) as ram,
            GuestMemory(0x1000, shared=False) as own,
            talking(done, dialect=DRAFT_V6, capabilities=limit) as (client, server),
        ):
            mappings = [Mapping(0x1000 * place, 0x1000, own if place == 1 else ram) for place in range(4)]
            client.dma_map_all(mappings)
            sent = [(len(message.payload) // DMA_ENTRY_V6.size, len(message.fds)) for message in server.received[1:]]
            assert sent == tables, most
            assert list(client.memory) == mappings


def test_memory_that_is_shared_keeps_its_size() -> None:
    """A server that has mapped it is not to be killed by a client that makes it smaller."""
    with GuestMemory(0x2000) as ram:
        assert ram.fd is not None
        for size in (0x1000, 0x3000):
            with pytest.raises(PermissionError):
                os.ftruncate(ram.fd, size)


@BOTH_COUNTS
def test_a_dma_read_is_served_while_a_reply_is_awaited(dialect: Dialect) -> None:
    heard: list[Message] = []
    layout = dialect.shapes[Command.DMA_READ].request
    assert layout is not None

    def script(server: ScriptedServer, message: Message) -> Message:
        heard.append(server.ask(Command.DMA_READ, layout.pack(0x1004, 4)))
        return message.reply()

    with GuestMemory(0x1000, shared=False) as ram, talking(script, dialect=dialect) as (client, _):
        ram.view[4:8] = b"abcd"
        client.memory.add(mapping_of(ram))
        client.reset()
    reply = heard[0]
    assert (reply.flags, reply.errno) == (REPLY, 0)
    assert layout.unpack(reply.payload) == (0x1004, 4)
    assert reply.payload[layout.size : layout.size + 4] == b"abcd"


@for_each_row(
    [
        ("current", 32, 4),
        ("draft-v6", 28, 0),
        ("region-migration", 32, 4),
        ("current-dma32", 16, None),
        ("region-migration-dma32", 16, None),
    ]
)
def test_a_dma_write_is_answered_as_the_dialect_has_it(dialect: str, size: int, count: int | None) -> None:
    """Dialects, section 9.5."""
    heard: list[Message] = []
    spoken = DIALECTS[dialect]
    layout = spoken.shapes[Command.DMA_WRITE].request
    assert layout is not None

    def script(server: ScriptedServer, message: Message) -> Message:
        heard.append(server.ask(Command.DMA_WRITE, layout.pack(0x1FFE, 4, tail=b"wxyz")))
        return message.reply()

    with GuestMemory(0x2000, shared=False) as ram, talking(script, dialect=spoken) as (client, _):
        client.memory.add(mapping_of(ram))
        client.reset()
        assert bytes(ram.view[0xFFE:0x1002]) == b"wxyz"
        assert client.memory.dirty == {0x1000, 0x2000}
    assert heard[0].size == size
    if count is not None:
        assert layout.unpack(heard[0].payload).length == count


@for_each_row(
    [
        (Command.DMA_READ, DMA_ACCESS.pack(0x9000, 4), errno.ENODEV),
        (Command.DMA_READ, DMA_ACCESS.pack(0x1FFE, 4), errno.ENODEV),
        (Command.DMA_WRITE, DMA_ACCESS.pack(0x1000, 4, tail=b"abcd"), errno.EPERM),
        (Command.DMA_READ, DMA_ACCESS.pack(0x1000, 0x100001), errno.E2BIG),
        (Command.DMA_WRITE, DMA_ACCESS.pack(0x1000, 5, tail=b"abcd"), errno.E2BIG),
        (Command.DMA_READ, DMA_ACCESS_32.pack(0x1000, 4), errno.EINVAL),
        (Command.DEVICE_RESET, b"", errno.ENOSYS),
    ],
    ids=["unmapped", "over the end", "read-only", "read too long", "write too long", "too short", "not the server's"],
)
def test_the_servers_bad_requests_get_qemus_errno(command: Command, payload: bytes, expected: int) -> None:
    heard: list[Message] = []

    def script(server: ScriptedServer, message: Message) -> Message:
        heard.append(server.ask(command, payload))
        return message.reply()

    with GuestMemory(0x1000, shared=False) as ram, talking(script) as (client, _):
        client.memory.add(Mapping(0x1000, 0x1000, ram, 0, DmaFlags.READ))
        client.reset()
        assert not any(ram.view)
    assert (heard[0].failed, heard[0].errno, heard[0].payload) == (True, expected, b"")


def test_dma_reaches_across_neighbouring_mappings() -> None:
    with GuestMemory(0x1000, shared=False) as low, GuestMemory(0x1000) as high:
        space = AddressSpace()
        space.add(Mapping(0x2000, 0x1000, high))
        space.add(Mapping(0x1000, 0x1000, low))
        space.write(0x1FFE, b"abcd")
        assert (bytes(low.view[-2:]), bytes(high.view[:2])) == (b"ab", b"cd")
        assert space.read(0x1FFE, 4) == b"abcd"
        space.remove(0x2000, 0x1000)
        with pytest.raises(ProtocolError):
            space.write(0x1FFE, b"efgh")
        assert bytes(low.view[-2:]) == b"ab"


def test_what_is_unmapped_is_served_no_more_however_much_of_it_went_at_once() -> None:
    """QEMU unmaps whole ranges behind an IOMMU, and the draft has parts: a server that still used it would pass."""
    with GuestMemory(0x6000, shared=False) as ram:
        ram.view[:] = b"".join(bytes([page]) * 0x1000 for page in range(6))
        space = AddressSpace()
        for place in (0, 2, 4):
            space.add(Mapping(0x10000 + 0x1000 * place, 0x2000, ram, 0x1000 * place))
        space.remove(0x11000, 0x3000)
        found = dict.fromkeys(range(6), b"")
        for page in found:
            with suppress(ProtocolError):
                found[page] = space.read(0x10000 + 0x1000 * page, 1)
        assert found == {0: b"\0", 1: b"", 2: b"", 3: b"", 4: b"\4", 5: b"\5"}
        for range_, left in {(0x14800, 0): 2, (0x14800, 0x800): 3, (0, 1 << 64): 0}.items():
            space.remove(*range_)
            assert len(space) == left, range_


def test_what_the_device_may_not_do_it_may_not_do_across_neighbours_either() -> None:
    for access, other in ((DmaFlags.READ, DmaFlags.WRITE), (DmaFlags.WRITE, DmaFlags.READ)):
        for refused in range(4):
            with GuestMemory(0x3000, shared=False) as ram:
                space = AddressSpace()
                for place in range(3):
                    rights = other if place == refused else access
                    space.add(Mapping(0x1000 * (1 + place), 0x1000, ram, 0x1000 * place, rights))
                said = 0
                try:
                    if access is DmaFlags.READ:
                        space.read(0x1FFF, 0x1002)
                    else:
                        space.write(0x1FFF, b"x" * 0x1002)
                except ProtocolError as error:
                    said = error.errno
                assert said == (errno.EPERM if refused < 3 else 0), (access, refused)
                written = access is DmaFlags.WRITE and not said
                assert any(ram.view) is written, (access, refused)
                assert bool(space.dirty) is written, (access, refused)
