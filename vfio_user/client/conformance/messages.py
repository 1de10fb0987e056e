"""The header, and the order of things: ids, types, No_reply, pipelining, messages in pieces and several at once."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress

from userdev.conformance.check import Group, Level, require
from vfio_user.client.conformance.access import WRITTEN
from vfio_user.client.conformance.bench import INTERRUPT_LINE, Bench, closed
from vfio_user.client.conformance.dialects import MESSAGES
from vfio_user.client.conformance.refusals import SINCE_2022
from vfio_user.client.errors import Disconnected
from vfio_user.wire import ERROR, HEADER, NO_REPLY, REPLY, Command, Message
from vfio_user.wire.constants import RegionIndex
from vfio_user.wire.layouts import DEVICE_INFO, IRQ_INFO, REGION_ACCESS, REGION_INFO

header = Group[Bench]("header", "protocol.md 2: Header")
order = Group[Bench]("order", "spec: Command Concurrency")

ECHOED = ("header/id-echoed",)
"""Of a server that does not keep this rule nobody can tell what it answers."""

_CONFIG = RegionIndex.CONFIG
_OVERHEAD = HEADER.size + REGION_ACCESS.size
_TAKEN_SECONDS = 0.05
"""A server may leave bytes lying until there are enough of them."""
_PAST_THE_END = REGION_ACCESS.pack(1 << 40, _CONFIG, 4)


def _read(offset: int = 0, count: int = 4) -> bytes:
    return REGION_ACCESS.pack(offset, _CONFIG, count)


def _info(bench: Bench) -> bytes:
    return DEVICE_INFO.pack(16, 0, 0, 0) if bench.dialect.shapes[Command.GET_INFO].request else b""


@header.check("id-echoed", rule="spec: Header, Message ID")
def id_echoed(bench: Bench) -> None:
    """The reply has the id of its request, whatever it is, behind one that was refused, too."""
    number = bench.dialect.number(Command.REGION_READ)
    for id, request in (
        *((id, _read()) for id in (0, 1, 0x7FFF, 0x8000, 0xFFFF)),
        *((0x200 + times, request) for times, request in enumerate((_PAST_THE_END, _read()) * 2)),
    ):
        reply = bench.client.raw(number, request, id=id)
        assert reply is not None
        closed(reply)


@header.check("command-echoed", level=Level.REFERENCE)
def command_echoed(bench: Bench) -> None:
    """The reply has the command of its request."""
    for command, payload in ((Command.REGION_READ, _read()), (Command.REGION_READ, _PAST_THE_END)):
        reply = bench.ask(command, payload)
        number = bench.dialect.number(command)
        require(reply.command == number, f"command {number} is answered with command {reply.command}")


@header.check("flags-of-replies", rule="spec: Header, Flags")
def flags_of_replies(bench: Bench) -> None:
    """A good reply has flags 0x1 and errno 0, a bad one 0x21."""
    good = bench.ask(Command.REGION_READ, _read())
    require(good.flags == REPLY, f"a good reply has flags {good.flags:#x}")
    require(good.errno == 0, f"a good reply has errno {good.errno}")
    bad = bench.ask(Command.REGION_READ, _PAST_THE_END)
    require(
        bench.failed(bad) and bad.flags == REPLY | ERROR, f"the reply to a read past the end has flags {bad.flags:#x}"
    )


@header.check(
    "errno-of-errors",
    level=Level.REFERENCE,
    needs=("header/flags-of-replies",),
    rule="protocol.md 2: QEMU takes Error with errno 0 for success",
)
def errno_of_errors(bench: Bench) -> None:
    """A bad reply says an errno, which the specification does not ask for."""
    bad = bench.ask(Command.REGION_READ, _PAST_THE_END)
    require(0 < bad.errno < 4096, f"the reply to a read past the end has errno {bad.errno}")


@header.check("errors-have-no-payload", rule="spec: Header, an error's reply is a header", dialects=MESSAGES)
def errors_have_no_payload(bench: Bench) -> None:
    """A bad reply is a header and nothing else."""
    for command, payload in (
        (Command.REGION_READ, _PAST_THE_END),
        (Command.GET_REGION_INFO, REGION_INFO.pack(REGION_INFO.size, 0, 0xFFFF_FFFF, 0, 0, 0)),
        (Command.GET_IRQ_INFO, IRQ_INFO.pack(IRQ_INFO.size, 0, 0xFFFF_FFFF, 0)),
    ):
        bad = bench.ask(command, payload)
        require(not bad.failed or bad.size == 16, f"the error that answers {command.value} has {bad.size} bytes")


@header.check("same-id-twice", rule="spec: Header, ids can be re-used even concurrently")
def same_id_twice(bench: Bench) -> None:
    """Two requests under way with one id are both answered, in order."""
    channel = bench.client.channel
    number = bench.dialect.number(Command.REGION_READ)
    pending = [channel.expect(7, "REGION_READ") for _ in range(3)]
    channel.send_bytes(b"".join(Message(7, number, payload=_read(count=n)).encode() for n in (1, 2, 4)))
    for request, count in zip(pending, (1, 2, 4), strict=True):
        bench.client.read_reply(bench.good(bench.client.wait(request), "a read"), count)


@header.check("size-below-16", level=Level.REFERENCE, rule="protocol.md 4: size < 16")
def size_below_16(bench: Bench) -> None:
    """A size below that of the header is refused with EINVAL, or ends the connection."""
    _refused_by_size(bench, Command.REGION_READ, (0, 1, 15))


@header.check("oversize", level=Level.REFERENCE, rule="protocol.md 4: size > 1 MiB + 32")
def oversize(bench: Bench) -> None:
    """A size that no message may have is refused with EINVAL, or ends the connection."""
    server = bench.client.server
    assert server is not None
    most = server.capabilities.data_per_message
    bench.client.close()
    sizes = (max(2 << 20, 2 * most), 0x7FFF_FFFF, 0xFFFF_FFFF)
    _refused_by_size(bench, Command.REGION_WRITE, [size for size in sizes if most + _OVERHEAD < size <= 0xFFFF_FFFF])


def _refused_by_size(bench: Bench, command: Command, sizes: Sequence[int]) -> None:
    for size in sizes:
        client = bench.connect()
        try:
            reply = client.raw(bench.dialect.number(command), size=size)
        except Disconnected:
            continue
        finally:
            client.close()
        assert reply is not None
        bench.refused(reply, (errno.EINVAL,), f"a message of size {size}")
    bench.alive()


@header.check("no-payload", level=Level.REFERENCE, rule="protocol.md 4: size == 16 and cmd != 13")
def no_payload(bench: Bench) -> None:
    """A command that needs a payload is refused with EINVAL without one."""
    for command, shape in bench.dialect.shapes.items():
        if shape.request is not None and shape.sender.value == "client":
            bench.refused(bench.ask(command), (errno.EINVAL,), f"{command.value} without payload")


@header.check(
    "type-reply",
    level=Level.REFERENCE,
    rule="protocol.md 4: type != command",
    revision=SINCE_2022,
)
def type_reply(bench: Bench) -> None:
    """A reply that answers nothing is refused with EINVAL, or ignored."""
    client = bench.client
    channel = client.channel
    unasked = Message(channel.fresh_id(), bench.dialect.number(Command.REGION_READ), REPLY, payload=_read())
    answer = channel.expect(unasked.id, "a message of type reply")
    channel.send_bytes(unasked.encode())
    client.device_info()  # whose answer comes behind that one, if there is any
    if answer.reply is not None:
        bench.refused(client.wait(answer), (errno.EINVAL,), answer.name)


@header.check(
    "type-unknown",
    level=Level.REFERENCE,
    rule="protocol.md 4: type != command",
    revision=SINCE_2022,
)
def type_unknown(bench: Bench) -> None:
    """A message of a type that does not exist is refused with EINVAL."""
    number = bench.dialect.number(Command.REGION_READ)
    for kind in (2, 15):
        reply = bench.client.raw(number, _read(), flags=kind)
        assert reply is not None
        bench.refused(reply, (errno.EINVAL,), f"a message of type {kind}")
    bench.client.device_info()


@header.check("unknown-command", level=Level.REFERENCE, rule="protocol.md 1: command numbers")
def unknown_command(bench: Bench) -> None:
    """A command number that the dialect does not have is refused with EINVAL."""
    sent = {shape.number for shape in bench.dialect.shapes.values()}
    for number in sorted({0, 14, 19, 20, 0x7FFF, 0xFFFF} - sent):
        reply = bench.client.raw(number, bytes(32))
        assert reply is not None
        bench.refused(reply, (errno.EINVAL,), f"command {number}")
    bench.client.device_info()


@header.check("servers-commands", level=Level.REFERENCE, rule="protocol.md 1: direction")
def servers_commands(bench: Bench) -> None:
    """A command that only a server sends is refused with EINVAL."""
    for command, shape in bench.dialect.shapes.items():
        if shape.sender.value == "server":
            bench.refused(bench.ask(command, bytes(32)), (errno.EINVAL,), f"{command.value} from a client")


@header.check("reserved-bits", level=Level.REFERENCE, rule="protocol.md 2: Unknown flag bits, Error bit in command")
def reserved_bits(bench: Bench) -> None:
    """Reserved flags and the errno of a command are ignored."""
    number = bench.dialect.number(Command.REGION_READ)
    for flags in (ERROR, 0x40, 0x8000_0000, 0xFFFF_FFC0):
        reply = bench.client.raw(number, _read(), flags=flags)
        assert reply is not None
        bench.good(reply, f"a read with flags {flags:#x}")
    pending = bench.client.channel.expect(3, "REGION_READ")
    bench.client.channel.send_bytes(Message(3, number, 0, 99, _read()).encode())
    bench.good(bench.client.wait(pending), "a read with an errno in its header")


# order


@order.check("pipelined")
def pipelined(bench: Bench) -> None:
    """Requests that are sent without waiting are all answered, in their order."""
    client = bench.client
    number = bench.dialect.number(Command.REGION_READ)
    counts = [1, 2, 4] * 20
    pending = [client.channel.expect(9, "REGION_READ") for _ in counts]
    for count in counts:
        client.channel.send_bytes(Message(9, number, payload=_read(count=count)).encode())
    for request, count in zip(pending, counts, strict=True):
        client.read_reply(bench.good(client.wait(request), "a pipelined read"), count)


@order.check("many-in-one-send", rule="a stream has no message boundaries")
def many_in_one_send(bench: Bench) -> None:
    """Many messages in one send, the last one in two, are all answered."""
    client = bench.client
    number = bench.dialect.number(Command.REGION_READ)
    pending = [client.channel.expect(id, "REGION_READ") for id in range(64)]
    data = b"".join(Message(id, number, payload=_read()).encode() for id in range(64))
    client.channel.send_bytes(data[:-32])
    client.channel.send_bytes(data[-32:])
    for reply in client.gather(pending):
        bench.good(reply, "a read among many")


@order.check("byte-by-byte", rule="a stream has no message boundaries; libvfio-user does not keep this (protocol.md 4)")
def byte_by_byte(bench: Bench) -> None:
    """A message that comes byte by byte is answered as one; the next byte comes once the one before was received."""
    client = bench.client
    number = bench.dialect.number(Command.REGION_READ)
    pending = client.channel.expect(5, "REGION_READ")
    data = Message(5, number, payload=_read()).encode()
    for at in range(len(data)):
        client.channel.send_bytes(data[at : at + 1])
        with suppress(OSError):  # a transport that does not tell, or a server that has had enough
            client.channel.await_taken(_TAKEN_SECONDS)
    client.read_reply(bench.good(client.wait(pending), "a read in pieces"), 4)


@order.check("posted-write-comes-first", needs=WRITTEN)
def posted_write_comes_first(bench: Bench) -> None:
    """A write with No_reply is done before the reply to a younger read."""
    bench.need_line()
    client = bench.client
    before = client.config_read(INTERRUPT_LINE, 1)
    try:
        for value in (b"\x55", b"\xaa", b"\x0a"):
            client.region_write(_CONFIG, INTERRUPT_LINE, value, posted=True)
            got = client.config_read(INTERRUPT_LINE, 1)
            require(got == value, f"the interrupt line reads {got.hex()} after a posted write of {value.hex()}")
    finally:
        client.config_write(INTERRUPT_LINE, before)


@order.check(
    "posted-writes-in-order",
    rule="spec: commands are executed in the order of their arrival",
    needs=("order/posted-write-comes-first",),
)
def posted_writes_in_order(bench: Bench) -> None:
    """Of writes with No_reply that come together the last one stays."""
    bench.need_line()
    client = bench.client
    number = bench.dialect.number(Command.REGION_WRITE)
    before = client.config_read(INTERRUPT_LINE, 1)
    try:
        for values in (b"\x55\xaa", b"\xaa\x55\x0a", bytes(range(1, 65))):
            writes = [REGION_ACCESS.pack(INTERRUPT_LINE, _CONFIG, 1, tail=bytes([value])) for value in values]
            together = [Message(id, number, NO_REPLY, 0, write).encode() for id, write in enumerate(writes)]
            client.channel.send_bytes(b"".join(together))
            got = client.config_read(INTERRUPT_LINE, 1)
            require(got == values[-1:], f"it reads {got.hex()} after {len(values)} writes, of {values[-1]:02x} at last")
    finally:
        client.config_write(INTERRUPT_LINE, before)


@order.check("posted-write-is-silent", rule="spec: Header, No_reply", needs=ECHOED)
def posted_write_is_silent(bench: Bench) -> None:
    """A write with No_reply is not answered, neither when it is good nor when it is bad."""
    client = bench.client
    number = bench.dialect.number(Command.REGION_WRITE)
    line = client.config_read(INTERRUPT_LINE, 1)
    good = REGION_ACCESS.pack(INTERRUPT_LINE, _CONFIG, 1, tail=line)
    bad = REGION_ACCESS.pack(1 << 40, _CONFIG, 1, tail=b"x")
    for what, payload in (("a posted write", good), ("a bad posted write", bad)):
        answer = client.channel.expect(0x5151, what)
        client.channel.send_bytes(Message(0x5151, number, NO_REPLY, 0, payload).encode())
        client.device_info()
        require(answer.reply is None, f"{what} was answered")


@order.check("no-reply-on-any-command", rule="spec: Header, No_reply", needs=ECHOED)
def no_reply_on_any_command(bench: Bench) -> None:
    """No_reply silences every command, not only writes."""
    client = bench.client
    for command, payload in ((Command.GET_INFO, _info(bench)), (Command.REGION_READ, _read())):
        answer = client.channel.expect(0x5252, command.value)
        client.channel.send_bytes(Message(0x5252, bench.dialect.number(command), NO_REPLY, 0, payload).encode())
        client.config_read(0, 4)
        if answer.reply is not None:
            closed(answer.reply)
        require(answer.reply is None, f"{command.value} with No_reply was answered")


@order.check("error-does-not-stop", rule="spec: commands are executed in the order of their arrival")
def error_does_not_stop(bench: Bench) -> None:
    """A bad request among good ones is answered in its place and the others are served."""
    client = bench.client
    number = bench.dialect.number(Command.REGION_READ)
    payloads = (_read(), _PAST_THE_END, _read())
    pending = [client.channel.expect(8, "REGION_READ") for _ in payloads]
    client.channel.send_bytes(b"".join(Message(8, number, payload=payload).encode() for payload in payloads))
    failed = [closed(reply).failed for reply in client.gather(pending)]
    require(failed == [False, True, False], f"good, bad and good reads are answered with failures {failed}")


def _half_then_leave(bench: Bench, size: int) -> None:
    client = bench.connect()
    header = HEADER.pack(1, bench.dialect.number(Command.REGION_WRITE), 16 + 16 + 64, 0, 0)
    client.channel.send_bytes((header + REGION_ACCESS.pack(0, _CONFIG, 64))[:size])
    client.close()


@order.check("half-a-message", rule="protocol.md 4: partial header then close")
def half_a_message(bench: Bench) -> None:
    """Clients that leave in the middle of a message leave the server ready."""
    for size in (1, 15, 16, 20, 31):
        _half_then_leave(bench, size)
    bench.alive()
