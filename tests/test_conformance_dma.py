"""Conformance's checks of what edu does by itself, each against a server that is wrong in what the check is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cases import for_each_row
from tests.conformance_target import Fault, InProcess, Proceed, Reply, failed, with_fault
from userdev.errors import ProtocolError
from userdev.transport import close_all
from userdev_servers.edu import TO_RAM, Edu
from vfio_user.client.conformance import CATALOGUE, Outcome, run
from vfio_user.device import PciDevice
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire.constants import DmaFlags, Feature
from vfio_user.wire.layouts import DMA_MAP, REGION_ACCESS

UNMAP_REPLY = 24
"""Bytes of a good one that has no bitmap."""


class MapsNothing(Fault):
    """Asks by message for what it could have mapped."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DMA_MAP:
            close_all(message.fds)
            message.fds = []
        return proceed(command, message)


class WritesWhatMayOnlyBeRead(Fault):
    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DMA_MAP:
            argsz, flags, *rest = DMA_MAP.unpack(message.payload)
            message.payload = DMA_MAP.pack(argsz, flags | DmaFlags.WRITE, *rest)
        return proceed(command, message)


class UnmapsNothing(Fault):
    """Says that it has."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        return (message.payload[:UNMAP_REPLY], []) if command is Command.DMA_UNMAP else proceed(command, message)


class KeepsItsMappings(Fault):
    """Unmaps what it had no descriptor of, and says that it has unmapped the rest."""

    mapped = False

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DMA_MAP:
            self.mapped = bool(message.fds)
        if command is Command.DMA_UNMAP and self.mapped:
            return message.payload[:UNMAP_REPLY], []
        return proceed(command, message)


class MapsNothingAtAll(Fault):
    """Says that it has, and does look at what it is asked: one that does not does no DMA, as it may."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is not Command.DMA_MAP or len(message.payload) < DMA_MAP.size:
            return proceed(command, message)
        close_all(message.fds)
        return b"", []


class LogsNothing(Fault):
    """Reports that no page was written."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        logged = command is Command.DEVICE_FEATURE and message.payload[4] == Feature.DMA_LOGGING_REPORT
        return (payload[:-8] + bytes(8) if logged else payload), fds


class ReadsWrongly(Fault):
    """The last of the 8 bytes of a register are others."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        wide = command is Command.REGION_READ and REGION_ACCESS.unpack(message.payload)[1:] == (0, 8)
        return (payload[:-4] + b"\1" * 4 if wide else payload), fds


class StuckEdu(Edu):
    """Is busy for good where its DMA is refused."""

    def run_dma(self) -> None:
        try:
            if self.command & TO_RAM:
                self.dma.write(self.transfer[1], bytes(1))
        except ProtocolError:
            return
        super().run_dma()


class BlottingEdu(Edu):
    """Writes a byte more than it was told to."""

    def run_dma(self) -> None:
        source, destination, length = self.transfer
        if self.command & TO_RAM:
            self.transfer[2] += 1
        super().run_dma()
        self.transfer[:] = source, destination, length


FAULTS: tuple[tuple[Fault, Callable[[], PciDevice], set[str]], ...] = (
    (Fault(), Edu, set()),
    (Fault(), BlottingEdu, {"by-message", "by-mapping"}),
    (ReadsWrongly(), Edu, {"registers"}),
    (MapsNothing(), Edu, {"by-mapping"}),
    (MapsNothingAtAll(), Edu, {"by-message", "by-mapping", "read-only", "refused", "unmapped", "logged"}),
    (LogsNothing(), Edu, {"logged"}),
    (WritesWhatMayOnlyBeRead(), Edu, {"read-only"}),
    (UnmapsNothing(), Edu, {"unmapped"}),
    (KeepsItsMappings(), Edu, {"unmapped"}),
    (Fault(), StuckEdu, {"read-only", "refused", "unmapped"}),
)


@for_each_row(FAULTS, ids=[f"{type(fault).__name__}-{device.__name__}" for fault, device, _ in FAULTS])
def test_a_fault_fails_the_checks_for_it_and_no_others(
    fault: Fault, device: Callable[[], PciDevice], expected: set[str], tmp_path: Path
) -> None:
    for timeout in (0.5, 2.0, 30.0):  # what never comes is waited for; a busy machine takes more for what does
        with InProcess(tmp_path, device, session=with_fault(fault)) as target:
            results = target.results("device_dma", timeout=timeout)
        found = {check.removeprefix("device_dma/") for check in failed(results)}
        if found == expected:
            break
    assert found == expected


class LateEdu(Edu):
    """Takes a while, and goes on once the client asks nothing."""

    def run_dma(self) -> None:
        self.call_later(0.02, super().run_dma)


def test_a_device_that_takes_its_time_is_waited_for(tmp_path: Path) -> None:
    """Its client looks at it now and then, and answers what it asks in between."""
    with InProcess(tmp_path, LateEdu) as target:
        assert failed(target.results("device_dma", timeout=30)) == {}


def test_each_check_can_fail() -> None:
    assert set().union(*(expected for _, _, expected in FAULTS)) == {
        check.id.removeprefix("device_dma/") for check in CATALOGUE if check.group == "device_dma"
    }


@for_each_row([(WritesWhatMayOnlyBeRead(), "read-only"), (KeepsItsMappings(), "unmapped")])
def test_what_is_written_is_seen_also_where_no_check_was_before(fault: Fault, check: str, tmp_path: Path) -> None:
    """The buffer is as after a start then: full of zeros."""
    chosen = [each for each in CATALOGUE if each.id == f"device_dma/{check}"]
    with InProcess(tmp_path, Edu, session=with_fault(fault)) as target:
        assert [result.outcome for result in run(chosen, target, CURRENT)] == [Outcome.FAIL]
