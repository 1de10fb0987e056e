"""What the fuzzer says of a server that does a thing wrong which its oracle has more than one rule for."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.conformance_target import Fault, InProcess, Proceed, Reply, with_fault
from tests.fuzz_kit import Switched
from userdev.errors import ProtocolError
from userdev.fuzz import Step
from userdev_servers.edu import Edu
from vfio_user.fuzz import VfioUserSubject
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire.constants import FEATURE_MASK, Feature, FeatureFlags, IrqSetFlags
from vfio_user.wire.constants import MigrationState as State
from vfio_user.wire.layouts import FEATURE, IRQ_SET


class FiresTwice(Fault):
    """A vector that is triggered fires twice."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.SET_IRQS and len(message.payload) == IRQ_SET.size:
            asked = IRQ_SET.unpack(message.payload)
            if asked.flags == IrqSetFlags.DATA_NONE | IrqSetFlags.TRIGGER and asked.nr_vectors:
                proceed(command, message)
        return proceed(command, message)


class SaysAnotherSize(Fault):
    """The reply to an unmap says another size than was unmapped."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        return (payload[:-8] + bytes(8) if command is Command.DMA_UNMAP else payload), fds


class ForgetsNoPage(Fault):
    """A page that a report had is in the next one too."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        feature = FEATURE.unpack(message.payload).flags & FEATURE_MASK if command is Command.DEVICE_FEATURE else None
        return (payload[:-1] + b"\x80" if feature == Feature.DMA_LOGGING_REPORT else payload), fds


class Alters(Fault):
    """A command is carried out, and its reply altered."""

    def __init__(self, of: Command, how: Callable[[bytes], bytes]) -> None:
        self.of, self.how = of, how

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        return (self.how(payload) if command is self.of else payload), fds


class AltersBehind(Alters):
    """The replies to a command are altered once there was another."""

    def __init__(self, behind: Command, of: Command, how: Callable[[bytes], bytes]) -> None:
        super().__init__(of, how)
        self.behind, self.was = behind, False

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        self.was |= command is self.behind
        return super().command(session, command, message, proceed) if self.was else proceed(command, message)


class Ignores(Fault):
    """A command is answered and not carried out."""

    def __init__(self, of: Command, answer: int) -> None:
        self.of, self.answer = of, answer

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is self.of:
            return message.payload[: self.answer], []
        return proceed(command, message)


class Heads(Fault):
    """The replies to resets have another header."""

    def __init__(self, **header: int) -> None:
        self.header = header

    def sent(self, message: Message) -> list[Message]:
        is_of_reset = message.command == CURRENT.number(Command.DEVICE_RESET)
        return [replace(message, **self.header) if is_of_reset else message]  # type: ignore[arg-type]


class IgnoresStates(Fault):
    """The device stays in the state that it is in, and says that it does not."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DEVICE_FEATURE and not _asks_only(command, message):
            return message.payload, []
        return proceed(command, message)


class RefusesAfterwards(Fault):
    """A command is carried out and then refused."""

    def __init__(self, of: Command) -> None:
        self.of = of

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        reply = proceed(command, message)
        if command is self.of and not _asks_only(command, message):
            raise ProtocolError("on purpose", errno=errno.EINVAL)
        return reply


def _asks_only(command: Command, message: Message) -> bool:
    return command is Command.DEVICE_FEATURE and not FEATURE.unpack(message.payload).flags & FeatureFlags.SET


class FiresTheNextToo(Fault):
    """What triggers a vector triggers the next as well; what is refused triggers them too."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is not Command.SET_IRQS or len(message.payload) != IRQ_SET.size:
            return proceed(command, message)
        asked = IRQ_SET.unpack(message.payload)
        trigger = IrqSetFlags.DATA_NONE | IrqSetFlags.TRIGGER
        try:
            return proceed(command, message)
        finally:
            if asked.nr_vectors and asked.flags & IrqSetFlags.TRIGGER and not message.fds:
                proceed(command, replace(message, payload=IRQ_SET.pack(IRQ_SET.size, trigger, asked[2], 2, 1)))


def flipped(at: int) -> Callable[[bytes], bytes]:
    """Another byte there; -1: at the end."""

    def how(payload: bytes) -> bytes:
        changed = bytearray(payload)
        if len(changed) > at:
            changed[at] ^= 1
        return bytes(changed)

    return how


def longer(payload: bytes) -> bytes:
    """Eight bytes more than there are."""
    return payload + bytes(8)


GIVE = Step.of("give", slot=0, page=0, pages=0, shift=0, rights=3, shared=1)
WIRE = Step.of("wire", irq=2, start=0, count=3, spare=0)
TRIGGER = Step.of("trigger", irq=2, start=1, count=1, chosen=())
WRITE = Step.of("write", region=0, offset=4, width=4, value=1, posted=0)
CONFIG = Step.of("write_config", offset=0x3C, data=(7,))
MANY = Step.of("write_many", values=(1, 2), count=0)
TO_STOP, TO_STOP_COPY, TO_RESUMING = (
    Step.of("change_state", state=int(state)) for state in (State.STOP, State.STOP_COPY, State.RESUMING)
)
CONTRADICTION = IrqSetFlags.DATA_NONE | IrqSetFlags.DATA_BOOL | IrqSetFlags.TRIGGER
REPORT = [GIVE, Step.of("start_logging", page_size=4096), Step.of("report_log", slots=1, less=0)]
RESET = Step.of("reset")
C = Command
TOLD: dict[str, tuple[Callable[[], Fault], list[Step]]] = {
    "for one trigger": (
        FiresTwice,
        [WIRE, TRIGGER],
    ),
    "the reply to DMA_UNMAP is not": (SaysAnotherSize, [GIVE, Step.of("unmap", slot=0, page=0, pages=0, shift=0)]),
    "a page is dirty that was reported a moment ago": (
        ForgetsNoPage,
        REPORT,
    ),
    "bytes and had": (
        lambda: Alters(C.GET_REGION_INFO, flipped(16)),
        [Step.of("describe_region", index=0, room=0)],
    ),
    "bytes says argsz": (lambda: Alters(C.GET_REGION_INFO, longer), [Step.of("describe_region", index=0, room=8)]),
    "is described differently": (lambda: Alters(C.GET_IRQ_INFO, flipped(12)), [Step.of("describe_irq", index=2)]),
    "the reply to a write is not": (lambda: Alters(C.REGION_WRITE, longer), [WRITE]),
    "the reply to a write repeats it wrong": (lambda: Alters(C.REGION_WRITE, flipped(0)), [WRITE]),
    "2 writes are answered with": (lambda: Alters(C.REGION_WRITE_MULTI, flipped(0)), [MANY]),
    "the interrupt line is": (lambda: Ignores(C.REGION_WRITE_MULTI, 8), [MANY]),
    "a read behind a write of": (
        lambda: Alters(C.REGION_READ, flipped(-1)),
        [Step.of("burst", values=(1,), posted=0, place=0)],
    ),
    "a write has changed what is read-only at": (
        lambda: AltersBehind(C.REGION_WRITE, C.REGION_READ, flipped(16)),
        [CONFIG],
    ),
    "a write of configuration space was refused": (lambda: RefusesAfterwards(C.REGION_WRITE), [CONFIG]),
    "its eventfd not fired": (lambda: Ignores(C.SET_IRQS, 0), [WIRE, TRIGGER]),
    "fired, and [1] were triggered": (FiresTheNextToo, [WIRE, TRIGGER]),
    "that was refused has fired": (
        FiresTheNextToo,
        [
            WIRE,
            Step.of("set_wrong", irq=2, flags=int(CONTRADICTION)),
        ],
    ),
    "the state is RUNNING and not STOP": (IgnoresStates, [TO_STOP]),
    "was refused, and the state is RESUMING": (lambda: RefusesAfterwards(C.DEVICE_FEATURE), [TO_RESUMING]),
    "bytes of state for 64": (
        lambda: Alters(C.MIG_DATA_READ, longer),
        [TO_STOP_COPY, Step.of("read_data", size=64, argsz=0)],
    ),
    "GET of feature 1 says argsz": (
        lambda: Alters(C.DEVICE_FEATURE, flipped(0)),
        [Step.of("get_feature", feature=1, room=8)],
    ),
    "behind a reset in RUNNING": (lambda: AltersBehind(C.DEVICE_RESET, C.DEVICE_FEATURE, flipped(8)), [RESET]),
    "the reply to DEVICE_RESET has flags": (lambda: Heads(flags=0x101), [RESET]),
    "the reply to DEVICE_RESET has errno": (lambda: Heads(errno=errno.EIO), [RESET]),
    "DEVICE_RESET is answered with command": (lambda: Heads(command=1), [RESET]),
    "bytes of bits": (lambda: Alters(C.DEVICE_FEATURE, longer), REPORT),
    "behind saving and loading": (
        lambda: AltersBehind(C.MIG_DATA_WRITE, C.REGION_READ, flipped(-1)),
        [Step.of("move", reset_between=0, chunk=0, damage="")],
    ),
}
"""By what is said: a server that does it wrong, and when."""


def test_a_server_is_found_by_the_rule_that_it_breaks_and_one_that_breaks_none_is_not(tmp_path: Path) -> None:
    switched = Switched()
    with InProcess(tmp_path, Edu, session=with_fault(switched)) as target:
        player = VfioUserSubject(target, CURRENT, timeout=5)
        assert not player.prepare()
        for said, (make, steps) in TOLD.items():
            for fault in (make(), Fault()):
                switched.now = fault
                found = player.play(steps)
                assert (found is None) is (type(fault) is Fault), (said, found)
                assert found is None or said in str(found)
        player.close()
