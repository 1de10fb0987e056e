"""One client after another: what is left behind, what may not be, and clients that send rubbish."""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager, closing, nullcontext, suppress

from userdev.conformance.check import Group, Level, Skip, require
from userdev.counted import counted
from userdev.errors import UserError
from userdev.transport import MAX_FDS_PER_SEND
from vfio_user.client.channel import Channel
from vfio_user.client.conformance.bench import UNUSED_IOVA, Bench
from vfio_user.client.errors import Disconnected, NoAnswer, StrayReply
from vfio_user.wire import HEADER, Command, Message
from vfio_user.wire.constants import RegionIndex
from vfio_user.wire.layouts import IRQ_SET, REGION_ACCESS

session = Group[Bench]("session", "protocol.md 11: connection lost; spec: Client Disconnection")

BASE = 0x10_0000
SIZE = 0x1_0000
_READ = REGION_ACCESS.pack(0, RegionIndex.CONFIG, 4)


@session.check("next-client")
def next_client(bench: Bench) -> None:
    """A client that leaves leaves the device ready for the next one, which finds it as it was described."""
    before = bench.snapshot()
    bench.client.close()
    second = bench.connect()
    require(second.device_info() == before["GET_INFO"], "the next client finds another device")


@session.check("maps-are-dropped", needs=("dma_map/map-and-unmap",))
def maps_are_dropped(bench: Bench) -> None:
    """What one client mapped is not mapped for the next."""
    bench.need_dma()
    if not bench.ask(Command.DMA_UNMAP, bench.unmap_request(UNUSED_IOVA, SIZE)).failed:
        raise Skip("what was never mapped is unmapped, too: nobody can tell what is mapped")
    request = bench.unmap_request(BASE, SIZE)
    bench.client.dma_map(BASE, bench.memory(SIZE))
    bench.client.close()
    second = bench.connect()
    reply = bench.ask(Command.DMA_UNMAP, request, client=second)
    require(bench.failed(reply), "unmapping what the last client mapped succeeded")
    second.dma_map(BASE, bench.memory(SIZE))
    second.dma_unmap(BASE, SIZE)


@session.check("irqs-are-dropped", needs=("set_irqs/trigger",))
def irqs_are_dropped(bench: Bench) -> None:
    """The eventfds of one client are not fired for the next."""
    bench.need_fds()
    irq, eventfd = bench.irq().irq, bench.eventfd()
    bench.client.enable_irqs(irq, [eventfd])
    bench.client.close()
    second = bench.connect()
    eventfd.take()  # what a device that interrupts by itself had fired until then
    second.trigger_irqs(irq)
    require(eventfd.take() == 0, "an eventfd of the last client was fired")


@session.check("many-clients", level=Level.REFERENCE)
def many_clients(bench: Bench) -> None:
    """Fifty clients, one after another, are all served."""
    bench.client.close()
    for _ in range(50):
        client = bench.connect()
        client.device_info()
        client.close()


@session.check("second-at-once", level=Level.REFERENCE, rule="spec: one connection per client; needs N1: hangs")
def second_at_once(bench: Bench) -> None:
    """A second client while the first is served does not disturb the first."""
    first = bench.client
    try:
        second: AbstractContextManager[object] = closing(bench.target.connect())
    except UserError:
        second = nullcontext()  # nobody listens: that is an answer
    with second:
        for _ in range(10):
            first.config_read(0, 4)
    first.device_info()


@session.check("fds-are-closed", rule="protocol.md 4: unexpected fds are closed")
def fds_are_closed(bench: Bench) -> None:
    """Descriptors that a command has no use for are closed by the server."""
    bench.need_fds()
    client = bench.client
    client.device_info()
    before = bench.server_fds()
    fds = [bench.memfd() for _ in range(4)]
    for command, payload in (
        (Command.REGION_READ, _READ),
        (Command.DEVICE_RESET, b""),
        (Command.SET_IRQS, bytes(IRQ_SET.size)),
    ):
        for _ in range(5):
            bench.ask(command, payload, fds)
    client.device_info()  # those of the last request may be closed behind its reply
    more = bench.left_open(before, client)
    require(more <= 0, f"the server keeps {counted(more, 'descriptor')} open")


@session.check("nothing-is-left", rule="protocol.md 11: connection lost")
def nothing_is_left(bench: Bench) -> None:
    """A client that mapped memory and set eventfds leaves no descriptor behind in the server."""
    bench.need_fds()
    types = [irq.irq for irq in bench.irqs if irq.nr_vectors]
    before = bench.server_fds()
    bench.client.close()
    for _ in range(3):
        client = bench.connect()
        for i in range(4):
            client.dma_map(BASE + i * SIZE, bench.memory(SIZE))
        for irq in types:
            client.enable_irqs(irq, [bench.eventfd()])
        client.close()
    last = bench.connect()
    last.device_info()
    more = bench.left_open(before, last)
    require(more <= 0, f"the server keeps {counted(more, 'descriptor')} open")


def _endure(channel: Channel, data: bytes) -> None:
    """Send it and nothing more, and take whatever comes until the server has had enough, or has nothing to say."""
    channel.send_bytes(data)
    channel.end_sending()
    channel.serve_until(lambda: False, timeout=0.05)


@session.check("rubbish", rule="the server may not trust a client")
def rubbish(bench: Bench) -> None:
    """Clients that send rubbish behind a good VERSION cost the server nothing but their own connection."""
    noise = random.Random(20201109)
    for round_ in range(20):
        client = bench.connect()
        with suppress(Disconnected, NoAnswer, StrayReply):  # what answers a header that was rubbish is no reply
            _endure(client.channel, noise.randbytes(1 + 100 * round_))
        client.close()
    bench.alive()


@session.check("fds-on-rubbish", rule="the server may not trust a client")
def fds_on_rubbish(bench: Bench) -> None:
    """As many descriptors as the kernel takes, on half a message and on many, leave none open in the server."""
    bench.need_fds()
    bench.client.device_info()
    before = bench.server_fds()
    bench.client.close()
    fd = bench.memfd()
    whole = Message(1, bench.dialect.number(Command.REGION_READ), payload=_READ).encode()
    for data in (whole[:7], whole[:20], HEADER.pack(1, 9, 0xFFFF_FFFF, 0, 0)):
        client = bench.connect()
        client.channel.expect(1, "what may come")
        try:
            for byte in data:
                client.channel.send_bytes(bytes([byte]), [fd] * (MAX_FDS_PER_SEND // 8))
        except (Disconnected, OSError, NoAnswer):
            pass
        client.close()
    last = bench.connect()
    last.device_info()
    more = bench.left_open(before, last)
    require(more <= 0, f"the server keeps {counted(more, 'descriptor')} open")


@session.check("interrupted-write", rule="half a write is no write")
def interrupted_write(bench: Bench) -> None:
    """A write that a client did not finish is not done."""
    before = bench.client.config_read(0x3C, 1)
    number = bench.dialect.number(Command.REGION_WRITE)
    value = bytes([before[0] ^ 0x55])
    data = Message(1, number, payload=REGION_ACCESS.pack(0x3C, RegionIndex.CONFIG, 2, tail=value + b"x")).encode()
    bench.client.channel.send_bytes(data[:-1])
    bench.client.close()
    after = bench.connect().config_read(0x3C, 1)
    require(after != value or before == value, "half a write was done")


@session.check("memory", rule="the server may not trust a client", level=Level.REFERENCE)
def memory(bench: Bench) -> None:
    """Messages that say they have 1 MiB and never come cost bounded memory."""
    bench.client.device_info()
    if bench.target.pid is None:
        raise Skip("the server's process is not known: give --server-command")
    before = _resident(bench.target.pid)
    bench.client.close()
    for _ in range(20):
        client = bench.connect()
        client.channel.send_bytes(HEADER.pack(1, bench.dialect.number(Command.REGION_WRITE), 1 << 20, 0, 0) + bytes(64))
        client.close()
    bench.connect().device_info()
    grown = _resident(bench.target.pid) - before
    require(grown < 64 << 20, f"the server has grown by {grown >> 20} MiB")


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
