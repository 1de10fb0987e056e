"""From doorbells to completions and interrupts: the queues of a controller, and the work in them.

Doorbells only note that a queue has work; it is done when the messages of the batch are answered, so that a guest is
never kept waiting in a register access and several doorbells are one piece of work. Commands that need the disk end
on the threads of `Background`. On the way out everything comes together in `complete`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from userdev.errors import ProtocolError
from userdev_servers.nvme import admin, io_commands
from userdev_servers.nvme.background import Background, Outcome
from userdev_servers.nvme.queues import Command, CompletionQueue, SavedQueues, Shadow, SubmissionQueue, queues_from
from userdev_servers.nvme.spec import Csts, EventType, Failure, LogPage, Status
from vfio_user.device import Quiesce

if TYPE_CHECKING:
    from userdev_servers.nvme.nvme import Nvme

log = logging.getLogger("vfio_user.servers.nvme")

Handler = Callable[["Nvme", Command], int | None]
"""Carries out a command: returns the completion's double word 0 (and 1 above it), or None if it ends later."""
FUSED = 3
"""Bits of a command's flags."""
COMMANDS_AT_ONCE = 512
"""After so many the session looks for messages again."""


class Engine:
    """The queues of one controller. It has none, and does nothing, until `open` or `load`."""

    def __init__(self, device: Nvme) -> None:
        self._device = device
        self._dma = device.dma
        self._doorbells = device.doorbells
        self.background = Background(lambda: device.call_soon(self._reap))
        self.completion_queues: dict[int, CompletionQueue] = {}
        self.submission_queues: dict[int, SubmissionQueue] = {}
        self._ready: dict[int, None] = {}  # submission queues with work, in order
        self._rung: dict[int, CompletionQueue] = {}  # completion queues whose interrupt is due
        self._scheduled = False
        self._working = False
        self.quiet = False
        """Nothing is begun until `go_on`."""
        self._halted: list[Quiesce] = []  # who waits until no command is under way
        self.closing = False
        """The controller is being disabled: no further command is begun."""

    def open(self, admin_sq: tuple[int, int], admin_cq: tuple[int, int]) -> None:
        """Begin with the admin queues: their addresses and entries."""
        self.forget()
        cq = CompletionQueue(0, *admin_cq)
        self.completion_queues = {0: cq}
        self.submission_queues = {0: SubmissionQueue(0, *admin_sq, cq)}

    def forget(self) -> None:
        """No queue is there any more."""
        self.completion_queues, self.submission_queues = {}, {}
        self._ready, self._rung = {}, {}
        if self._doorbells:
            self._doorbells.clear()

    def reset(self) -> None:
        """Forget everything, work that was noted too; `drain` before."""
        self.closing = self._scheduled = False
        self.forget()

    def give_up(self) -> None:
        """After a fatal error: what waits in the queues stays there."""
        self._ready = {}

    def close(self) -> None:
        self.background.close()

    @property
    def idle(self) -> bool:
        """No command is under way."""
        return not (self._working or self.background.outstanding)

    # Doorbells and work

    def submission_doorbell(self, number: int, value: int) -> None:
        queue = self.submission_queues.get(number)
        if queue is None or value >= queue.size:
            self._bad_doorbell(exists=queue is not None)
            return
        if queue.shadow is None or not number:
            queue.tail = value
        self._schedule(number)

    def completion_doorbell(self, number: int, value: int) -> None:
        queue = self.completion_queues.get(number)
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
            self._device.event_queue.deliver()
            self.interrupt()
        if self._device.interrupts.active != "msix":
            self.update_line()

    def _bad_doorbell(self, *, exists: bool) -> None:
        """A queue that is not there (information 0), or a value beyond its end (1).

        A guest that rings before it enables takes this server for one that was killed, and waits for its commands: a
        fatal status makes its driver reset the controller at the first timeout.
        """
        device = self._device
        if device.enabled:
            device.event_queue.add(EventType.ERROR, int(exists), LogPage.ERRORS)
            self.interrupt()
        elif not self.closing and not device.status & Csts.FATAL:
            device.fail("a doorbell was rung, and the controller is not enabled")

    def _schedule(self, number: int) -> None:
        self._ready[number] = None
        if not self._scheduled:
            self._scheduled = True
            self._device.defer(self.work)

    def work(self) -> None:
        """Begin the commands of all queues that have some, in turn. Ends with the interrupts for what has ended."""
        device = self._device
        self._scheduled = False
        if self.quiet or self._working or not device.enabled or device.status & Csts.FATAL:
            return
        self._working = True
        left = COMMANDS_AT_ONCE
        try:
            while self._ready and left > 0 and not self.closing:
                number = next(iter(self._ready))
                del self._ready[number]
                left -= self._serve(number)
        except ProtocolError as error:
            device.fail(f"a queue is not in guest memory: {error}")
        finally:
            self._working = False
        self.interrupt()
        device.finish_disabling()
        if self._ready:  # the session has its turn, then the worker continues here
            self._scheduled = True
            device.call_soon(self.work)

    def _serve(self, number: int) -> int:
        """A batch of one queue; how many commands. The queue is put last if it has more."""
        queue = self.submission_queues.get(number)
        if queue is None:
            return 0
        if queue.shadow is not None and not self._look_at_shadows(queue):
            return 0
        if queue.head == queue.tail:
            return 0
        if queue.cq.room <= 0:
            queue.cq.waiting.add(number)
            return 0
        commands = queue.fetch(self._dma)
        handlers = io_commands.HANDLERS if number else admin.HANDLERS
        for command in commands:
            queue.begun()
            self._execute(command, handlers)
            if self.closing:
                return len(commands)
        self.interrupt()
        self._ready[number] = None
        return len(commands)

    def _look_at_shadows(self, queue: SubmissionQueue) -> bool:
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

    def look_at_shadows(self) -> bool:
        """Schedule the queues whose shadow doorbells were moved; whether there are any.

        One that is not mapped has not moved: the client may be about to map its memory.
        """
        moved, dma = False, self._dma
        for number, queue in self.submission_queues.items():
            if queue.shadow is None:
                continue
            cq = queue.cq
            with suppress(ProtocolError):
                more = queue.shadow.read(dma, queue.size, queue.tail) != queue.tail
                if more or (cq.waiting and cq.shadow is not None and cq.shadow.read(dma, cq.size, cq.head) != cq.head):
                    self._schedule(number)
                    moved = True
        return moved

    def add(self, queue: SubmissionQueue | CompletionQueue) -> None:
        """The guest has created a queue."""
        if isinstance(queue, SubmissionQueue):
            self.submission_queues[queue.id] = queue
        else:
            self.completion_queues[queue.id] = queue
        if self._doorbells:
            self._doorbells.clear(queue)
        self.use_shadow_doorbells([queue])

    def begin_shadow_doorbells(self, values: int, events: int) -> None:
        """The guest has given the buffers; at first they say what the registers have said so far.

        They are for all queues, and drivers (Linux, SPDK) keep to the registers for the admin queue all the same. Who
        uses a buffer writes it before it rings: until the guest has changed that queue's, its registers count.
        """
        self._device.shadow_buffers = [values, events]
        self.use_shadow_doorbells([*self.completion_queues.values(), *self.submission_queues.values()])
        for cq in self.completion_queues.values():
            if cq.shadow is not None:
                cq.shadow.publish(self._dma, cq.head, optional=not cq.id)
        for sq in self.submission_queues.values():
            if sq.shadow is not None:
                sq.shadow.publish(self._dma, sq.tail, optional=not sq.id)

    def use_shadow_doorbells(self, queues: Iterable[SubmissionQueue | CompletionQueue]) -> None:
        """These queues' doorbells are in guest memory from now on, if the guest has given buffers."""
        if not self._device.shadow_buffers:
            return
        values, events = self._device.shadow_buffers
        for queue in queues:
            at = 4 * (2 * queue.id + isinstance(queue, CompletionQueue))
            queue.shadow = Shadow(values + at, events + at)

    # Commands

    def _execute(self, command: Command, handlers: Mapping[int, Handler]) -> None:
        try:
            handler = handlers.get(command.opcode, refuse) if not command.flags & FUSED else refuse_fused
            result = handler(self._device, command)
        except Exception as error:
            self.complete(command, failure=error)
        else:
            if result is not None:
                self.complete(command, result)

    def complete(self, command: Command, result: int = 0, failure: Exception | None = None) -> None:
        """End a command: its completion, and what a failure leaves in the error log."""
        status = 0 if failure is None else self._failed(command, failure)
        cq = command.queue.cq
        cq.claimed -= 1
        try:
            cq.post(self._dma, command.queue, command.cid, status, result)
        except ProtocolError as error:
            self._device.fail(f"completion queue {cq.id} is not in guest memory: {error}")
            return
        self._rung[cq.id] = cq

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
        self._device.error_log.add(command, field)
        return field

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

    def answer(self, queue: SubmissionQueue, cid: int, result: int, status: int = 0) -> None:
        """End a command of which nothing is left but its identifier."""
        queue.cq.post(self._dma, queue, cid, status, result)
        self._rung[queue.cq.id] = queue.cq

    def drain(self) -> None:
        """Wait for the commands that wait for the disk."""
        self.background.wait()
        self.background.reap()

    def _reap(self) -> None:
        self.background.reap()
        self.interrupt()
        self._device.finish_disabling()
        if self._doorbells:
            self._doorbells.watch()
        if not self.background.outstanding:
            halted, self._halted = self._halted, []
            for waiting in halted:
                waiting.done()

    # Interrupts

    def interrupt(self) -> None:
        """Tell the guest of completions."""
        if not self._rung:
            return
        rung, self._rung = self._rung, {}
        interrupts = self._device.interrupts
        if interrupts.active == "msix":
            for vector in {queue.vector for queue in rung.values() if queue.interrupts}:
                interrupts.trigger(vector)
        else:
            self.update_line()

    def update_line(self) -> None:
        """INTx is up while a queue that interrupts holds completions that the guest has not taken."""
        interrupts, mask = self._device.interrupts, self._device.interrupt_mask
        if interrupts.active == "msix":
            return
        try:
            for queue in self.completion_queues.values():
                if queue.shadow is not None:  # the line has to fall when the guest has taken its completions: be told
                    queue.head = queue.shadow.settle(self._dma, queue.size, queue.head)
        except ProtocolError as error:
            self._device.fail(f"shadow doorbells are not in guest memory: {error}")
        waiting = any(
            queue.interrupts and queue.head != queue.tail and not mask >> queue.vector & 1
            for queue in self.completion_queues.values()
        )
        if waiting:
            interrupts.trigger(0)
        else:
            interrupts.lower()

    # Standing still, moving

    def halt(self) -> Quiesce | None:
        """Begin nothing more; None if nothing is under way, or what tells when that is so: when the guest has been told
        of the last command, not when its thread has ended. A completion that is told later would be lost.
        """
        self.quiet = True
        if self._doorbells:
            self._doorbells.settle()
        if not self.background.outstanding:
            return None
        waiting = Quiesce()
        self._halted.append(waiting)
        return waiting

    def go_on(self) -> None:
        """After `halt`: perhaps for another client, with which what was posted before has gone."""
        self.quiet = self._scheduled = False
        self._schedule_all()
        if self._doorbells:
            self._doorbells.watch()

    def save(self) -> SavedQueues:
        """Queues as they are; halted, so that no command is under way."""
        return [
            [queue.save() for queue in self.completion_queues.values()],
            [queue.save() for queue in self.submission_queues.values()],
        ]

    def load(self, saved: SavedQueues) -> None:
        """Queues as they were saved."""
        self.completion_queues, self.submission_queues = queues_from(saved)
        self.use_shadow_doorbells([*self.completion_queues.values(), *self.submission_queues.values()])
        if self._doorbells:
            self._doorbells.load(saved)
        self._schedule_all()

    def _schedule_all(self) -> None:
        """Look for work that nobody tells of, in queues that are mapped: the DMA_MAP that brings others looks again."""
        for number, queue in self.submission_queues.items():
            if queue.is_mapped(self._dma):
                self._schedule(number)


def refuse(device: Nvme, command: Command) -> int:
    """What becomes of an opcode that there is not."""
    raise Failure(Status.INVALID_OPCODE)


def refuse_fused(device: Nvme, command: Command) -> int:
    """No two commands are carried out as one."""
    raise Failure(Status.INVALID_FIELD)
