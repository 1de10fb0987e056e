"""Submission and completion queues in guest memory, and the commands in them."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from userdev.errors import ProtocolError
from userdev_servers.nvme.spec import CQ_ENTRY, SQ_ENTRY

if TYPE_CHECKING:
    from vfio_user.device import Dma

_COMMAND = Struct("<BBHIQQQQ6I")
_COMPLETION = Struct("<IIHHHH")
_U32 = Struct("<I")

BATCH = 16
"""Commands fetched at a time: what they complete is seen by the guest before the next are fetched."""


class Command:
    """A submission queue entry (figure 104). `cdw10` to `cdw15` mean what the opcode says."""

    __slots__ = (
        "cdw2",
        "cdw10",
        "cdw11",
        "cdw12",
        "cdw13",
        "cdw14",
        "cdw15",
        "cid",
        "flags",
        "mptr",
        "nsid",
        "opcode",
        "prp1",
        "prp2",
        "queue",
    )

    def __init__(self, queue: SubmissionQueue, entries: bytes, at: int) -> None:
        self.queue = queue
        (
            self.opcode,
            self.flags,
            self.cid,
            self.nsid,
            self.cdw2,
            self.mptr,
            self.prp1,
            self.prp2,
            self.cdw10,
            self.cdw11,
            self.cdw12,
            self.cdw13,
            self.cdw14,
            self.cdw15,
        ) = _COMMAND.unpack_from(entries, at)


class CompletionQueue:
    """A ring of completions: 16 byte entries at `base`, told from old ones by their phase.

    `claimed` counts entries promised to commands under way, so that a completion always finds room.
    """

    __slots__ = ("base", "claimed", "head", "id", "interrupts", "phase", "shadow", "size", "tail", "vector", "waiting")

    def __init__(self, id: int, base: int, size: int, vector: int = 0, *, interrupts: bool = True) -> None:
        self.id = id
        self.base = base
        self.size = size
        self.vector = vector
        self.interrupts = interrupts
        self.head = 0
        self.tail = 0
        self.phase = 1
        self.claimed = 0
        self.shadow: Shadow | None = None
        self.waiting: set[int] = set()
        """Submission queues that stand still until the guest makes room."""

    @property
    def room(self) -> int:
        """The number of further commands that may be begun."""
        return (self.head - self.tail - 1) % self.size - self.claimed

    def look(self, dma: Dma) -> None:
        """Take over from the buffer how far the guest has come, and be told when it makes room where there is none."""
        if self.shadow is None:
            return
        self.head = self.shadow.read(dma, self.size, self.head)
        if self.room <= 0:
            self.shadow.ask_at(dma, self.head)
            self.head = self.shadow.read(dma, self.size, self.head)

    def post(self, dma: Dma, queue: SubmissionQueue, cid: int, status: int, result: int) -> None:
        """Write the completion of a command of `queue`; raises ProtocolError where the guest has no memory there."""
        entry = _COMPLETION.pack(result, 0, queue.head, queue.id, cid, status << 1 | self.phase)
        dma.write(self.base + self.tail * CQ_ENTRY, entry)
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1

    def save(self) -> list[int]:
        """The state that migrates, in the order of `load`: identifier, IOVA, entries, vector, and where the ring is."""
        return [self.id, self.base, self.size, self.vector, int(self.interrupts), self.head, self.tail, self.phase]

    @classmethod
    def load(cls, saved: list[int]) -> CompletionQueue:
        """Make the queue of what `save` gave, which `checks` has looked at."""
        id, base, size, vector, interrupts, head, tail, phase = saved
        queue = cls(id, base, size, vector, interrupts=bool(interrupts))
        queue.head, queue.tail, queue.phase = head, tail, phase
        return queue


class SubmissionQueue:
    """A ring of commands: 64 byte entries at `base`."""

    __slots__ = ("base", "cq", "head", "id", "shadow", "size", "tail")

    def __init__(self, id: int, base: int, size: int, cq: CompletionQueue) -> None:
        self.id = id
        self.base = base
        self.size = size
        self.cq = cq
        self.head = 0
        self.tail = 0
        self.shadow: Shadow | None = None

    def fetch(self, dma: Dma) -> list[Command]:
        """The next commands, as many as can be completed and BATCH at most. `begun` takes each off the queue."""
        count = min(self.tail - self.head if self.tail >= self.head else self.size - self.head, self.cq.room, BATCH)
        entries = dma.read(self.base + self.head * SQ_ENTRY, count * SQ_ENTRY)
        return [Command(self, entries, at) for at in range(0, len(entries), SQ_ENTRY)]

    def begun(self) -> None:
        """Step over the entry at the head, and claim room for its completion."""
        self.head += 1
        if self.head == self.size:
            self.head = 0
        self.cq.claimed += 1

    def is_mapped(self, dma: Dma) -> bool:
        """Whether the client has mapped the queue, and what belongs to it."""
        places = [(self.base, self.size * SQ_ENTRY), (self.cq.base, self.cq.size * CQ_ENTRY)]
        places += [place for queue in (self, self.cq) if queue.shadow is not None for place in queue.shadow.places]
        try:
            for address, size in places:
                dma.pieces(address, size, 0)
        except ProtocolError:
            return False
        return True

    def save(self) -> list[int]:
        """The state that migrates, in the order of `load`: identifier, IOVA, entries, completion queue, head, tail."""
        return [self.id, self.base, self.size, self.cq.id, self.head, self.tail]

    @classmethod
    def load(cls, saved: list[int], completion: dict[int, CompletionQueue]) -> SubmissionQueue:
        """Make the queue of what `save` gave; `completion` has the completion queues by identifier."""
        id, base, size, cq, head, tail = saved
        queue = cls(id, base, size, completion[cq])
        queue.head, queue.tail = head, tail
        return queue


SavedQueues = list[list[list[int]]]
"""Completion queues, and submission queues."""


def queues_from(saved: SavedQueues) -> tuple[dict[int, CompletionQueue], dict[int, SubmissionQueue]]:
    """Queues as they were saved, by their identifiers."""
    completions, submissions = saved
    found = {queue.id: queue for queue in map(CompletionQueue.load, completions)}
    return found, {queue.id: queue for queue in (SubmissionQueue.load(each, found) for each in submissions)}


_RESERVED, _UNTOUCHED = 0xFFFF0000, 0x56460000
"""Bits of a doorbell that mean nothing, and what the controller puts there until the guest has written the buffer.
Drivers take none but the lower half for what they have written last."""


class Shadow:
    """A doorbell in guest memory (Doorbell Buffer Config): the guest writes `value` there, and touches the register
    only when it passes `event`, which the controller keeps where it wants to be told next.
    """

    __slots__ = ("_event", "_last", "_value")

    def __init__(self, value: int, event: int) -> None:
        self._value = value
        self._event = event
        self._last = -1

    @property
    def places(self) -> list[tuple[int, int]]:
        """Addresses and bytes of what it consists of."""
        return [(self._value, 4), (self._event, 4)]

    def read(self, dma: Dma, size: int, register: int) -> int:
        """The guest's value; that of its register as long as it has not begun to use the buffer."""
        value: int = _U32.unpack(dma.read(self._value, 4))[0]
        return register if value & _RESERVED == _UNTOUCHED else value % size

    def publish(self, dma: Dma, value: int, *, optional: bool = False) -> None:
        """The value, for a guest that begins to use the buffer with the queue in use; or may begin, if `optional`."""
        dma.write(self._value, _U32.pack(value | (_UNTOUCHED if optional else 0)))

    def ask_at(self, dma: Dma, value: int) -> None:
        """Be told when the guest's value passes this one."""
        if value != self._last:
            dma.write(self._event, _U32.pack(value))
            self._last = value

    def settle(self, dma: Dma, size: int, register: int) -> int:
        """The value, after which the guest tells of the next one."""
        value = self.read(dma, size, register)
        for _ in range(size):
            before = value
            self.ask_at(dma, value)
            value = self.read(dma, size, register)
            if value == before:  # else it was changed before the guest could know
                break
        return value
