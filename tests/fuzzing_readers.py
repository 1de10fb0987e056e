"""Files, answers and lines that are nearly right, for everything that reads what somebody else has written.

A `Reader` has samples that are good, and says what it raises for those that are not; anything else is a defect. What a
seed does is always the same.
"""

from __future__ import annotations

import json
import logging
import random
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from zlib import crc32

from tests.fuzzing import Generator, noise
from tests.fuzzing_results import samples_of_results
from tests.interposed import interposed_edu
from tests.migration_device import Adder, load, save
from userdev.errors import ProtocolError, UserError
from userdev.relay.direction import Direction
from userdev.trace import TraceWriter
from userdev_servers.gpio import Gpio
from vfio_user.harness.agent import AgentGuest
from vfio_user.harness.guest import GuestFailure, GuestLost
from vfio_user.interposer.trace import View
from vfio_user.interposer.trace.files import NAME
from vfio_user.migration.stream import CHECKSUM, HEAD, PREAMBLE
from vfio_user.server import Server
from vfio_user.wire import DIALECTS, ERROR, REPLY, Message

EXTREME = (
    b"-1",
    b"0",
    b"1e400",
    b"0x10000000000000000",
    b"9" * 5000,
    b"18446744073709551616",
    b".inf",
    b"null",
    b"true",
)
INTERESTING = (
    b"[",
    b"{",
    b'"',
    b"\n",
    b"\0",
    b"\xff",
    b"[" * 2000,
    b'"\\ud800"',
    b"&a [*a]",
    b"2001-99-99",
    b"\x1b[2J",
)


@dataclass(frozen=True)
class Reader:
    """Something that reads. `read` raises one of `refusals` for what is not its own, and nothing else."""

    name: str
    samples: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (UserError,)


@dataclass
class Outcome:
    """What a campaign saw. `wrong` is empty in a good one."""

    inputs: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def campaign(reader: Reader, inputs: int, seed: int) -> Outcome:
    """Let `reader` read so many inputs that are nearly right."""
    outcome = Outcome()
    chance = random.Random(f"{reader.name}:{seed}")
    logging.disable()  # what is refused is told there too
    try:
        _let_read(reader, inputs, chance, outcome)
    finally:
        logging.disable(logging.NOTSET)
    return outcome


def _let_read(reader: Reader, inputs: int, chance: random.Random, outcome: Outcome) -> None:
    while outcome.inputs < inputs and len(outcome.wrong) < 10:
        data = mutated(chance, reader.samples)
        outcome.inputs += 1
        try:
            reader.read(data)
        except reader.refusals:
            outcome.refused += 1
        except Exception as error:  # whatever it is, it is what we are here for
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            outcome.wrong.append(f"{reader.name}: input {outcome.inputs}, {data[:80]!r}: {told[:300]}")


def mutated(chance: random.Random, samples: tuple[bytes, ...]) -> bytes:
    """A sample with a few things wrong, most of which could have happened."""
    data = bytearray(chance.choice(samples))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.choice((1, 1, 2, 4, 8, 40)))
        match chance.randrange(9):
            case 0:
                del data[place:end]
            case 1:
                data[place:end] = chance.randbytes(end - place)
            case 2:
                data[place:place] = data[place:end]
            case 3:
                data[place:place] = chance.choice(INTERESTING)
            case 4:
                del data[place:]
            case 5:
                other = chance.choice(samples)
                start = chance.randrange(len(other) + 1)
                data[place:end] = other[start : start + 40]
            case 6:
                _with_another_number(chance, data)
            case 7:
                _with_another_line(chance, data)
            case _:
                if data:
                    data[place % len(data)] ^= 1 << chance.randrange(8)
    return bytes(data)


def _with_another_number(chance: random.Random, data: bytearray) -> None:
    digits = [place for place in range(len(data)) if 0x30 <= data[place] <= 0x39]
    if digits:
        place = end = chance.choice(digits)
        while end < len(data) and 0x30 <= data[end] <= 0x39:
            end += 1
        data[place:end] = chance.choice(EXTREME)


def _with_another_line(chance: random.Random, data: bytearray) -> None:
    """One line less, or twice, or in the place of another."""
    lines = bytes(data).split(b"\n")
    place, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[place : place + 1] = chance.choice(([], [lines[place]] * 2, [lines[other]], [b"", lines[place]]))
    data[:] = b"\n".join(lines)


# traces


def _trace(path: Path, dialect_name: str) -> bytes:
    """A trace with everything that one can hold."""
    dialect = DIALECTS[dialect_name]
    generator = Generator(dialect, 7)
    names = [{"region": 0, "offset": 8, "name": "queue", "width": 4, "count": 2, "stride": 8}]
    writer = TraceWriter(path, NAME, {"program": "fuzz", "dialect": dialect_name, "registers": names})
    writer.note("connected")
    with tempfile.TemporaryFile() as file:
        for id in range(25):
            data, answered = generator.message(id)
            request = Message(
                id, int.from_bytes(data[2:4], "little"), payload=data[16:], fds=[file.fileno()] * (id % 3)
            )
            number = writer.message(Direction(id % 5 == 4), View.RECEIVED | View.SENT, request)
            if answered:
                reply = Message(id, request.command, REPLY | ERROR * (id % 4 == 0), id % 4, request.payload)
                writer.message(Direction(id % 5 != 4), View(1 + id % 3), reply, number)
    for piece in noise(generator.random, 3):
        writer.raw(Direction.TO_SERVER, piece)
    writer.note("interrupt", index=2, vector=1, count=1)
    writer.note("disconnected")
    writer.close()
    return path.read_bytes()


def _vhost_trace(path: Path) -> bytes:
    """The same of vhost-user: each message of both connections, with payloads that are its own or nearly."""
    from userdev.trace import TraceWriter
    from vhost_user.interposer.asker import Asker
    from vhost_user.wire import REPLY, VERSION
    from vhost_user.wire import Message as VhostMessage

    writer = TraceWriter(path, "vhost-user", {"program": "fuzz"})
    for asker in Asker:
        for request in asker.requests:
            payload = bytes(range(1, 1 + 8 * (request % 6)))
            asked = VhostMessage(request, VERSION, payload)
            number = writer.message(asker.asking, View.RECEIVED | View.SENT, asked, 0, asker.value)
            reply = VhostMessage(request, VERSION | REPLY, bytes(8))
            writer.message(asker.asking.opposite, View.RECEIVED | View.SENT, reply, number, asker.value)
    writer.note("mark", text="here")
    writer.close()
    return path.read_bytes()


def _read_trace(path: Path, data: bytes) -> None:
    """All that is made of a trace, whose ever it is."""
    from userdev.trace import as_json, text
    from userdev.trace.diff import compare
    from userdev.trace.diff.sequence import Tokens, read_sequences
    from userdev.trace.pcapng import write_pcapng
    from userdev.trace.perfetto import trace_events
    from userdev.trace.stats import Stats, report
    from userdev.trace.view import opened
    from vfio_user.interposer.replay.script import load_script
    from vfio_user.traces import open_trace

    path.write_bytes(data)
    view = open_trace(path)
    header, lines = view.header, list(view.lines())
    for line in lines:
        text(line, header.time).encode()
        json.dumps(as_json(line, header.time))
    write_pcapng(BytesIO(), view.shown.packets, header, lines)
    json.dumps(trace_events(view.shown.lanes, header, lines))
    with opened(path, view.shown.protocol) as reader:
        counted = Stats(reader, view.shown.reading())
        counted.take()
        json.dumps(report(counted).json())
        for section in report(counted).sections:
            list(section.shown())
    tokens, reading = Tokens(), view.shown.reading()
    with opened(path, view.shown.protocol) as reader:
        whole = read_sequences(reader, reading, tokens, frozenset())
    with opened(path, view.shown.protocol) as reader:
        part = read_sequences(reader, reading, tokens, frozenset({"REGION_READ", "GET_FEATURES"}))
    for difference in compare(whole, part, tokens, reading, polls=True).differences:
        difference.text.encode()
    if header.protocol == "vfio-user":
        load_script(path).write(path)


def _read_logs(trace: Path, path: Path, data: bytes) -> None:
    from userdev.trace.perfetto import trace_events
    from vfio_user.interposer.trace import read_trace
    from vfio_user.interposer.trace.show import LANES

    path.write_bytes(data)
    header = read_trace(trace).header
    json.dumps(trace_events(LANES, header, [], qmp_log=path, console_log=path))


# documents

_SCENARIO = b"""seed: 7
rules:
  - name: lose every third doorbell
    match: {direction: to-server, command: REGION_WRITE, region: BAR0, offset: 0x20-0x2f, nth: {every: 3, from: 2}}
    act: drop
  - match: {command: [DMA_READ, DMA_WRITE], time: {after: 2, before: 1e3}, state: running, probability: 0.5}
    times: 3
    act:
      - corrupt: {field: length, xor: 1}
      - corrupt: {at: 16, bytes: "00ff"}
      - delay: {seconds: 0.5, jitter: 0.1}
      - truncate: 20
      - wrong-size: {by: 4}
      - signal: {signal: SIGSTOP, seconds: 0.1}
  - act: [{close: client}, {split-header: 8}, duplicate, {wrong-id: 5}, {extra-fd: 2}]
  - {match: {nth: 2}, act: [{reply: EIO}, {reorder: 1}]}
"""
_REGISTERS = b"""registers:
  - {region: 0, offset: 8, width: 4, name: compute}
  - {bar: 2, offset: 0x40, name: queue, count: 4, stride: 8}
"""
_RECIPE = b"""extends: minimal
description: mine
packages: [gdb]
files:
  - /usr/bin/gdb
exclude: [/usr/share/*]
services: {web: httpd -f}
"""


def _read_scenario(data: bytes) -> None:
    """A scenario, and what it does to a message."""
    from vfio_user.interposer.faults.engine import FaultEngine
    from vfio_user.interposer.faults.scenario import parse_scenario

    dialect = DIALECTS["current"]
    engine = FaultEngine(parse_scenario(data.decode(errors="replace"), "fuzz"), dialect)
    generator = Generator(dialect, 3)
    for id in range(5):
        request, _ = generator.message(id)
        message = Message(id, int.from_bytes(request[2:4], "little"), payload=request[16:])
        engine.plan(Direction.TO_SERVER, message, "running", 3.0)
        engine.plan(Direction.TO_CLIENT, message.reply(message.payload), "running", 3.0)


_VHOST_SCENARIO = b"""rules:
  - match: {direction: to-client, command: [GET_FEATURES, BACKEND_IOTLB_MSG], kind: reply, ring: 0x1, nth: 2}
    act: [{corrupt: {field: features, xor: 0x20000000}}, {missing-fd: 0}, {wrong-size: {by: 4}}]
  - match: {state: [set-up, running], time: {after: 1}}
    act: [{truncate: {to: 14}}, {close: {side: server}}, {split-header: 8}, {signal: SIGSTOP}]
  - act: [drop, hold]
"""


def _read_vhost_scenario(data: bytes) -> None:
    """A scenario, and what it does to messages of either connection."""
    from vhost_user.interposer.asker import Asker
    from vhost_user.interposer.faults.engine import FaultEngine
    from vhost_user.interposer.faults.scenario import parse_scenario
    from vhost_user.wire import Message as VhostMessage

    scenario = parse_scenario(data.decode(errors="replace"), "fuzz")
    for asker in Asker:
        engine = FaultEngine(scenario, asker, lambda _: True)
        for request in asker.requests:
            for direction in Direction:
                engine.plan(direction, VhostMessage(request, 5, bytes(8)), "running", 3.0)


def _read_registers(path: Path, data: bytes) -> None:
    from vfio_user.interposer.trace.register_file import load_registers

    path.write_bytes(data)
    load_registers(path).name(0, 8)


def _read_recipe(path: Path, data: bytes) -> None:
    from vfio_user.harness.image.recipe import load_recipe

    path.write_bytes(data)
    load_recipe(str(path))


# lines


def _read_lines(data: bytes) -> None:
    from userdev.control import LineReader, document_of

    reader = LineReader(1 << 20)
    for piece in (data[:7], data[7:], b"\n"):
        for line in reader.feed(piece):
            if not line.refusal:
                document_of(line.text)


def _ask(path: Path, data: bytes) -> None:
    """What a control socket is sent, and then something good: that is answered, if not there, in another connection."""
    question = b'{"command": "status", "id": "the last"}\n'
    for sent in (data + b"\n" + question, question):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(20)
            control.connect(str(path))
            with suppress(BrokenPipeError):
                control.sendall(sent)
            control.shutdown(socket.SHUT_WR)
            with control.makefile("rb") as told:
                answers = told.read()
        if b'"internal: ' in answers:
            raise AssertionError(answers[-300:])
        if answers and isinstance(json.loads(answers.splitlines()[-1]), dict):
            return
    raise AssertionError(f"no answer: {answers[-200:]!r}")


def _answer(guest: AgentGuest, port: socket.socket, data: bytes) -> None:
    """A line of the agent's, for somebody who waits for it."""
    job = guest.start("true")
    asked = json.loads(port.recv(1 << 16).split(b"\n")[-2])
    session, id = asked["session"].encode(), str(asked["id"]).encode()
    guest._received(data.replace(b"SESSION", session).replace(b"4711", id))
    guest.give_up("nothing more comes")
    job.wait(10)


_ANSWERS = (
    b'{"session": "SESSION", "id": 4711, "ok": {"exit_code": 0, "stdout": {"bytes": "b2s="}, "stderr": {"bytes": ""},'
    b' "seconds": 0.1, "timed_out": false}}',
    b'{"id": 4711, "session": "SESSION", "ok": {"seconds": 3, "timed_out": false, "exit_code": -9,'
    b' "stderr": {"bytes": "eA=="},'
    b' "stdout": {"bytes": ""}, "result": {"bytes": ""}}}',
)


# states


def _used() -> Adder:
    device = Adder()
    device.values = {"total": -(1 << 70), "label": "x", "queue": [1, 2.5, None, True, b"bytes", {"a": (1, 2)}]}
    device.ram[5:9] = b"data"
    return device


def _load(data: bytes) -> None:
    load(Adder(), data)


def _summed(data: bytes) -> bytes:
    """The same frames, as far as they are some, with the checksums that they must have."""
    stream, at = bytearray(data[: PREAMBLE.size]), PREAMBLE.size
    checksum = crc32(stream)
    while at + HEAD.size + CHECKSUM.size <= len(data):
        kind, section, size = HEAD.unpack_from(data, at)
        at += HEAD.size + CHECKSUM.size
        payload = data[at : at + size]
        head = HEAD.pack(kind, section, len(payload))
        checksum = crc32(payload, crc32(head, checksum))
        stream += head + CHECKSUM.pack(checksum) + payload
        at += size
    return bytes(stream)


_GPIO_COMMANDS = (
    b'{"command": "get"}\n{"command": "watch"}\n',
    b'{"command": "set", "input": 3, "value": true}\n{"command": "set", "inputs": 255}\n',
)
_COMMANDS = (
    b'{"command": "status", "id": 7}\n{"command": "hold"}\n',
    b'{"command": "region_read", "region": "BAR0", "offset": "0x10", "size": 4}\n',
    b'{"command": "mig_data_write", "raw": 12}\n' + b"x" * 12 + b'{"command": "session"}\n',
    b'{"command": "dma_write", "runs": [{"iova": 4096, "size": 16}], "data": "AAAA"}\n',
    b'{"command": "faults", "scenario": "rules: [{act: drop}]"}\n',
)


@contextmanager
def readers(folder: Path) -> Iterator[list[Reader]]:
    """Everything that reads; `folder` is for their files."""
    with ExitStack() as stack:
        of_results = (Reader(*each) for each in samples_of_results(folder))
        yield [*_readers_of_files(folder), *of_results, *_readers_of_lines(folder, stack)]


def _readers_of_files(folder: Path) -> Iterator[Reader]:
    traces = tuple(_trace(folder / name, name) for name in ("current", "draft-v6", "region-migration"))
    scratch = folder / "scratch.yaml"
    yield Reader("trace", traces, lambda data: _read_trace(folder / "read", data))
    vhost_traces = (_vhost_trace(folder / "vhost-user"),)
    yield Reader("trace of vhost-user", vhost_traces, lambda data: _read_trace(folder / "read", data))
    logs = (
        b'1.5 {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP", "data": {}}\n',
        b"1700000000.123456 [    0.0] Linux version\n2026-01-01 10:00:00,123 x\n",
    )
    yield Reader("logs beside a trace", logs, lambda data: _read_logs(folder / "current", folder / "log", data))
    yield Reader("scenario", (_SCENARIO,), _read_scenario)
    yield Reader("scenario of vhost-user", (_VHOST_SCENARIO,), _read_vhost_scenario)
    yield Reader("register map", (_REGISTERS,), lambda data: _read_registers(scratch, data))
    yield Reader("recipe", (_RECIPE,), lambda data: _read_recipe(scratch, data))


def _readers_of_lines(folder: Path, stack: ExitStack) -> Iterator[Reader]:
    yield Reader("lines for an interposer", _COMMANDS, _read_lines)
    edu = stack.enter_context(interposed_edu(folder))
    stack.callback(edu.client().close)
    yield Reader("an interposer's control socket", _COMMANDS, partial(_ask, edu.folder / "control"))
    stack.enter_context(Server(Gpio(control=str(folder / "gpio")), f"unix:{folder / 'device'}"))
    yield Reader("a device's control socket", _GPIO_COMMANDS, partial(_ask, folder / "gpio"))
    host, port = socket.socketpair()
    stack.callback(port.close)
    guest = AgentGuest(host)
    stack.callback(guest.close)
    yield Reader("answers of a guest's agent", _ANSWERS, partial(_answer, guest, port), (GuestFailure, GuestLost))
    states = (save(Adder()), save(_used()))
    yield Reader("saved state", states, _load, (ProtocolError,))
    yield Reader("saved state with checksums that fit", states, lambda data: _load(_summed(data)), (ProtocolError,))
