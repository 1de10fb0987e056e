"""Servers for the conformance catalogue: ours in this process, whole or with one fault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.in_process_target import InProcessTarget
from userdev.transport import Stream, close_all
from vfio_user.client.conformance import CATALOGUE, Bench, CheckResult, Outcome, irqs, run
from vfio_user.device import PciDevice
from vfio_user.server import Offer, Server
from vfio_user.server import server as server_module
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Command, Dialect, Message

SLOW = {"dma_map/many", "mig_data/small-pieces"}
"""Half of the time of all the others."""

irqs.LISTEN_SECONDS = 0.02  # a device here that interrupts by itself does so all the time

Reply = tuple[bytes, list[int]]
Proceed = Callable[[Command, Message], Reply]


class Fault:
    """One thing that a server does wrong. A subclass overrides where it does it."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        """Carry out a command: the payload and descriptors of its reply."""
        return proceed(command, message)

    def sent(self, message: Message) -> list[Message]:
        """What leaves instead of a good reply."""
        return [message]


def with_fault(fault: Fault) -> type[Session]:
    """A real session that has one fault, and no shortcut around it."""

    class FaultySession(Session):
        def _negotiate(self) -> bool:
            send = self.connection.send

            def send_faulty(message: Message) -> None:
                for each in fault.sent(message):
                    try:
                        send(each)
                    finally:
                        close_all([fd for fd in each.fds if fd not in message.fds])  # the session closes its own

            self.connection.send = send_faulty  # type: ignore[method-assign]
            return super()._negotiate()

        def _refresh_registers(self) -> None:
            self._registers.clear()

        def _run(self, command: Command, message: Message) -> Reply:
            return fault.command(self, command, message, super()._run)

    return FaultySession


@dataclass
class InProcess(InProcessTarget):
    """Our server on a socket in `folder`; `renew` restarts it with a new device."""

    folder: Path
    device: Callable[[], PciDevice]
    dialect: Dialect = CURRENT
    session: type[Session] = Session
    offer: Offer = field(default_factory=partial(Offer, write_multiple=True))
    tcp: bool = False
    pid: int | None = None

    def serve(self, served: ExitStack) -> str:
        device = self.device()
        served.callback(device.close)
        address = "tcp:127.0.0.1:0" if self.tcp else str(self.folder / "s")
        server = served.enter_context(Server(device, address, dialect=self.dialect, offer=self.offer))
        if not self.tcp:
            return address
        host, port = server.listener.socket.getsockname()
        return f"tcp:{host}:{port}"

    def connect(self) -> Stream:
        server_module.Session = self.session  # type: ignore[attr-defined]
        return super().connect()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        server_module.Session = Session  # type: ignore[attr-defined]

    def results(self, *groups: str, slow: bool = False, timeout: float = 2) -> list[CheckResult[Bench]]:
        """Run the catalogue, or these groups of it; those that take longest only where that is asked for."""
        checks = [
            check
            for check in CATALOGUE
            if (not groups or check.group in groups)
            and (check.dialects is None or self.dialect.name in check.dialects)
            and (slow or check.id not in SLOW)
        ]
        return list(run(checks, self, self.dialect, timeout=timeout))


def failed(results: list[CheckResult[Bench]]) -> dict[str, str]:
    """What each check has found, or what became of one that broke: that is nobody's server."""
    wrong = (Outcome.FAIL, Outcome.BROKEN)
    return {result.check.id: result.detail for result in results if result.outcome in wrong}


def skipped(results: list[CheckResult[Bench]]) -> set[str]:
    return {result.check.id for result in results if result.outcome is Outcome.SKIP}
