"""The queues of a controller: how they come and go, how commands end in them, and the interrupts that tell of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from userdev.errors import ProtocolError
from userdev_servers.nvme.doorbell_page import DoorbellPage, place_of
from userdev_servers.nvme.port import Port
from userdev_servers.nvme.queues import CompletionQueue, SavedQueues, Shadow, SubmissionQueue, queues_from
from userdev_servers.nvme.state import ControllerState


class QueuePairs:
    """There are none until `open` or `load`. What is wrong with the guest's memory for them is told to `fail`."""

    def __init__(
        self, port: Port, state: ControllerState, fail: Callable[[str], None], page: DoorbellPage | None
    ) -> None:
        self._dma = port.dma
        self._interrupts = port.interrupts
        self._state = state
        self._fail = fail
        self._page = page
        self.completion: dict[int, CompletionQueue] = {}
        self.submission: dict[int, SubmissionQueue] = {}
        self._rung: dict[int, CompletionQueue] = {}  # completion queues whose interrupt is due

    # How they come and go

    def open(self, admin_sq: tuple[int, int], admin_cq: tuple[int, int]) -> None:
        """Begin with the admin queues: their addresses and entries."""
        self.forget()
        cq = CompletionQueue(0, *admin_cq)
        self.completion = {0: cq}
        self.submission = {0: SubmissionQueue(0, *admin_sq, cq)}

    def forget(self) -> None:
        """No queue is there any more."""
        self.completion, self.submission, self._rung = {}, {}, {}
        if self._page is not None:
            self._page.clear()

    def add(self, queue: SubmissionQueue | CompletionQueue) -> None:
        """The guest has created a queue."""
        if isinstance(queue, SubmissionQueue):
            self.submission[queue.id] = queue
        else:
            self.completion[queue.id] = queue
        if self._page is not None:
            self._page.clear(queue)
        self._use_shadows([queue])

    def save(self) -> SavedQueues:
        """Queues as they are, while no command is under way."""
        return [
            [queue.save() for queue in self.completion.values()],
            [queue.save() for queue in self.submission.values()],
        ]

    def load(self, saved: SavedQueues) -> None:
        """Queues as they were saved."""
        self.completion, self.submission = queues_from(saved)
        self._use_shadows(self._all())

    def mapped(self) -> Iterator[int]:
        """Numbers of the submission queues that the client has mapped, with what belongs to them."""
        return (number for number, queue in self.submission.items() if queue.is_mapped(self._dma))

    def _all(self) -> Iterator[SubmissionQueue | CompletionQueue]:
        yield from self.completion.values()
        yield from self.submission.values()

    # Shadow doorbells

    def begin_shadow_doorbells(self, values: int, events: int) -> None:
        """The guest has given the buffers; at first they say what the registers have said so far, and to be told of
        what comes next.

        They are for all queues, and drivers (Linux, SPDK) keep to the registers for the admin queue all the same. Who
        uses a buffer writes it before it rings: until the guest has changed that queue's, its registers count.

        Raises:
            ProtocolError: they are not in guest memory; then the registers count as before.
        """
        for queue in self._all():
            shadow = _shadow_of(queue, values, events)
            place = queue.tail if isinstance(queue, SubmissionQueue) else queue.head
            shadow.publish(self._dma, place, optional=not queue.id)
            shadow.ask_at(self._dma, place)
        self._state.shadow_buffers = [values, events]
        self._use_shadows(self._all())

    def look(self, queue: CompletionQueue) -> None:
        """Take over how far the guest has come in it, where its buffer says so."""
        queue.look(self._dma)

    def moved_shadows(self) -> list[int]:
        """Numbers of the submission queues for which the guest has written something to the buffers.

        One that is not mapped has not moved: the client may be about to map its memory.
        """
        found, dma = [], self._dma
        for number, queue in self.submission.items():
            if queue.shadow is None:
                continue
            cq = queue.cq
            with suppress(ProtocolError):
                more = queue.shadow.read(dma, queue.size, queue.tail) != queue.tail
                if more or (cq.waiting and cq.shadow is not None and cq.shadow.read(dma, cq.size, cq.head) != cq.head):
                    found.append(number)
        return found

    def _use_shadows(self, queues: Iterable[SubmissionQueue | CompletionQueue]) -> None:
        """These queues' doorbells are in guest memory from now on, if the guest has given buffers."""
        if not self._state.shadow_buffers:
            return
        for queue in queues:
            queue.shadow = _shadow_of(queue, *self._state.shadow_buffers)

    # The ends of commands

    def answer(self, queue: SubmissionQueue, cid: int, result: int, status: int = 0) -> None:
        """End a command, of which nothing is left but its identifier."""
        cq = queue.cq
        cq.post(self._dma, queue, cid, status, result)
        self._rung[cq.id] = cq

    def interrupt(self) -> None:
        """Tell the guest of completions."""
        if not self._rung:
            return
        rung, self._rung = self._rung, {}
        if self._interrupts.active == "msix":
            for vector in {queue.vector for queue in rung.values() if queue.interrupts}:
                self._interrupts.trigger(vector)
        else:
            self.update_line()

    def update_line(self) -> None:
        """INTx is up while a queue that interrupts holds completions that the guest has not taken."""
        interrupts, mask = self._interrupts, self._state.interrupt_mask
        if interrupts.active == "msix":
            return
        try:
            for queue in self.completion.values():
                if queue.shadow is not None:  # the line has to fall when the guest has taken its completions: be told
                    queue.head = queue.shadow.settle(self._dma, queue.size, queue.head)
        except ProtocolError as error:
            self._fail(f"shadow doorbells are not in guest memory: {error}")
        waiting = any(
            queue.interrupts and queue.head != queue.tail and not mask >> queue.vector & 1
            for queue in self.completion.values()
        )
        if waiting:
            interrupts.trigger(0)
        else:
            interrupts.lower()


def _shadow_of(queue: SubmissionQueue | CompletionQueue, values: int, events: int) -> Shadow:
    """A queue's doorbell in the guest's buffers."""
    at = 4 * place_of(queue)
    return Shadow(values + at, events + at)
