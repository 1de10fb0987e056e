"""Two recordings of each protocol with a bit of everything, and all that is told of them."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

from tests.interposer_bench import dma_map, read, request, write
from tests.tellings import Told, said
from tests.traced import CAUSES, DOWN, REGISTERS, UP, Written
from tests.vhost.between import B, Between, R, V, channel
from userdev.relay.direction import Direction
from userdev.trace import View
from userdev.trace.format import FD, LENGTH, MAGIC, PREFIX, RecordKind
from vfio_user.wire import Command
from vfio_user.wire import layouts as at
from vhost_user.wire import acknowledge, encode_request
from vhost_user.wire.payloads import Config, Region, VringAddress, VringState

BEGAN, REALTIME = 5_000_000_000, 1_796_000_000_000_000_000
STEPS = (1_000, 12_500, 250_000, 40_000, 3_000_000, 700, 90_100)
"""ns between one record and the next, over and over."""
NAMED = [*REGISTERS, {"region": 0, "offset": 0x100, "name": "queue", "width": 8, "count": 4, "stride": 16}]
VERSION = b'{"capabilities":{"max_msg_fds":16}}\0'


def timed(path: Path) -> None:
    """Give the records of a trace times that are always the same, and its descriptors such inodes."""
    data, place, now = bytearray(path.read_bytes()), len(MAGIC), BEGAN
    whole = bytearray(data[:place])
    number = 0
    while place < len(data):
        end = place + LENGTH.size + LENGTH.unpack_from(data, place)[0]
        length, kind, towards, view, count, _, pair = PREFIX.unpack_from(data, place)
        body = data[place + PREFIX.size : end]
        for index in range(count):
            what, size, _ = FD.unpack_from(body, index * FD.size)
            FD.pack_into(body, index * FD.size, what, size, 1000 * number + index)
        if kind == RecordKind.HEADER:
            body = bytearray(json.dumps({**json.loads(body), "realtime": REALTIME, "program": "tests"}).encode())
            length = PREFIX.size - LENGTH.size + len(body)
        whole += PREFIX.pack(length, kind, towards, view, count, now, pair) + body
        now += STEPS[number % len(STEPS)]
        number, place = number + 1, end
    path.write_bytes(whole)


def shown(folder: Path) -> Told:
    """Each way to show one of vfio-user's."""
    return _told(folder, SHOWN)


def counted(folder: Path) -> Told:
    """Each way to count and to compare them."""
    return _told(folder, COUNTED)


def of_vhost_user(folder: Path) -> Told:
    """The same of vhost-user's."""
    return _told(folder, OF_VHOST_USER)


def exported(folder: Path) -> Told:
    """Each way to hand them to other programs."""
    made(folder)
    found: Told = {}
    for name in ("one", "back"):
        for kind in ("json", "perfetto", "pcapng"):
            done = said(folder, f"vfio-user trace export {name} --format {kind} -o {name}.{kind}")
            assert done["status"] == 0, done
        shown_too = said(folder, f"vfio-user trace show {name} --json")["out"]
        found[f"{name}, JSON as it is shown"] = json.loads((folder / f"{name}.json").read_text()) == shown_too
        found[f"{name}, perfetto"] = json.loads((folder / f"{name}.perfetto").read_text())
        found[f"{name}, pcapng"] = _blocks((folder / f"{name}.pcapng").read_bytes())
    logs = _logs(folder)
    said(folder, f"vfio-user trace export cut --format perfetto -o logs.perfetto {logs}")
    events = json.loads((folder / "logs.perfetto").read_text())["traceEvents"]
    found["logs, perfetto"] = [each for each in events if each["tid"] in (6, 7)]
    return found


def _logs(folder: Path) -> str:
    """The options for a QMP log and a console's, in the time of a recording."""
    second = REALTIME // 10**9
    reset, stop = (
        json.dumps({"event": name, "timestamp": {"seconds": second, "microseconds": micros}})
        for name, micros in (("RESET", 5000), ("STOP", 10000))
    )
    (folder / "qmp").write_text(f'-> {{"execute": "quit"}}\nseen <- {reset}\n<- {{"return": 7}}\n<- {stop}\n')
    (folder / "console").write_text(f"{second}.0015 login:\n{second}.25 panic 7\n")
    return "--qmp-log qmp --console-log console"


def _blocks(data: bytes) -> list[str]:
    """The blocks of a capture: kind, length, and of a packet its time, sizes, way and comment."""
    found, place = [], 0
    while place < len(data):
        kind, length = struct.unpack_from("<II", data, place)
        body, words = data[place + 8 : place + length - 4], ""
        if kind == 6:
            _, high, low, kept, size = struct.unpack_from("<IIIII", body)
            options = body[20 + -(-kept // 4) * 4 :]
            words = f" at {(high << 32 | low) - REALTIME}, {kept} of {size}: {_option(options)}"
        found.append(f"{kind:#x} {length}{words}")
        place += length
    return found


def _option(options: bytes) -> str:
    """Codes of a block's options with what they say."""
    said, place = [], 0
    while place + 4 <= len(options):
        code, length = struct.unpack_from("<HH", options, place)
        value = options[place + 4 : place + 4 + length]
        if code:
            said.append(f"{code}={value.decode() if code == 1 else value.hex()}")
        place += 4 + -(-length // 4) * 4
    return " ".join(said)


def _told(folder: Path, lines: tuple[str, ...]) -> Told:
    made(folder)
    return {line: said(folder, line) for line in lines}


def made(folder: Path) -> None:
    """Have all of them there."""
    _vfio_user(folder / "one", faulty=False)
    _vfio_user(folder / "other", faulty=True)
    _busy(folder / "busy")
    _vhost_user(folder / "back", 4096, 0)
    _vhost_user(folder / "forth", 8192, errno.EINVAL)
    (folder / "cut").write_bytes((folder / "one").read_bytes()[:-5])
    (folder / "map.yaml").write_text(
        "- {region: 0, offset: 0x24, name: status}\n- {region: 0, offset: 0x60, name: up}\n"
    )


SHOWN = (
    "vfio-user trace show one --json",
    "vfio-user trace show one",
    "vfio-user trace show cut --since 0.025",
    "vfio-user trace show one --region BAR0 --offset 0x100-0x11f",
    "vfio-user trace show one --region CONFIG --json",
    "vfio-user trace show one --register queue[1] --json",
    "vfio-user trace show one --direction to-client --until 0.0033035",
    "vfio-user trace show one --since 0.0033035 --until 0.0033943",
    "vfio-user trace show other --command DMA_READ --registers map.yaml",
    "vfio-user trace show one --command DMA_RAED",
    "vfio-user trace show one --register cause",
    "vfio-user trace show one --ring 1",
    "vfio-user trace cut one -o part --records 12-17",
    "vfio-user trace show part",
    "vfio-user trace cut cut -o part --from-mark here --records 40-",
)
COUNTED = (
    "vfio-user trace stats one --json",
    "vfio-user trace stats one",
    "vfio-user trace stats busy --all",
    "vfio-user trace stats busy --json --registers map.yaml",
    "vfio-user trace stats cut --json",
    "vfio-user trace diff one one --json",
    "vfio-user trace diff one other --json",
    "vfio-user trace diff one other --polls --ignore up",
    "vfio-user trace diff other cut",
    "vfio-user trace diff one back",
)
OF_VHOST_USER = (
    "vhost-user trace show back --json",
    "vhost-user trace show forth",
    "vhost-user trace show back --ring 1",
    "vhost-user trace show back --command SET_MEM_TABLE --command GET_CONFIG",
    "vhost-user trace show back --command SET_VRING",
    "vhost-user trace show back --region BAR0",
    "vhost-user trace stats back --json",
    "vhost-user trace stats forth",
    "vhost-user trace diff back forth --json",
    "vhost-user trace diff back forth",
    "vhost-user trace cut back -o part --since 0.0033",
    "vhost-user trace show part",
)


def _vfio_user(path: Path, *, faulty: bool) -> None:
    """Two sessions: what all devices are asked, registers, DMA, descriptors, errors, and what went otherwise."""
    memory, event = os.memfd_create("guest"), os.eventfd(0)
    os.truncate(memory, 8192 if faulty else 4096)
    with Written(path, NAMED) as trace:
        note, record = trace.writer.note, trace.writer.message
        note("connected")
        hello = request(Command.VERSION, at.VERSION.pack(0, 0, tail=VERSION))
        trace.ask(hello, at.VERSION.pack(0, 1, tail=VERSION))
        trace.ask(request(Command.GET_INFO, at.DEVICE_INFO.pack(16, 0, 0, 0)), at.DEVICE_INFO.pack(16, 3, 9, 5))
        trace.ask(dma_map(0x1000, 4096, memory))
        trace.ask(
            request(Command.SET_IRQS, at.IRQ_SET.pack(20, 0x24, 2, 0, 2), fds=[event, memory if faulty else event])
        )
        trace.read(0, 0x12345678, region=7)
        trace.read(2, 0xFFFF, region=7, width=2)
        trace.read(0, None, region=8, errno=errno.EINVAL)
        for value in (0x5A, 0x33) if faulty else (0x5A,):
            trace.write(UP, value, interrupt=not faulty)
            for _ in range(3 if faulty else 2):
                trace.read(CAUSES, value)
        trace.write(DOWN, 0x5A, posted=True)
        trace.write(DOWN, 0x5B)
        trace.read(CAUSES, 0x10 if faulty else 0)
        trace.write(0x110, 0x1122334455667788, width=8)
        trace.read(0x114, 0x99, width=1)
        trace.read(0x40, 7)
        trace.write(0x44, 9, width=2)
        trace.dma_read(0x1800, bytes(range(80 if faulty else 16)))
        trace.ask(
            request(Command.DMA_WRITE, at.DMA_ACCESS.pack(0x1010, 4, tail=b"\1\2\3\4")),
            at.DMA_ACCESS.pack(0x1010, 4),
            direction=Direction.TO_CLIENT,
        )
        feature = at.FEATURE.pack(16, 0x20002) + at.DEVICE_STATE.pack(3, 0)
        trace.ask(request(Command.DEVICE_FEATURE, feature), errno.EBUSY if faulty else feature)
        trace.ask(request(Command.DMA_UNMAP, at.DMA_UNMAP.pack(24, 0, 0x1000, 0x1000)), errno.ENOENT)
        asked = read(0, CAUSES)
        asked.id = 900
        sent = record(Direction.TO_SERVER, View.RECEIVED | View.SENT, asked)
        came = asked.reply(at.REGION_ACCESS.pack(CAUSES, 0, 4, tail=b"\1\0\0\0"))
        went = asked.reply(at.REGION_ACCESS.pack(CAUSES, 0, 4, tail=b"\7\0\0\0"))
        record(Direction.TO_CLIENT, View.RECEIVED, came, sent)
        record(Direction.TO_CLIENT, View.SENT, went, sent)
        late = trace.read(CAUSES, None)
        trace.ask(request(Command.DEVICE_RESET))
        late_asked = read(0, CAUSES)
        late_asked.id = (trace._ids - 1) & 0xFFFF
        late_reply = late_asked.reply(at.REGION_ACCESS.pack(CAUSES, 0, 4, tail=b"\2\0\0\0"))
        record(Direction.TO_CLIENT, View.RECEIVED | View.SENT, late_reply, late)
        for size in (64, 65):
            trace.dma_read(0x1000, bytes(size))
        changed = write(0, UP, b"\5\0\0\0", id=901)
        record(Direction.TO_SERVER, View.RECEIVED, changed)
        changed = write(0, UP, b"\6\0\0\0", id=901)
        asked_so = record(Direction.TO_SERVER, View.SENT, changed)
        done = changed.reply(at.REGION_ACCESS.pack(UP, 0, 4))
        record(Direction.TO_CLIENT, View.RECEIVED | View.SENT, done, asked_so)
        own = read(0, CAUSES, id=902)
        asked_by_us = record(Direction.TO_SERVER, View.SENT, own)
        answered = own.reply(at.REGION_ACCESS.pack(CAUSES, 0, 4, tail=b"\3\0\0\0"))
        record(Direction.TO_CLIENT, View.RECEIVED, answered, asked_by_us)
        unknown = request(Command.DEVICE_RESET, b"what is this")
        unknown.command = 77
        trace.ask(unknown, errno.ENOTSUP)
        note("restarted", seconds=0.25, state=True)
        note("end-of-stream", side="client")
        note("disconnected")
        note("connected")
        trace.ask(hello, at.VERSION.pack(0, 1, tail=VERSION))
        trace.interrupt(3)
        note("mark", text="here it begins again")
        trace.write(UP, 1)
        note("server-gone", fate="was killed by SIGSEGV")
        trace.writer.raw(Direction.TO_SERVER, b"\xff" * 40)
        trace.writer.raw(Direction.TO_CLIENT, b"\xee" * 3)
        trace.read(UP, None)
        if faulty:
            trace.ask(write(0, DOWN, b"\1\0\0\0"), None, view=View.RECEIVED)
        trace.read(CAUSES, 3)
    os.close(memory)
    os.close(event)
    timed(path)


def _busy(path: Path) -> None:
    """A guest that spins, an interrupt that did not come, a read that was seldom so, and what was not read back."""
    with Written(path, REGISTERS) as trace:
        for number in range(30):
            trace.write(UP, 0x5A, interrupt=number != 7)
            trace.read(CAUSES, 0x5A if number != 9 else 0x10)
            trace.write(DOWN, number)
            trace.read(DOWN, number if number != 11 else 0x77)
        for _ in range(120):
            trace.read(CAUSES, 4)
        for _ in range(25):
            trace.read(UP, None, errno=errno.EIO)
        trace.read(0x200, 1)
        trace.read(0x200, 1)
    timed(path)


def _vhost_user(path: Path, size: int, refused: int) -> None:
    """Negotiation, the back-end's channel, memory, rings, an answer that is refused, and bytes that are no message."""
    memory = os.memfd_create("guest")
    os.truncate(memory, size)
    with Between(path) as between:
        between.negotiate(V.VERSION_1 | V.EVENT_IDX | V.PROTOCOL_FEATURES | V(1 << 6))
        between.ask(R.GET_QUEUE_NUM, answer=4)
        with channel(between) as (front_end, back_end):
            back_end.send(encode_request(B.CONFIG_CHANGE_MSG, need_reply=True))
            front_end.receive()
            front_end.send(acknowledge(B.CONFIG_CHANGE_MSG, refused))
            back_end.receive()
        between.ask(R.GET_CONFIG, Config(0, 4, 0, bytes(4)), Config(0, 4, 0, struct.pack("<I", size)))
        regions = Region(0x1000, size, 0x7F0000000000, 0), Region(0x10000, 4096, 0x7F0000010000, 4096)
        between.tell(R.SET_MEM_TABLE, regions, [memory, memory])
        for ring in (0, 1):
            between.tell(R.SET_VRING_NUM, VringState(ring, 256 >> ring))
            between.tell(R.SET_VRING_ADDR, VringAddress(ring, 0, 0x1000, 0x2000, 0x3000, 0))
            between.tell(R.SET_VRING_BASE, VringState(ring, 3))
            between.start_ring(ring)
            between.acknowledged(R.SET_VRING_ENABLE, VringState(ring, 1), error=refused if ring else 0)
        between.ask(R.GET_VRING_BASE, VringState(1, 0), VringState(1, 17 if refused else 16))
        between.front_end.send(encode_request(R.GET_QUEUE_NUM))
        between.back_end.receive()
        between.front_end.socket.send(b"\xff" * 30)
        between.back_end.receive_bytes(30)
    os.close(memory)
    timed(path)
