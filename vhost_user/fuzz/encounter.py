"""One front-end of one sequence: its connection, its memory, its ring, and what it knows of the disk."""

from __future__ import annotations

import select
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from userdev.conformance import Level
from userdev.counted import counted
from userdev.fuzz import Answer, Found, Journal
from userdev.fuzz.levels import DEFAULT, LEVELS, Tolerated
from vhost_user.frontend import FrontEnd
from vhost_user.frontend.conformance import DeviceKind, Target
from vhost_user.frontend.conformance.bench import answering
from vhost_user.frontend.front_end import FEATURES, PROTOCOL_FEATURES
from vhost_user.frontend.memory import PAGE, DirtyPages, GuestMemory
from vhost_user.frontend.queue import Buffer, Completion, Queue, Request
from vhost_user.fuzz.oracles import LOG, MEMORY, REPLIES, RINGS
from vhost_user.wire import ProtocolFeature, VirtioFeature

V = VirtioFeature
MEMORY_SIZE = 1 << 20
RING = 16
"""Descriptors of a ring, so that it is gone through in a few requests."""
APART = 1 << 16
"""Bytes between rings and requests: the dirty log has a byte for 8 pages, and a back-end may mark all of them."""
KINDS = (V(0), V.EVENT_IDX, V.RING_PACKED, V.RING_PACKED | V.EVENT_IDX, V.IN_ORDER, V.RING_PACKED | V.IN_ORDER)
"""Kinds of rings, by what is negotiated beside VERSION_1."""


@dataclass(frozen=True)
class Offered:
    """What a probe has found."""

    features: VirtioFeature
    protocol_features: ProtocolFeature
    queues: int
    config_size: int = 0
    sectors: int = 0
    """Of a disk that can be written; 0 where it is none, or that is not known."""


@dataclass
class Encounter:
    """What a sequence's steps are played on."""

    target: Target
    device: DeviceKind | None
    timeout: float
    offered: Offered
    front_end: FrontEnd = field(init=False)
    queue: Queue | None = None
    beside: list[Queue] = field(default_factory=list)
    running: bool = False
    log: DirtyPages | None = None
    blocks: dict[int, bytes] = field(default_factory=dict)
    """By sector: what was written last. It outlives connections, as disks do."""
    journal: Journal = field(default_factory=list)
    """What was answered, for comparison with a reference."""
    level: str = DEFAULT
    """What the back-end is held to, as `userdev.fuzz.levels` has it."""

    def __post_init__(self) -> None:
        self.join(0, 1, False)

    def join(self, kind: int, regions: int, as_table: bool, protocol: ProtocolFeature = PROTOCOL_FEATURES) -> None:
        """Be the next front-end, with this kind of ring, and its memory in so many regions.

        Raises:
            UserError, BackEndError: the back-end does not serve it.
        """
        stream = answering(self.target, timeout=self.timeout)
        memory = GuestMemory(MEMORY_SIZE, regions=regions)
        self.front_end = FrontEnd(stream, memory=memory, timeout=self.timeout)
        try:
            self.front_end.negotiate(FEATURES | KINDS[kind % len(KINDS)], protocol)
            self.front_end.share_memory(as_table=as_table)
        except BaseException:
            self.front_end.close()
            raise

    def leave(self) -> None:
        """End the connection, with all that was of it."""
        self.front_end.close()
        self.queue, self.log, self.running = None, None, False

    def rejoin(self, kind: int = 0, regions: int = 1, as_table: bool = False) -> None:
        """Leave, and be the next front-end; raises as `join`."""
        self.leave()
        self.join(kind, regions, as_table)

    def started(self) -> Queue | None:
        """The queue for requests, which runs; None where nobody has said what the device is."""
        if self.device is None:
            return None
        if self.queue is None:
            self.beside = [self.front_end.queue(index, RING) for index in self.device.beside]
            self.queue = self.front_end.queue(self.device.queue, RING)
            self.front_end.memory.allocate(APART)
        if not self.running:
            for queue in self.beside:
                queue.start()
            self.queue.start()
            self.running = True
        return self.queue

    def require_refusal(self, refused: object, cause: str, taken: str, *, level: Level = Level.REFERENCE) -> None:
        """What cannot be right has to be refused, where the back-end is held to that: the specification leaves it open.

        level: that of the check of conformance that is about it, where there is one.

        Raises:
            Found: it was not, with this cause; `taken` says so.
            Tolerated: it was, as it may be.
        """
        if refused:
            return
        if level not in LEVELS[self.level]:
            raise Tolerated
        raise Found(REPLIES, cause, taken, level=level)

    @contextmanager
    def over_a_border(self, before: int) -> Iterator[None]:
        """Have what is put into memory begin so many bytes before a border of pages that share no byte of the log."""
        memory = self.front_end.memory
        start = memory.allocate(1, align=1)
        memory.free(start)
        border = -(-(start + before + 1) // APART) * APART
        while border in (region.guest_address for region in memory.regions):  # which conformance leaves open
            border += APART
        pad = memory.allocate(border - before - start, align=1, at=start)
        yield
        memory.free(pad)

    def stop(self) -> None:
        """Stop the queues that run."""
        if self.queue is not None and self.running:
            for queue in self.beside:
                queue.stop(drain=False)
            self.queue.stop()
            self.running = False

    def _await_call(self, queue: Queue) -> None:
        """Wait until the driver is called, or hears otherwise that it will not be."""
        poll = select.poll()
        for fd in (queue.call_fd, queue.err_fd):
            poll.register(fd, select.POLLIN)
        poll.register(self.front_end.stream.fileno(), select.POLLRDHUP)
        if not poll.poll(self.timeout * 1000) and queue.take_used():
            raise Found(RINGS, "not told", "requests have come back, and the driver is not called")

    def served(self, queue: Queue, count: int, *buffers: Buffer, indirect: bool = False) -> list[Completion]:
        """Have so many requests of these buffers served, and see that nothing but what they give was written.

        Raises:
            Found: something else was; or they come back and nobody is told.
            BackEndError: they do not come back, or others do.
        """
        queue.wait_call(0)
        queue.driver.ask_for_call()
        memory = self.front_end.memory  # all of it as it was before there is a request: a back-end may look by itself
        before, known = bytearray(memory[0 : memory.size]), memory.pieces
        made = [queue.put(*buffers, indirect=indirect) for _ in range(count)]
        given = [(at, end - at) for at, end in memory.pieces - known]
        done = self._come_back(queue, count)
        self._check_memory(before, given, [(request, buffers) for request in made])
        if self.device is not None and self.device.repeats:
            asked = f"a request of {counted(len(buffers), 'buffer')}"
            self.journal += [Answer(asked, asked, bytes(each.data)) for each in done]
        self._look_at_log([(at, done[0].written) for at, _ in _writable(made[0], buffers)[:1] if count == 1])
        return done

    def _look_at_log(self, written: list[tuple[int, int]]) -> None:
        """Every page that was written is marked."""
        if self.log is None:
            return
        marked = self.log.pages()
        for at, length in written:
            for page in range(at // PAGE, (at + max(1, length) - 1) // PAGE + 1) if length else ():
                if page not in marked:
                    raise Found(LOG, "page", f"page {page} was written, and is not marked")

    def _come_back(self, queue: Queue, count: int) -> list[Completion]:
        queue.kick()
        self._await_call(queue)
        done = queue.take_used()
        if len(done) < count:
            done += queue.wait_used(count - len(done))
        return done

    def _check_memory(
        self, before: bytearray, given: Iterable[tuple[int, int]], made: Iterable[tuple[Request, Sequence[Buffer]]]
    ) -> None:
        memory = self.front_end.memory
        for request, buffers in made:
            for at, buffer in zip(request.places, buffers, strict=True):
                if isinstance(buffer, bytes) and memory[at : at + len(buffer)] != buffer:
                    raise Found(MEMORY, "readable", "what was given for reading was written")
        self.unwritten(before, given)

    def unwritten(self, before: bytearray, but: Iterable[tuple[int, int]]) -> None:
        """See that the guest's memory is as before, but for rings and these pieces.

        Raises:
            Found: it is not.
        """
        after = bytearray(self.front_end.memory[0 : len(before)])
        rings = ((ring.driver.addresses.descriptor, ring.driver.room(ring.size)) for ring in self.front_end.queues)
        for at, length in (*but, *rings):
            before[at : at + length] = after[at : at + length] = bytes(length)
        if before != after:
            at = next(at for at, byte in enumerate(before) if byte != after[at])
            raise Found(MEMORY, "written outside", f"guest memory at {at:#x} was written, which no request gave")


def _writable(request: Request, buffers: Sequence[Buffer]) -> list[tuple[int, int]]:
    pairs = zip(request.places, buffers, strict=True)
    return [(at, buffer) for at, buffer in pairs if isinstance(buffer, int)]
