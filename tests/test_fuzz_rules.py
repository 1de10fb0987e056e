"""Rules of `vfio-user fuzz` that a device in order never breaks: each has a server that does, by the rule's own words.

Those that all oracles have at least one of are in test_fuzz_servers.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conformance_target import Fault, InProcess, Proceed, Reply, with_fault
from tests.conftest import PATIENCE
from tests.everything_device import Everything
from tests.fuzz_kit import Switched
from userdev.errors import ProtocolError
from userdev.fuzz import Step
from userdev.transport import close_all
from userdev_servers.edu import Edu
from vfio_user.device import PciDevice, register
from vfio_user.fuzz import VfioUserSubject
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, DIALECTS, REGION_MIGRATION, Command, Dialect, Message
from vfio_user.wire.constants import IrqSetFlags, MigrationState
from vfio_user.wire.layouts import DEVICE_STATE, FEATURE, IRQ_SET, REGION_ACCESS, REGION_INFO

MAPPED = 2
"""The BAR of `Everything` that may be mapped, in two areas."""
MSIX = 2
TRIGGER, UNMASK, NONE, EVENTFD = (
    IrqSetFlags.TRIGGER,
    IrqSetFlags.UNMASK,
    IrqSetFlags.DATA_NONE,
    IrqSetFlags.DATA_EVENTFD,
)
STOPPED = 0


class OfTheMappedRegion(Fault):
    """Says something else of the region that may be mapped."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is Command.GET_REGION_INFO and REGION_INFO.unpack(message.payload).region == MAPPED:
            return self.described(payload, fds)
        return payload, fds

    def described(self, payload: bytes, fds: list[int]) -> Reply:
        return payload, fds


class OtherAreas(OfTheMappedRegion):
    """The last area has another size."""

    def described(self, payload: bytes, fds: list[int]) -> Reply:
        return payload[:-8] + (0x1000).to_bytes(8, "little"), fds


class NoDescriptor(OfTheMappedRegion):
    def described(self, payload: bytes, fds: list[int]) -> Reply:
        return payload, []


class AnotherFile(OfTheMappedRegion):
    """The region's registers are not in the file that comes with its description."""

    def __init__(self, size: int, byte: bytes = b"") -> None:
        self.content = byte * size
        self.given: list[int] = []

    def described(self, payload: bytes, fds: list[int]) -> Reply:
        self.given.append(os.memfd_create("another"))
        os.write(self.given[-1], self.content)
        return payload, self.given[-1:]


class FiresWhatIsGone(Fault):
    """Keeps all eventfds of vector 0, and fires them with each trigger; if it is `eager`, as each new one comes."""

    def __init__(self, *, eager: bool) -> None:
        self.given: list[int] = []
        self.eager = eager

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is not Command.SET_IRQS:
            return proceed(command, message)
        asked = IRQ_SET.unpack(message.payload)
        wrong = EVENTFD | TRIGGER if self.eager else NONE | TRIGGER
        if asked.flags == wrong and asked.nr_vectors:
            for fd in self.given:
                os.eventfd_write(fd, 1)
        self.given += map(os.dup, message.fds)
        return proceed(command, message)


class FiresWhatItRefuses(Fault):
    """Eventfds of a request that is refused are fired."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        fds = [*map(os.dup, message.fds)]
        try:
            return proceed(command, message)
        except ProtocolError:
            for fd in fds:
                os.eventfd_write(fd, 1)
            raise
        finally:
            close_all(fds)


class FiresTwice(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        answer = proceed(command, message)
        if command is Command.SET_IRQS and IRQ_SET.unpack(message.payload).flags == NONE | TRIGGER:
            proceed(command, message)
        return answer


class FiresWithTheMask(Fault):
    """A vector that is unmasked is fired, whatever came while it was masked."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        answer = proceed(command, message)
        if command is Command.SET_IRQS and (asked := IRQ_SET.unpack(message.payload)).flags & UNMASK:
            message.payload = IRQ_SET.pack(asked.argsz, NONE | TRIGGER, *asked[2:])
            proceed(command, message)
        return answer


def state_written(command: Command, message: Message) -> int | None:
    """What is written to the migration region's device_state."""
    if command is not Command.REGION_WRITE:
        return None
    access = REGION_ACCESS.unpack(message.payload)
    of_state = (access.offset, access.length) == (0, 4) and access.region > 8
    return int.from_bytes(message.payload[REGION_ACCESS.size :], "little") if of_state else None


class RefusesAndMoves(Fault):
    """By the region: what is done is told as refused."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        answer = proceed(command, message)
        if state_written(command, message) not in (None, STOPPED):
            raise ProtocolError("no", errno.EINVAL)
        return answer


class StaysStopped(Fault):
    """By the region: behind STOPPED no other state is read back."""

    is_stopped = False

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        self.is_stopped |= state_written(command, message) == STOPPED
        payload, fds = proceed(command, message)
        if self.is_stopped and command is Command.REGION_READ:
            access = REGION_ACCESS.unpack(message.payload)
            if (access.offset, access.length) == (0, 4) and access.region > 8:
                payload = payload[: REGION_ACCESS.size] + bytes(4)
        return payload, fds


class SaysStop(Fault):
    """By messages: whatever the device does, its state is said to be STOP."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is Command.DEVICE_FEATURE and len(payload) == FEATURE.size + DEVICE_STATE.size:
            payload = payload[: FEATURE.size] + DEVICE_STATE.pack(MigrationState.STOP, 0)
        return payload, fds


class CountsLoads(Edu):
    """Its liveness register says how often a state was loaded."""

    loads = 0

    @register(bar=0, offset=0x04, width=4)
    def liveness(self) -> int:  # type: ignore[override]
        return self.loads

    def on_load(self) -> None:
        self.loads += 1


class Case(NamedTuple):
    device: type[PciDevice]
    fault: Fault
    steps: Sequence[Step]
    dialect: Dialect = CURRENT


WIRE = Step.of("wire", irq=MSIX, start=0, count=1, spare=0)
TAKE_AWAY = Step.of("take_away", irq=MSIX, start=0, count=0)
FIRE = Step.of("trigger", irq=MSIX, start=0, count=1, chosen=())
LOOK = Step.of("look_at_mapped", region=MAPPED, offset=0)

BROKEN: dict[str, Case] = {
    "may be mapped in other areas than before": Case(
        Everything, OtherAreas(), [Step.of("describe_region", index=MAPPED, room=512)]
    ),
    "may be mapped and comes without a descriptor": Case(Everything, NoDescriptor(), [LOOK]),
    "0x1000+0x1000 cannot be mapped": Case(Everything, AnotherFile(1), [LOOK]),
    "and shows ffffffff where it is mapped": Case(Everything, AnotherFile(0x8000, b"\xff"), [LOOK]),
    "trigger: an eventfd was fired that had been taken away": Case(
        Edu, FiresWhatIsGone(eager=False), [WIRE, TAKE_AWAY, FIRE]
    ),
    "wire: an eventfd was fired that had been taken away": Case(Edu, FiresWhatIsGone(eager=True), [WIRE, WIRE]),
    "refused wire: an eventfd was fired that had been taken away": Case(
        Edu, FiresWhatItRefuses(), [Step.of("wire", irq=MSIX, start=0, count=1, spare=1)]
    ),
    "fired 2 times for one trigger": Case(Edu, FiresTwice(), [WIRE, FIRE]),
    "fired 2 times when it was masked meanwhile": Case(
        Edu, FiresWithTheMask(), [WIRE, Step.of("hold_back", irq=MSIX, vector=0)]
    ),
    "1 to 2 was refused, and the state is 2": Case(
        Edu, RefusesAndMoves(), [Step.of("change_states", states=(2,))], REGION_MIGRATION
    ),
    "behind saving and loading, region 0 at 0x4": Case(
        CountsLoads, Fault(), [Step.of("move_region", reset_between=0, damage=0)], REGION_MIGRATION
    ),
    "the device stays in state 0, behind a reset too": Case(
        Edu, StaysStopped(), [Step.of("change_states", states=(STOPPED,))], REGION_MIGRATION
    ),
    "the device stays in STOP, whatever the next client does": Case(
        Edu, SaysStop(), [Step.of("change_state", state=int(MigrationState.STOP))]
    ),
}
"""By what is said of it; before a colon is what tells two that say the same apart."""


def test_a_server_is_found_by_the_rule_that_it_breaks(tmp_path: Path) -> None:
    servers: dict[tuple[type[PciDevice], str], dict[str, Case]] = {}
    for said, case in BROKEN.items():
        servers.setdefault((case.device, case.dialect.name), {})[said] = case
    for (device, name), cases in servers.items():
        (folder := tmp_path / f"{device.__name__} {name}").mkdir()
        switched = Switched()
        with InProcess(folder, device, session=with_fault(switched), dialect=DIALECTS[name]) as target:
            player = VfioUserSubject(target, DIALECTS[name], timeout=PATIENCE)
            assert player.prepare() == []
            for said, case in cases.items():
                switched.now = case.fault
                found = player.play(case.steps)
                close_all(vars(case.fault).pop("given", []))
                assert found is not None, said
                assert said.rpartition(": ")[2] in str(found), said
                switched.now = Fault()
                assert device is CountsLoads or player.play(case.steps) is None, said
            player.close()
