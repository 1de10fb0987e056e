"""REGION_READ, REGION_WRITE, REGION_WRITE_MULTI and DEVICE_RESET."""

from __future__ import annotations

from collections.abc import Callable

from userdev.conformance.check import Group, Level, Skip, Unmet, require
from vfio_user.client.conformance.bench import DESCRIBED, INTERRUPT_LINE, Bench, keeps_its_line
from vfio_user.client.conformance.dialects import CURRENT_FAMILY
from vfio_user.client.conformance.refusals import Bad, enter
from vfio_user.client.reading import read_as
from vfio_user.wire import Command
from vfio_user.wire.constants import DeviceFlags, RegionIndex
from vfio_user.wire.layouts import REGION_ACCESS, WRITE_MULTI, WRITE_MULTI_ENTRY

WRITTEN = ("region_write/stays",)
"""Of a server that does not keep this rule other writes, and what refusals they meet, say nothing."""

region_read = Group[Bench]("region_read", "protocol.md 9.4: REGION_READ")
region_write = Group[Bench]("region_write", "protocol.md 9.4: REGION_WRITE")
write_multi = Group[Bench]("write_multi", "protocol.md 9.8: REGION_WRITE_MULTI", dialects=CURRENT_FAMILY)
reset = Group[Bench]("reset", "protocol.md 9.7: DEVICE_RESET")

_CONFIG = RegionIndex.CONFIG
_WRAPS = (1 << 64) - 2
_HEADER = 64


def _config_size(bench: Bench) -> int:
    size = bench.region(_CONFIG).size
    if size >= _HEADER:
        return size
    raise Unmet("region_info/describes-every-region", f"config space has {size} bytes, and its header {_HEADER}")


def _read(offset: int, count: int, region: int = _CONFIG) -> bytes:
    return REGION_ACCESS.pack(offset, region, count)


def _write(offset: int, data: bytes, region: int = _CONFIG, count: int | None = None) -> bytes:
    return REGION_ACCESS.pack(offset, region, len(data) if count is None else count, tail=data)


def _empty_region(bench: Bench) -> int:
    for region in bench.regions:
        if not region.size:
            return region.index
    raise Skip("every region exists")


@region_read.check("reply", rule="spec: REGION Read/Write Data")
def read_reply(bench: Bench) -> None:
    """The reply repeats offset and region, and count is the bytes that follow."""
    size = _config_size(bench)
    most = min(size, bench.client.data_limit)
    for offset, count in ((0, 1), (2, 2), (0, 4), (8, 4), (0, 8), (0, min(64, most)), (0, most), (size - 1, 1)):
        reply = bench.good(bench.ask(Command.REGION_READ, _read(offset, count)), f"a read of {count} bytes")
        got = read_as(REGION_ACCESS, reply.payload, Command.REGION_READ.value)
        bench.client.read_reply(reply, count)
        require(got[:2] == (offset, _CONFIG), f"a read of {count} bytes at {offset} is answered with {tuple(got)}")


@region_read.check("pieces-agree", rule="spec: REGION Read/Write Data")
def pieces_agree(bench: Bench) -> None:
    """Config space reads the same whole and in pieces."""
    whole = bench.client.config_read(0, 64)
    for width in (1, 2, 4):
        pieces = b"".join(bench.client.config_read(at, width) for at in range(0, 64, width))
        same = pieces[:6] + pieces[8:] == whole[:6] + whole[8:]  # the status register may change
        require(same, f"the header of config space reads differently in pieces of {width} bytes")


@region_read.check("count-0", level=Level.REFERENCE)
def read_nothing(bench: Bench) -> None:
    """A read of no bytes succeeds."""
    bench.good(bench.ask(Command.REGION_READ, _read(0, 0)), "a read of 0 bytes")


enter(
    region_read,
    Command.REGION_READ,
    [
        Bad("payload-too-short", "a request of 15 bytes", _read(0, 4)[:-1]),
        Bad(
            "region-behind-last",
            "the region behind the last",
            lambda b: _read(0, 4, b.info.num_regions),
            needs=DESCRIBED,
        ),
        Bad("region-huge", "region 0xffffffff", _read(0, 4, 0xFFFF_FFFF)),
        Bad("region-of-size-0", "a region that does not exist", lambda b: _read(0, 4, _empty_region(b))),
        Bad("at-the-end", "an offset at the end", lambda b: _read(_config_size(b), 1)),
        Bad("over-the-end", "a read over the end", lambda b: _read(_config_size(b) - 1, 2)),
        Bad("offset-huge", "an offset of 2^63", _read(1 << 63, 4)),
        Bad("wraps", "a range that wraps", _read(_WRAPS, 4)),
        Bad("count-too-large", "a count of 1 MiB and one", _read(0, (1 << 20) + 1)),
        Bad("count-huge", "a count of 4 GiB", _read(0, 0xFFFF_FFFF)),
    ],
)


@region_write.check("reply", rule="protocol.md 9.4: WRITE reply; spec: the count is 0")
def write_reply(bench: Bench) -> None:
    """The reply repeats offset and region; its count is what was written, or 0, which the draft has alone."""
    line = bench.client.config_read(INTERRUPT_LINE, 1)
    reply = bench.good(bench.ask(Command.REGION_WRITE, _write(INTERRUPT_LINE, line)), "a write of the interrupt line")
    got = read_as(REGION_ACCESS, reply.payload, Command.REGION_WRITE.value)
    require(reply.size == 32, f"the reply has {reply.size} bytes instead of 32")
    require(got[:2] == (INTERRUPT_LINE, _CONFIG), f"the reply says offset {got.offset:#x}, region {got.region}")
    most = int(bench.dialect.write_reply_counts)
    require(got.length <= most, f"the reply to a write of 1 byte has count {got.length}")


@region_write.check("stays", rule="PCI 3.0, 6.2.4: Interrupt Line is read/write")
def write_stays(bench: Bench) -> None:
    """What is written to the interrupt line is read back, unless there is no pin for it."""
    bench.need_line()
    client = bench.client
    before = client.config_read(INTERRUPT_LINE, 1)
    try:
        for value in (b"\x05", b"\x0b"):
            client.config_write(INTERRUPT_LINE, value)
            got = client.config_read(INTERRUPT_LINE, 1)
            require(got == value, f"the interrupt line reads {got.hex()} after {value.hex()} was written")
    finally:
        client.config_write(INTERRUPT_LINE, before)


@region_write.check("read-only", rule="PCI 3.0, 6.2.1: Device Identification")
def read_only(bench: Bench) -> None:
    """Writing the ids does not change them, whether it is refused or ignored."""
    before = bench.client.config_read(0, 4)
    bench.ask(Command.REGION_WRITE, _write(0, b"\xff\xff\xff\xff"))
    after = bench.client.config_read(0, 4)
    require(after == before, f"the ids are {after.hex()} after a write, and were {before.hex()}")


@region_write.check("bar-sizing", needs=WRITTEN, rule="PCI 3.0, 6.2.5.1: Address Maps")
def bar_sizing(bench: Bench) -> None:
    """A BAR to which all ones are written reads back a mask of its region's size."""
    client = bench.client
    header = client.config_read(0, 64)
    command = header[4:6]
    client.config_write(4, b"\0\0")
    try:
        index = 0
        while index < 6:
            index += size_bar(bench, index)
    finally:
        client.config_write(4, command)


def size_bar(bench: Bench, index: int) -> int:
    """Check that one BAR sizes to its region; how many registers it takes."""
    client = bench.client
    at = 0x10 + 4 * index
    before = int.from_bytes(client.config_read(at, 4), "little")
    wide = not before & 1 and before & 6 == 4 and index < 5
    registers = 2 if wide else 1
    old = client.config_read(at, 4 * registers)
    for word in range(registers):
        client.config_write(at + 4 * word, b"\xff" * 4)
    mask = int.from_bytes(b"".join(client.config_read(at + 4 * word, 4) for word in range(registers)), "little")
    for word in range(registers):
        client.config_write(at + 4 * word, old[4 * word : 4 * word + 4])
    bits = mask & ~(3 if before & 1 else 0xF)
    size = bits & -bits
    expected = bench.region(index).size
    if before & 1 and expected:
        expected = max(4, expected)
    require(size == expected, f"BAR{index} sizes to {size:#x} and its region has {expected:#x} bytes")
    return registers


@region_write.check("count-0", level=Level.REFERENCE)
def write_nothing(bench: Bench) -> None:
    """A write of no bytes succeeds."""
    bench.good(bench.ask(Command.REGION_WRITE, _write(0, b"")), "a write of 0 bytes")


_LINE = INTERRUPT_LINE


def _line_stays(bench: Bench) -> Callable[[], None]:
    """The interrupt line has a value that none of the bad requests would write, and keeps it."""
    client = bench.client
    before = client.config_read(_LINE, 1)
    has = b"\x11" if keeps_its_line(client) else before
    client.config_write(_LINE, has)

    def check() -> None:
        found = client.config_read(_LINE, 1)
        client.config_write(_LINE, before)
        require(found == has, f"a request that was refused has written {found.hex()} to the interrupt line")

    return check


enter(
    region_write,
    Command.REGION_WRITE,
    [
        Bad("payload-too-short", "a request of 15 bytes", _write(_LINE, b"")[:-1]),
        Bad("data-missing", "fewer bytes than the count", _write(_LINE, b"\x33", count=2)),
        Bad("data-too-long", "more bytes than the count", _write(_LINE, b"\x33\x33", count=1)),
        Bad("data-absent", "a count without any bytes", _write(_LINE, b"", count=1)),
        Bad(
            "region-behind-last",
            "the region behind the last",
            lambda b: _write(0, b"\x33", b.info.num_regions),
            needs=DESCRIBED,
        ),
        Bad("region-huge", "region 0xffffffff", _write(0, b"\x33", 0xFFFF_FFFF)),
        Bad("region-of-size-0", "a region that does not exist", lambda b: _write(0, b"\x33", _empty_region(b))),
        Bad("at-the-end", "an offset at the end", lambda b: _write(_config_size(b), b"\x33")),
        Bad("over-the-end", "a write over the end", lambda b: _write(_config_size(b) - 1, b"\x33" * 2)),
        Bad("wraps", "a range that wraps", _write(_WRAPS, b"\x33" * 4)),
        Bad("count-huge", "a count of 4 GiB", _write(_LINE, b"\x33", count=0xFFFF_FFFF)),
    ],
    keep=_line_stays,
    needs=WRITTEN,
)


# several writes in one message


def _need_multi(bench: Bench) -> None:
    client = bench.stranger()
    client.negotiate(minor=0)
    offered = client.server and client.server.capabilities.write_multiple
    client.close()
    if not offered:
        raise Skip("the server does not offer write_multiple")


def _multi(count: int, offset: int, region: int, size: int, data: bytes) -> bytes:
    """A message that announces so many writes, and has one."""
    return WRITE_MULTI.pack(count, tail=WRITE_MULTI_ENTRY.struct.pack(offset, region, size, data))


@write_multi.check("in-order", needs=WRITTEN)
def multi_in_order(bench: Bench) -> None:
    """Every write is done, in order, and counted in the reply."""
    _need_multi(bench)
    bench.need_line()
    client = bench.client
    before = client.config_read(INTERRUPT_LINE, 1)
    try:
        done = client.write_multi([(_CONFIG, INTERRUPT_LINE, value) for value in (b"\x01", b"\x02", b"\x03")])
        require(done == 3, f"3 writes are answered with {done}")
        got = client.config_read(INTERRUPT_LINE, 1)
        require(got == b"\x03", f"the interrupt line reads {got.hex()} after writes of 01, 02, 03")
    finally:
        client.config_write(INTERRUPT_LINE, before)


@write_multi.check("eight-bytes", needs=("write_multi/in-order",), rule="spec: VFIO_USER_REGION_WRITE_MULTI, data")
def multi_eight_bytes(bench: Bench) -> None:
    """A write may have 8 bytes, as many as an entry has room for."""
    _need_multi(bench)
    there = bench.client.config_read(_HEADER - 8, 8)
    reply = bench.ask(Command.REGION_WRITE_MULTI, _multi(1, _HEADER - 8, _CONFIG, 8, there))
    bench.good(reply, "a write of 8 bytes")


enter(
    write_multi,
    Command.REGION_WRITE_MULTI,
    [
        Bad("payload-too-short", "a request of 7 bytes", bytes([1]) + bytes(6)),
        Bad("entries-missing", "two writes announced and one sent", _multi(2, _LINE, _CONFIG, 1, b"\x33")),
        Bad("entry-cut", "an entry that is cut", _multi(1, _LINE, _CONFIG, 1, b"\x33")[:-1]),
        Bad("nine-bytes", "a write of 9 bytes", _multi(1, _LINE, _CONFIG, 9, b"\x33" * 8)),
        Bad("over-the-end", "a write over the end", lambda b: _multi(1, _config_size(b) - 1, _CONFIG, 2, b"\x33")),
    ],
    need=_need_multi,
    keep=_line_stays,
    needs=(*WRITTEN, "write_multi/in-order"),
)


# reset


def _need_reset(bench: Bench) -> None:
    if not bench.info.flags & DeviceFlags.RESET:
        raise Skip("the device cannot be reset")


@reset.check("succeeds", rule="spec: VFIO_USER_DEVICE_RESET")
def reset_succeeds(bench: Bench) -> None:
    """DEVICE_RESET is answered with a header, and the device is as described before."""
    _need_reset(bench)
    before = bench.client.device_info(), [region.size for region in bench.regions]
    reply = bench.good(bench.ask(Command.DEVICE_RESET), "DEVICE_RESET")
    require(reply.size == 16, f"the reply has {reply.size} bytes instead of 16")
    after = bench.client.device_info(), [bench.client.region_info(i).size for i in range(len(bench.regions))]
    require(before == after, "the device describes itself differently after a reset")


@reset.check("keeps-irqs", level=Level.REFERENCE, needs=("set_irqs/trigger", "reset/succeeds"))
def reset_keeps_irqs(bench: Bench) -> None:
    """Eventfds stay set over a reset."""
    _need_reset(bench)
    bench.need_fds()
    irq, eventfd = bench.irq().irq, bench.eventfd()
    bench.client.enable_irqs(irq, [eventfd])
    bench.client.reset()
    eventfd.take()
    bench.client.trigger_irqs(irq)
    require(eventfd.take() >= 1, "an eventfd that was set before a reset is not fired after it")


@reset.check("keeps-dma", level=Level.REFERENCE, needs=("dma_map/map-and-unmap", "reset/succeeds"))
def reset_keeps_dma(bench: Bench) -> None:
    """DMA maps stay over a reset."""
    _need_reset(bench)
    bench.need_dma()
    bench.client.dma_map(0x10_0000, bench.memory())
    bench.client.reset()
    bench.client.dma_unmap(0x10_0000, 0x10000)


@reset.check("surplus-ignored", level=Level.REFERENCE, needs=("reset/succeeds",))
def reset_with_payload(bench: Bench) -> None:
    """A payload that DEVICE_RESET does not have is ignored."""
    _need_reset(bench)
    bench.good(bench.ask(Command.DEVICE_RESET, bytes(16)), "DEVICE_RESET with a payload")
