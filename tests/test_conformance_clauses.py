"""What a check requires beside its first requirement is found too, by its words: a table of one change of answers each.

`test_conformance_can_fail` has a server that each check fails, which may be for another requirement than these.
"""

from __future__ import annotations

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
from vfio_user.wire.layouts import DEVICE_STATE, FEATURE, IRQ_SET, REGION_ACCESS

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
