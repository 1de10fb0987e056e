"""One client of one sequence: what it has asked for so far, and what the server has to answer because of that."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from userdev.conformance import Check, CheckFailed, Level, require
from userdev.counted import counted
from userdev.fuzz import Answer, Found, Journal
from userdev.fuzz.levels import DEFAULT, LEVELS, Tolerated, judge
from vfio_user.client import Client, EventFd
from vfio_user.client.conformance import CATALOGUE, Bench
from vfio_user.client.conformance.bench import closed
from vfio_user.client.errors import Disconnected, NoAnswer
from vfio_user.fuzz.ground import Ground
from vfio_user.fuzz.memory import GuardedMemory
from vfio_user.fuzz.oracles import REPLIES
from vfio_user.wire import ERROR, REPLY, Command, Message
from vfio_user.wire.constants import DmaFlagsV6, MigrationState
from vfio_user.wire.layouts import DMA_ENTRY_V6, DMA_MAP, DMA_UNMAP

_CHECKS = {check.id: check for check in CATALOGUE}
ACCESSIBLE = (MigrationState.RUNNING, MigrationState.PRE_COPY)
"""States in which a device does what it is asked."""


@dataclass(frozen=True)
class MappedRange:
    """A range that the server has taken; `offset` is where in the memory it is."""

    iova: int
    size: int
    shared: bool
    offset: int
    rights: int

    @property
    def end(self) -> int:
        """The first IOVA behind it."""
        return self.iova + self.size


@dataclass
class Encounter:
    """What a sequence's steps are played on. `bench` is that of conformance's checks, with this client as its own."""

    client: Client
    ground: Ground
    bench: Bench
    memory: GuardedMemory
    level: str = DEFAULT
    """What the server is held to, as `userdev.fuzz.levels` has it."""
    maps: dict[int, MappedRange] = field(default_factory=dict)
    """By IOVA: what the server has taken."""
    wired: dict[tuple[int, int], EventFd] = field(default_factory=dict)
    """By interrupt type and vector."""
    eventfds: list[EventFd] = field(default_factory=list)
    state: MigrationState = MigrationState.RUNNING
    logging: bool = False
    touched: bool = False
    """Whether the device has been written to since its reset, so that it may send interrupts by itself."""
    masking: bool = False
    """Whether it was told since then, perhaps, to hold interrupts back: by a mask of MSI-X, or by a command."""
    volatile: frozenset[tuple[int, int]] = frozenset()
    """Region and offset of bytes that change by themselves."""
    stable: bool = True
    """Whether a state that is saved twice is the same."""
    saved: bytes = b""
    """A state of this device, as it was after its start."""
    journal: Journal = field(default_factory=list)
    """What the server answered, for comparison with a reference: what was asked, and the answer."""

    @property
    def accessible(self) -> bool:
        """Whether the device has to do what it is asked."""
        return self.state in ACCESSIBLE

    def ask(self, command: Command, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """The reply to a request, good or bad, whose header is as it has to be; its descriptors are closed.

        Raises:
            Found: its flags, errno or command are wrong.
        """
        number = self.client.dialect.number(command)
        reply = self.client.raw(number, payload, fds)
        assert reply is not None
        closed(reply)
        check_header(reply, number, command.value)
        return reply

    def map_request(self, wanted: MappedRange) -> bytes:
        """The payload of DMA_MAP for a range, as the dialect has it."""
        place = wanted.offset if wanted.shared else 0
        if not self.client.dma_tables:
            return DMA_MAP.pack(DMA_MAP.size, wanted.rights, place, wanted.iova, wanted.size)
        mappable = DmaFlagsV6.MAPPABLE if wanted.shared else 0
        return DMA_ENTRY_V6.pack(wanted.iova, wanted.size, place, wanted.rights, mappable)

    def unmap_request(self, iova: int, size: int) -> bytes:
        """The payload of DMA_UNMAP for a range, as the dialect has it."""
        if not self.client.dma_tables:
            return DMA_UNMAP.pack(DMA_UNMAP.size, 0, iova, size)
        return DMA_ENTRY_V6.pack(iova, size, 0, 0, 0)

    def note(self, verb: str, region: int, offset: int, width: int, reply: Message, data: bytes = b"") -> None:
        """Keep the answer to an access, for comparison with that of a reference."""
        of = f"{width} bytes" if not offset % width else "what is not aligned"
        answer = None if reply.failed else data
        asked = f"a {verb} of {counted(width, 'byte')} of region {region} at {offset:#x}"
        self.journal.append(Answer(asked, f"a {verb} of {of} of region {region}", answer, f"region {region}", offset))

    def refused(self, reply: Message, what: str, accepted: Sequence[int] = (errno.EINVAL,)) -> None:
        """Have `reply` be an error with one of these errnos, as the reference refuses what the specification may not.

        Raises:
            Tolerated: it is none, and need not be.
        """
        if Level.REFERENCE in LEVELS[self.level]:
            try:
                self.bench.refused(reply, accepted, what)
            except CheckFailed as error:
                error.level = Level.REFERENCE
                raise
        elif not reply.failed:
            raise Tolerated

    def good(self, reply: Message, what: str) -> Message:
        """Have `reply` be no error."""
        return self.bench.good(reply, what)

    def judge(self, id: str, attempt: Callable[[Check[Bench]], None]) -> None:
        """Have a check of conformance hold, by a function that runs one; raises as `userdev.fuzz.levels.judge`."""
        judge(id, _CHECKS, attempt, level=self.level, oracle=REPLIES, silence=(Disconnected, NoAnswer))

    @contextmanager
    def checking(self) -> Iterator[Bench]:
        """A bench for a check of conformance, with this client.

        It knows nothing yet: descriptors of regions are closed when the client asks for them again.
        """
        bench = Bench(self.bench.target, self.client.dialect, timeout=self.bench.timeout)
        bench.client = self.client
        try:
            yield bench
        finally:
            bench.close()

    def eventfd(self) -> EventFd:
        """Make an eventfd that is closed with the encounter."""
        self.eventfds.append(EventFd())
        return self.eventfds[-1]

    def fired(self) -> dict[EventFd, int]:
        """The eventfds that were triggered since this was last asked, and how often."""
        return {eventfd: count for eventfd in self.eventfds if (count := eventfd.take())}

    def forget_map(self, iova: int) -> None:
        """A range is not the device's any more."""
        gone = self.maps.pop(iova)
        self.client.memory.remove(iova, gone.size)
        if gone.rights & 2 and not any(
            (other.shared, other.offset, other.size) == (gone.shared, gone.offset, gone.size) and other.rights & 2
            for other in self.maps.values()
        ):
            self.memory.take(gone.shared, gone.offset, gone.size)

    def leave(self) -> None:
        """End the connection: maps, wires and log go with it."""
        self.client.close()
        for iova in list(self.maps):
            self.forget_map(iova)
        self.wired.clear()
        self.logging = False

    def rejoin(self) -> None:
        """Leave, and be the next client, which the server has to serve.

        Raises:
            UserError, Disconnected, NoAnswer, RemoteError, ProtocolError: it does not.
        """
        self.leave()
        self.client = Client(self.bench.target.connect(), dialect=self.client.dialect, timeout=self.bench.timeout)
        self.client.negotiate(minor=0)
        self.bench.client = self.client
        if self.ground.migrates:
            self.state = self.client.migration_state()

    def close(self) -> None:
        """End it, with all that it has opened."""
        self.client.close()
        self.close_eventfds()
        self.bench.close()

    def close_eventfds(self) -> None:
        """Close what no vector is wired to any more."""
        for eventfd in self.eventfds:
            eventfd.close()
        self.eventfds.clear()


def check_header(reply: Message, number: int, name: str) -> None:
    """A reply's header has to say what became of the request.

    Raises:
        Found: it does not.
    """
    if reply.flags not in (REPLY, REPLY | ERROR):
        raise Found(REPLIES, f"{name}: flags", f"the reply to {name} has flags {reply.flags:#x}")
    if reply.failed != bool(reply.errno):
        said = "errno 0 in an error" if reply.failed else f"errno {reply.errno} and no error"
        raise Found(REPLIES, f"{name}: errno", f"the reply to {name} has {said}")
    require(reply.command == number, f"{name} is answered with command {reply.command}")
