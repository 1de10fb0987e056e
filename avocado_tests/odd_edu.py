"""Edu devices and servers that are odd in one way each, for what QEMU makes of it.

Devices are served by their names (`avocado_tests.odd_edu:Counting`). As a program it serves one of them, and answers
VERSION as it is told to:

    python -m avocado_tests.odd_edu SOCKET '{"capabilities": {"max_msg_fds": 17}}' [--minor 1] [--no-nul]
"""

from __future__ import annotations

import argparse
from unittest import mock

from userdev_servers.edu import Edu
from vfio_user.device import register, state
from vfio_user.device.irq_wiring import IrqRequest
from vfio_user.server import serve, session
from vfio_user.server.negotiation import Agreement, Offer, VersionAnswer, negotiate
from vfio_user.wire import Dialect, Message
from vfio_user.wire.constants import IrqIndex, IrqSetFlags
from vfio_user.wire.layouts import VERSION

COUNT, WRONG, COUNTED = 0xC0, 0xC4, 0xC8
UNMASKED = 0xD0


class Counting(Edu):
    """0xc0 takes numbers; 0xc4 has how often one was not the next, 0xc8 how many came."""

    last: int = state(0)
    wrong: int = state(0)
    counted: int = state(0)

    @register(bar=0, offset=COUNT, width=4)
    def count(self, value: int) -> None:
        self.wrong += value != self.last + 1
        self.last = value
        self.counted += 1

    @register(bar=0, offset=WRONG, width=4)
    def read_wrong(self) -> int:
        return self.wrong

    @register(bar=0, offset=COUNTED, width=4)
    def read_counted(self) -> int:
        return self.counted


class Unmasked(Edu):
    """0xd0 has how often the client has unmasked INTx by a message."""

    unmasked: int = state(0)

    def __init__(self) -> None:
        super().__init__(msix=0)
        self._wire, self.interrupts.set_irqs = self.interrupts.set_irqs, self._set_irqs  # type: ignore[method-assign]

    @register(bar=0, offset=UNMASKED, width=4)
    def read_unmasked(self) -> int:
        return self.unmasked

    def _set_irqs(self, request: IrqRequest) -> None:
        by_message = request.action is IrqSetFlags.UNMASK and request.data is IrqSetFlags.DATA_NONE
        if request.index == IrqIndex.INTX and by_message:
            self.unmasked += 1
        self._wire(request)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("capabilities", help="the JSON of the reply to VERSION")
    parser.add_argument("--minor", type=int, default=0)
    parser.add_argument("--no-nul", action="store_true", help="leave out the NUL behind the JSON")
    parser.add_argument("--device", choices=["Edu", "Counting"], default="Edu")
    asked = parser.parse_args()
    text = asked.capabilities.encode() + (b"" if asked.no_nul else b"\0")

    def told(
        message: Message, dialect: Dialect, offer: Offer, *, migration_pgsize: int | None
    ) -> tuple[Agreement | None, VersionAnswer]:
        agreement, _ = negotiate(message, dialect, offer, migration_pgsize=migration_pgsize)
        return agreement, VersionAnswer(message.reply(VERSION.pack(0, asked.minor, tail=text)))

    with mock.patch.object(session, "negotiate", told):  # it says what no server of ours would
        serve({"Edu": Edu, "Counting": Counting}[asked.device](), asked.socket)


if __name__ == "__main__":
    main()
