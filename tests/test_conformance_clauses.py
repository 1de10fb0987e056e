"""What a check requires beside its first requirement is found too, by its words: a table of one change of answers each.

`test_conformance_can_fail` has a server that each check fails, which may be for another requirement than these.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.conformance_target import Fault, InProcess, Proceed, Reply, with_fault
from tests.everything_device import Everything
from userdev.errors import ProtocolError
from vfio_user.client.conformance import CATALOGUE, run
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire.constants import FEATURE_MASK, Feature, IrqSetFlags, MigrationState, RegionIndex
from vfio_user.wire.layouts import DEVICE_STATE, FEATURE, IRQ_SET, REGION_ACCESS, VERSION

C = Command
Edit = Callable[[bytes], bytes]


class Says(Fault):
    """Every answer to a command says something else."""

    def __init__(self, command: Command, edit: Edit, when: Callable[[bytes], bool] = lambda request: True) -> None:
        self._command, self._edit, self._when = command, edit, when

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        request = message.payload
        payload, fds = proceed(command, message)
        return (self._edit(payload) if command is self._command and self._when(request) else payload), fds


class Keeps(Fault):
    """Some requests of a command are answered, and not done."""

    def __init__(self, command: Command, when: Callable[[bytes], bool], answer: Edit = lambda request: b"") -> None:
        self._command, self._when, self._answer = command, when, answer

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is self._command and self._when(message.payload):
            return self._answer(message.payload), []
        return proceed(command, message)


class Changes(Fault):
    """A request that is refused has changed a register of config space: the command register at 4, for one."""

    def __init__(self, at: int) -> None:
        self._place = REGION_ACCESS.pack(at, RegionIndex.CONFIG, 1)

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError:
            read, _ = proceed(C.REGION_READ, replace(message, payload=self._place))
            written = self._place + bytes((read[-1] ^ 2,))
            proceed(C.REGION_WRITE, replace(message, payload=written))
            raise


class Sends(Fault):
    """The header of an answer is another."""

    def __init__(self, edit: Callable[[Message], Message]) -> None:
        self._edit = edit

    def sent(self, message: Message) -> list[Message]:
        return [self._edit(message) if message.command != CURRENT.number(C.VERSION) else message]


class ForgetsItsPlace(Fault):
    """After a reset it says that it is another."""

    def __init__(self) -> None:
        self._was_reset = False

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        self._was_reset |= command is C.DEVICE_RESET
        return (u32(12, 9)(payload) if command is C.GET_INFO and self._was_reset else payload), fds


class SaysVersion(Fault):
    """VERSION is answered with this."""

    def __init__(self, text: bytes, minor: int = 0, fds: int = 0) -> None:
        self._payload, self._fds = VERSION.pack(0, minor, tail=text), fds

    def sent(self, message: Message) -> list[Message]:
        if message.command != CURRENT.number(C.VERSION):
            return [message]
        return [replace(message, payload=self._payload, fds=[os.memfd_create("unasked") for _ in range(self._fds)])]


class RefusesWith(Fault):
    """Every refusal has this number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except ProtocolError as error:
            raise ProtocolError(str(error), self._number) from error


class IsAnotherForEach(Fault):
    """Every client is told of one interrupt type more than the one before."""

    def __init__(self) -> None:
        self._seen: list[Session] = []

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if session not in self._seen:
            self._seen.append(session)
        payload, fds = proceed(command, message)
        return (u32(12, 4 + len(self._seen))(payload) if command is C.GET_INFO else payload), fds


class TakesItsIds(Fault):
    """What is written to the ids is read back."""

    def __init__(self) -> None:
        self._written = b""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if at(0)(message.payload):
            if command is C.REGION_WRITE:
                self._written = message.payload[16:]
            elif command is C.REGION_READ and self._written:
                payload = payload[:16] + self._written
        return payload, fds


def at(offset: int, count: int = 4) -> Callable[[bytes], bool]:
    """An access of so many bytes to this offset of config space."""
    return lambda request: request[:16] == REGION_ACCESS.pack(offset, CONFIG, count)


def of_feature(feature: Feature) -> Callable[[bytes], bool]:
    """DEVICE_FEATURE with this one, in whatever way."""
    return lambda request: len(request) >= 8 and FEATURE.unpack(request).flags & FEATURE_MASK == feature


def ends_with(tail: bytes) -> Edit:
    return lambda data: data[: -len(tail)] + tail


def u32(at: int, value: int) -> Edit:
    """Have a number be this."""
    return lambda data: data[:at] + struct.pack("<I", value) + data[at + 4 :]


def longer(data: bytes) -> bytes:
    return data + bytes(4)


def irqs(flags: int, vectors: int) -> Callable[[bytes], bool]:
    """SET_IRQS with these flags, for so many vectors."""

    def when(request: bytes) -> bool:
        asked = IRQ_SET.unpack(request) if len(request) >= IRQ_SET.size else None
        return asked is not None and (asked.flags, asked.nr_vectors) == (flags, vectors)

    return when


def state_set_to(state: int) -> Callable[[bytes], bool]:
    """DEVICE_FEATURE that sets this migration state."""

    def when(request: bytes) -> bool:
        if len(request) < FEATURE.size + DEVICE_STATE.size:
            return False
        is_state = FEATURE.unpack(request).flags & FEATURE_MASK == Feature.MIG_DEVICE_STATE
        return is_state and DEVICE_STATE.unpack(request, FEATURE.size).state == state

    return when


def of_region(index: int) -> Callable[[bytes], bool]:
    return lambda request: len(request) > 12 and struct.unpack_from("<I", request, 8)[0] == index


def cut(request: bytes) -> bool:
    """A request for a region whose answer has no room for more than the structure."""
    return request[:4] == struct.pack("<I", 32)


_STATE, _REPORT = Feature.MIG_DEVICE_STATE, Feature.DMA_LOGGING_REPORT
CONFIG = RegionIndex.CONFIG
NONE, TRIGGER, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.TRIGGER, IrqSetFlags.DATA_EVENTFD

CLAUSES: list[tuple[str, str, Fault]] = [
    ("info/describes", "bytes instead of 32", Says(C.GET_INFO, longer)),
    ("info/describes", "argsz is 17 instead of 16", Says(C.GET_INFO, u32(0, 17))),
    ("info/describes", "the PCI flag is not set", Says(C.GET_INFO, u32(4, 0))),
    ("info/describes", "3 regions: QEMU takes", Says(C.GET_INFO, u32(8, 3))),
    ("info/describes", "2 interrupt types: QEMU takes", Says(C.GET_INFO, u32(12, 2))),
    ("region_info/describes-every-region", "says that it is region 0", Says(C.GET_REGION_INFO, u32(8, 0))),
    ("region_info/describes-every-region", "has flags 0x1", Says(C.GET_REGION_INFO, u32(4, 1), of_region(CONFIG))),
    ("region_info/describes-every-region", "has 512 bytes", Says(C.GET_REGION_INFO, u32(16, 512), of_region(CONFIG))),
    ("irq_info/describes-every-type", "says that it is type 0", Says(C.GET_IRQ_INFO, u32(8, 0))),
    ("irq_info/describes-every-type", "has argsz 17", Says(C.GET_IRQ_INFO, u32(0, 17))),
    ("irq_info/describes-every-type", "cannot be delivered by eventfd", Says(C.GET_IRQ_INFO, u32(4, 0))),
    ("region_read/reply", "is answered with (1, ", Says(C.REGION_READ, u32(0, 1))),
    ("region_write/reply", "bytes instead of 32", Says(C.REGION_WRITE, longer)),
    ("region_write/reply", "the reply says offset 0x1", Says(C.REGION_WRITE, u32(0, 1))),
    ("region_write/reply", "has count 7", Says(C.REGION_WRITE, u32(12, 7))),
    ("region_write/stays", "the interrupt line reads", Keeps(C.REGION_WRITE, lambda _: True, lambda asked: asked[:16])),
    ("reset/succeeds", "bytes instead of 16", Says(C.DEVICE_RESET, longer)),
    ("reset/succeeds", "describes itself differently", ForgetsItsPlace()),
    ("dma_map/reply-is-header", "instead of 16", Says(C.DMA_MAP, longer)),
    ("dma_unmap/reply-echoes", "is not the request's structure", Says(C.DMA_UNMAP, u32(4, 1))),
    ("set_irqs/disable", "after its index was disabled", Keeps(C.SET_IRQS, irqs(NONE | TRIGGER, 0))),
    ("header/flags-of-replies", "a good reply has flags 0x41", Sends(lambda reply: replace(reply, flags=0x41))),
    ("header/flags-of-replies", "a good reply has errno 5", Sends(lambda reply: replace(reply, errno=5))),
    ("region_read/at-the-end", "still changed config space", Changes(4)),
    ("region_read/at-the-end", "still changed config space", Changes(0x3C)),
    ("dma_map/argsz-zero", "still changed config space", Changes(4)),
    ("set_irqs/no-action", "still changed config space", Changes(4)),
    ("header/flags-of-replies", "past the end has errno 5000", RefusesWith(5000)),
    (
        "order/posted-write-comes-first",
        "after a posted write",
        Keeps(C.REGION_WRITE, lambda _: True, lambda it: it[:16]),
    ),
    ("region_read/pieces-agree", "in pieces of 1 bytes", Says(C.REGION_READ, ends_with(b"\x99"), at(9, 1))),
    ("region_write/read-only", "the ids are", TakesItsIds()),
    ("region_write/bar-sizing", "BAR0 sizes to 0x0", Says(C.REGION_READ, u32(16, 0), at(0x10))),
    ("write_multi/in-order", "3 writes are answered with 2", Says(C.REGION_WRITE_MULTI, u32(0, 2))),
    (
        "write_multi/in-order",
        "after writes of 01, 02, 03",
        Keeps(C.REGION_WRITE_MULTI, lambda _: True, lambda it: it[:8]),
    ),
    ("region_info/two-steps", "argsz 32 is answered with 36 bytes", Says(C.GET_REGION_INFO, longer, cut)),
    ("region_info/two-steps", "with the CAPS flag", Says(C.GET_REGION_INFO, u32(4, 15), cut)),
    ("feature/probe", "is answered with something else", Says(C.DEVICE_FEATURE, u32(0, 99))),
    ("feature/migration-flags", "argsz is not", Says(C.DEVICE_FEATURE, u32(0, 99), of_feature(Feature.MIGRATION))),
    ("feature/migration-flags", "bytes instead of 32", Says(C.DEVICE_FEATURE, longer, of_feature(Feature.MIGRATION))),
    ("feature/migration-flags", "STOP_COPY is not", Says(C.DEVICE_FEATURE, u32(8, 0), of_feature(Feature.MIGRATION))),
    ("migration/initial-state", "the state is STOP", Says(C.DEVICE_FEATURE, u32(8, 1), of_feature(_STATE))),
    (
        "dirty_logging/clean-at-first",
        "pages are dirty",
        Says(C.DEVICE_FEATURE, ends_with(b"\xff"), of_feature(_REPORT)),
    ),
    ("dirty_logging/unmap-with-bitmap", "pages are dirty", Says(C.DMA_UNMAP, ends_with(b"\xff"))),
    ("mig_data/reads-to-the-end", "a device without any state", Says(C.MIG_DATA_READ, lambda it: u32(4, 0)(it[:8]))),
    ("session/next-client", "the next client finds another device", IsAnotherForEach()),
    ("version/reply-has-json", "the reply has no JSON", SaysVersion(b"")),
    ("version/reply-has-json", "does not end with a NUL", SaysVersion(b"{}")),
    ("version/reply-has-json", "the reply's JSON is malformed", SaysVersion(b"{\0")),
    ("version/reply-has-json", "capabilities are no object", SaysVersion(b"[]\0")),
    ("version/limits-qemu-takes", "max_msg_fds is 17", SaysVersion(b'{"capabilities":{"max_msg_fds":17}}\0')),
    ("version/limits-qemu-takes", "pgsizes is 512", SaysVersion(b'{"capabilities":{"pgsizes":512}}\0')),
    ("version/agreed", "minor 1 answers minor 0", SaysVersion(b"{}\0", minor=1)),
    ("version/no-unasked-fds", "1 descriptors came", SaysVersion(b"{}\0", fds=1)),
    (
        "migration/running-to-stop",
        "the state is RUNNING instead of STOP",
        Keeps(C.DEVICE_FEATURE, state_set_to(MigrationState.STOP), lambda asked: asked),
    ),
]
"""Check, words of what it requires, and the fault."""


def test_whatever_a_check_requires_there_is_a_server_that_it_finds_by_that(tmp_path: Path) -> None:
    checks = {check.id: check for check in CATALOGUE}
    said: dict[tuple[str, str, int], str] = {}
    for number, (id, words, fault) in enumerate(CLAUSES):
        place = tmp_path / str(number)
        place.mkdir()
        with InProcess(place, Everything, session=with_fault(fault)) as target:
            [result] = run([checks[id]], target, CURRENT, timeout=1)
        said[id, words, number] = result.detail
    assert {which: detail for which, detail in said.items() if which[1] not in detail} == {}
