"""A controller without PCI: its namespaces, features, events, statistics and queues, and how commands end.

`Engine` carries the commands out; `Nvme` is the function that a guest reaches it by.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic

from userdev.errors import ProtocolError
from userdev.serving.background import Background
from userdev_servers.nvme.doorbell_page import DoorbellPage
from userdev_servers.nvme.error_log import ErrorLog
from userdev_servers.nvme.events import Events
from userdev_servers.nvme.namespace import Namespace, sync_all
from userdev_servers.nvme.port import Port
from userdev_servers.nvme.queue_pairs import QueuePairs
from userdev_servers.nvme.queues import Command
from userdev_servers.nvme.settings import Settings
from userdev_servers.nvme.spec import Csts, EventType, Failure, LogPage, Status
from userdev_servers.nvme.state import ControllerState

log = logging.getLogger("vfio_user.servers.nvme")

Outcome = Exception | None
"""Of work that waited for the disk: what it has raised."""


class Controller:
    """One controller. Its state is declared and kept by the device that it is part of."""

    def __init__(
        self, port: Port, state: ControllerState, namespaces: Sequence[Namespace], page: DoorbellPage | None = None
    ) -> None:
        """`page`: where doorbells are that the client may map."""
        self.state = state
        self.model = state.model
        self.namespaces = namespaces
        self.dma = port.dma
        self.interrupts = port.interrupts
        self.settings = Settings(state, self.model)
        self.queues = QueuePairs(port, state, self.fail, page)
        self.events = Events(state, self.settings, self.queues)
        self.error_log = ErrorLog(state)
        self.was_reset_at = monotonic()
        """A clock that nobody has set counts from then."""
        self.disk_work_ended: Callable[[], None] = self.reap
        """Called where handlers run when work has ended that waited for the disk."""
        self.background = Background[None](lambda: port.call_soon(lambda: self.disk_work_ended()), "nvme")

    def close(self) -> None:
        """End the threads, and give the images back."""
        self.background.close()
        for namespace in self.namespaces:
            namespace.backing.close()

    @property
    def runs(self) -> bool:
        """Commands are carried out."""
        return self.state.status & (Csts.READY | Csts.FATAL) == Csts.READY

    def fail(self, reason: str) -> None:
        """Fatal error: the guest has to reset the controller, and what waits in the queues stays there."""
        log.error("fatal: %s", reason)
        self.state.status |= Csts.FATAL

    # Namespaces

    def namespace(self, nsid: int) -> Namespace:
        """The namespace of a valid identifier, whether it exists or not; raises Failure for an invalid one."""
        if not 1 <= nsid <= len(self.namespaces):
            raise Failure(Status.INVALID_NAMESPACE)
        return self.namespaces[nsid - 1]

    def active_namespace(self, nsid: int) -> Namespace:
        """The namespace of that identifier, which the guest can use.

        Raises:
            Failure: there is none, or this controller gives no access to it.
        """
        namespace = self.namespace(nsid)
        if not (namespace.exists and namespace.attached):
            raise Failure(Status.INVALID_FIELD)
        if namespace.being_formatted:
            raise Failure(Status.FORMAT_IN_PROGRESS, retry=True)
        return namespace

    def sync_namespaces(self) -> None:
        """Bring everything that was written to the disk; waits for it.

        Raises:
            OSError: a disk refuses; the others have been synced.
        """
        sync_all(self.namespaces)

    def namespace_changed(self, namespace: Namespace) -> None:
        """Note that what Identify tells of it is different, and tell a guest that wants to know."""
        if namespace.nsid not in self.state.changed_namespaces:
            self.state.changed_namespaces.append(namespace.nsid)
        self.events.add(EventType.NOTICE, 0, LogPage.CHANGED_NAMESPACES)
        self.queues.interrupt()

    def set_attached(self, namespace: Namespace, attached: bool) -> None:
        """Attach a namespace to this controller or detach it, by the guest's wish or the host's.

        Commands that were begun end before; those behind them find it as it is then.
        """
        self.drain()
        namespace.attached = attached
        self.namespace_changed(namespace)

    # The ends of commands

    def complete(self, command: Command, result: int = 0, failure: Exception | None = None) -> None:
        """End a command: its completion, and what a failure leaves in the error log."""
        status = 0 if failure is None else self._failed(command, failure)
        cq = command.queue.cq
        cq.claimed -= 1
        try:
            self.queues.answer(command.queue, command.cid, result, status)
        except ProtocolError as error:
            self.fail(f"completion queue {cq.id} is not in guest memory: {error}")

    def later(
        self, command: Command, work: Callable[[], None], done: Callable[[Outcome], Exception | None], result: int = 0
    ) -> None:
        """Let `work` run on a thread; `done` turns its outcome into the command's failure, or None."""

        def ended(outcome: Outcome) -> None:
            try:
                failure = done(outcome)
            except ProtocolError as error:
                failure = error
            self.complete(command, result, failure)

        self.background.submit(work, ended)

    def drain(self) -> None:
        """Wait for the commands that wait for the disk."""
        self.background.wait()
        self.background.reap()

    def reap(self) -> None:
        """Tell the guest of the commands that have ended meanwhile."""
        self.background.reap()
        self.queues.interrupt()

    def _failed(self, command: Command, error: Exception) -> int:
        match error:
            case Failure():
                field = error.field
            case ProtocolError():
                log.debug("command %#x: %s", command.opcode, error)
                field = Failure(Status.DATA_TRANSFER_ERROR).field
            case _:
                log.error("command %#x failed", command.opcode, exc_info=error)
                field = Failure(Status.INTERNAL_ERROR).field
        self.error_log.add(command, field)
        return field

    # Moving

    def note_parts(self) -> None:
        """Have in the declared state what is no declared state by itself."""
        self.state.saved_queues = self.queues.save()
        self.state.saved_namespaces = [namespace.save() for namespace in self.namespaces]

    def take_over_images(self) -> None:
        """Lock the images for this controller.

        Raises:
            InUse: another has one of them.
        """
        for namespace in self.namespaces:
            namespace.backing.take_over()

    def hand_over_images(self) -> None:
        """Another may have them from now on."""
        for namespace in self.namespaces:
            namespace.backing.hand_over()

    def load(self) -> None:
        """Become what the state says."""
        for namespace, parts in zip(self.namespaces, self.state.saved_namespaces, strict=True):
            if not namespace.copied:
                namespace.backing.forget()
            namespace.load(parts)
        self.queues.load(self.state.saved_queues)
