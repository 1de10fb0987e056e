"""From doorbells to commands: the work in the queues of a controller.

Doorbells only note that a queue has work; it is done when the messages of the batch are answered, so that a guest is
never kept waiting in a register access and several doorbells are one piece of work. Commands that need the disk end
on the threads of `Background`. On the way out everything comes together in `Controller.complete`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from userdev.errors import ProtocolError
from userdev_servers.nvme import admin, io_commands
from userdev_servers.nvme.controller import Controller
from userdev_servers.nvme.port import Port
from userdev_servers.nvme.queues import Command, CompletionQueue, SubmissionQueue
from userdev_servers.nvme.spec import Csts, EventType, Failure, LogPage, Status
from vfio_user.device import Quiesce

Handler = Callable[[Controller, Command], int | None]
"""Carries out a command: returns the completion's double word 0 (and 1 above it), or None if it ends later."""
FUSED, DATA_POINTER = 3, 3 << 6
"""Bits of a command's flags: half of two that are one, and a data pointer that is no list of pages."""
COMMANDS_AT_ONCE = 512
"""After so many the session looks for messages again."""


class Engine:
    """Carries out the commands of one controller."""

    def __init__(self, controller: Controller, port: Port, idle: Callable[[], None], woken: Callable[[], None]) -> None:
        """`idle` is called whenever commands have ended, `woken` when the disk has ended some."""
        self._controller = controller
        self._queues = controller.queues
        self._dma = port.dma
        self._port = port
        self._on_idle = idle
        self._on_woken = woken
        controller.disk_work_ended = self._reap
        self._ready: dict[int, None] = {}  # submission queues with work, in order
        self._scheduled = False
        self._working = False
        self.quiet = False
        """Nothing is begun until `go_on`."""
        self._halted: list[Quiesce] = []  # who waits until no command is under way
        self.closing = False
        """The controller is being disabled: no further command is begun."""

    def open(self, admin_sq: tuple[int, int], admin_cq: tuple[int, int]) -> None:
        """Begin with the admin queues: their addresses and entries."""
        self._ready = {}
        self._queues.open(admin_sq, admin_cq)

    def forget(self) -> None:
        """No queue is there any more."""
        self._ready = {}
        self._queues.forget()

    def reset(self) -> None:
        """Forget everything, work that was noted too; `Controller.drain` before."""
        self.closing = self._scheduled = False
        self.forget()

    @property
    def idle(self) -> bool:
        """No command is under way."""
        return not (self._working or self._controller.background.outstanding)

    # Doorbells

    def ring(self, index: int, value: int) -> None:
        """A doorbell of the guest's, by its place among all: by a message, or seen in the page."""
        number, value = index >> 1, value & 0xFFFF
        if index & 1:
            self.completion_doorbell(number, value)
        else:
            self.submission_doorbell(number, value)

    def submission_doorbell(self, number: int, value: int) -> None:
        """A tail doorbell was written: note that this queue has work. A bad value becomes an event for the guest."""
        queue = self._queues.submission.get(number)
        if queue is None or value >= queue.size:
            self._bad_doorbell(exists=queue is not None)
            return
        if queue.shadow is None or not number:
            queue.tail = value
        self._schedule(number)

    def completion_doorbell(self, number: int, value: int) -> None:
        """A head doorbell was written: go on with commands that wait for room. A bad value becomes an event for the
        guest.
        """
        queue = self._queues.completion.get(number)
        if queue is None or value >= queue.size:
            self._bad_doorbell(exists=queue is not None)
            return
        queue.head = value
        self._made_room(queue)

    def _made_room(self, queue: CompletionQueue) -> None:
        for waiting in queue.waiting:
            self._schedule(waiting)
        queue.waiting.clear()
        if not queue.id:
            self._controller.events.deliver()
            self._queues.interrupt()
        if self._port.interrupts.active != "msix":
            self._queues.update_line()

    def _bad_doorbell(self, *, exists: bool) -> None:
        """A queue that is not there (information 0), or a value beyond its end (1).

        A guest that rings before it enables takes this server for one that was killed, and waits for its commands: a
        fatal status makes its driver reset the controller at the first timeout.
        """
        controller = self._controller
        if controller.state.enabled:
            controller.events.add(EventType.ERROR, int(exists), LogPage.ERRORS)
            self._queues.interrupt()
        elif not self.closing and not controller.state.status & Csts.FATAL:
            controller.fail("a doorbell was rung, and the controller is not enabled")

    # Work

    def _schedule(self, number: int) -> None:
        self._ready[number] = None
        if not self._scheduled:
            self._scheduled = True
            self._port.defer(self.work)

    def schedule_mapped(self) -> None:
        """Look for work that nobody tells of, in queues that are mapped: the DMA_MAP that brings others looks again."""
        for number in self._queues.mapped():
            self._schedule(number)

    def look_at_shadows(self) -> bool:
        """Schedule the queues whose shadow doorbells were moved; whether there are any."""
        moved = self._queues.moved_shadows()
        for number in moved:
            self._schedule(number)
        return bool(moved)

    def work(self) -> None:
        """Begin the commands of all queues that have some, in turn. Ends with the interrupts for what has ended."""
        controller, state = self._controller, self._controller.state
        self._scheduled = False
        if self.quiet or self._working or not controller.runs:
            return
        self._working = True
        left = COMMANDS_AT_ONCE
        try:
            while self._ready and left > 0 and not (self.closing or state.status & Csts.FATAL):
                number = next(iter(self._ready))
                del self._ready[number]
                left -= self._serve(number)
        except ProtocolError as error:
            controller.fail(f"a queue is not in guest memory: {error}")
        finally:
            self._working = False
        self._queues.interrupt()
        self._on_idle()
        if self._ready and controller.runs:  # the session has its turn, then the worker continues here
            self._scheduled = True
            self._port.call_soon(self.work)

    def _serve(self, number: int) -> int:
        """A batch of one queue; how many commands. The queue is put last if it has more."""
        queue = self._queues.submission.get(number)
        if queue is None:
            return 0
        if queue.shadow is not None and not self._look_at_shadow(queue):
            return 0
        if queue.head == queue.tail:
            return 0
        if queue.cq.room <= 0:
            queue.cq.waiting.add(number)
            return 0
        commands = queue.fetch(self._dma)
        handlers, state = io_commands.HANDLERS if number else admin.HANDLERS, self._controller.state
        refused = FUSED if number else FUSED | DATA_POINTER
        for command in commands:
            queue.begun()
            self._execute(command, handlers, refused)
            if self.closing or state.status & Csts.FATAL:
                return len(commands)
        if queue.head != queue.tail or queue.shadow is not None:
            self._ready[number] = None
        if self._ready:  # `work` ends with it: the guest does not wait for what others have
            self._queues.interrupt()
        return len(commands)

    def _look_at_shadow(self, queue: SubmissionQueue) -> bool:
        """Take over what the guest wrote to the buffers; False if the queue is empty, and its doorbell will ring."""
        assert queue.shadow is not None
        dma = self._dma
        queue.cq.look(dma)
        queue.tail = queue.shadow.read(dma, queue.size, queue.tail)
        if queue.head == queue.tail:
            queue.shadow.ask_at(dma, queue.tail)
            queue.tail = queue.shadow.read(dma, queue.size, queue.tail)  # a guest that wrote just before would not ring
            if queue.head == queue.tail:
                return False
        return True

    def _execute(self, command: Command, handlers: Mapping[int, Handler], refused: int) -> None:
        """`refused`: bits of the command's flags that its queue does not take."""
        controller = self._controller
        try:
            handler = handlers.get(command.opcode, refuse) if not command.flags & refused else refuse_flags
            result = handler(controller, command)
        except Exception as error:
            controller.complete(command, failure=error)
        else:
            if result is not None:
                controller.complete(command, result)

    def _reap(self) -> None:
        self._controller.reap()
        self._on_idle()
        self._on_woken()
        if not self._controller.background.outstanding:
            halted, self._halted = self._halted, []
            for waiting in halted:
                waiting.done()

    # Standing still

    def halt(self) -> Quiesce | None:
        """Begin nothing more; None if nothing is under way, or what tells when that is so: when the guest has been told
        of the last command, not when its thread has ended. A completion that is told later would be lost.
        """
        self.quiet = True
        if not self._controller.background.outstanding:
            return None
        waiting = Quiesce()
        self._halted.append(waiting)
        return waiting

    def go_on(self) -> None:
        """After `halt`: perhaps for another client, with which what was posted before has gone."""
        self.quiet = self._scheduled = False
        self.schedule_mapped()


def refuse(controller: Controller, command: Command) -> int:
    """Refuse an opcode that there is not."""
    raise Failure(Status.INVALID_OPCODE)


def refuse_flags(controller: Controller, command: Command) -> int:
    """No two commands are carried out as one, and PRPs are for all admin commands where the guest has PCI (4.2)."""
    raise Failure(Status.INVALID_FIELD)
