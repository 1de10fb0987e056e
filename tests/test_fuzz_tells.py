"""What the fuzzer says of a server that does a thing wrong which its oracle has more than one rule for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.cases import for_each
from tests.conformance_target import Fault, InProcess, Proceed, Reply, with_fault
from userdev.fuzz import Step
from userdev_servers.edu import Edu
from vfio_user.fuzz import VfioUserSubject
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire.constants import FEATURE_MASK, Feature, IrqSetFlags
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


GIVE = Step.of("give", slot=0, page=0, pages=0, shift=0, rights=3, shared=1)
TOLD: dict[str, tuple[type[Fault], list[Step]]] = {
    "for one trigger": (
        FiresTwice,
        [Step.of("wire", irq=2, start=0, count=3, spare=0), Step.of("trigger", irq=2, start=1, count=1, chosen=())],
    ),
    "the reply to DMA_UNMAP is not": (SaysAnotherSize, [GIVE, Step.of("unmap", slot=0, page=0, pages=0, shift=0)]),
    "a page is dirty that was reported a moment ago": (
        ForgetsNoPage,
        [GIVE, Step.of("start_logging", page_size=4096), Step.of("report_log", slots=1, less=0)],
    ),
}
"""By what is said: a server that does it wrong, and when."""


@for_each(TOLD)
def test_a_server_is_found_by_the_rule_that_it_breaks_and_one_that_breaks_none_is_not(said: str) -> None:
    fault, steps = TOLD[said]
    for session, right in ((with_fault(fault()), False), (Session, True)):
        with tempfile.TemporaryDirectory() as folder, InProcess(Path(folder), Edu, session=session) as target:
            player = VfioUserSubject(target, CURRENT, timeout=5)
            assert not player.prepare()
            found = player.play(steps)
            player.close()
        assert (found is None) is right, found
        assert found is None or said in str(found)
