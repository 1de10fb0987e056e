"""A client that does anything in any order, against what a simple model says the server has to answer."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.everything_device import Everything
from userdev.transport import close_all
from vfio_user.client import Client, EventFd, GuestMemory, RemoteError
from vfio_user.server import Server
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire.constants import IrqIndex, MigrationState
from vfio_user.wire.layouts import REGION_ACCESS

PAGE = 0x1000
SCRATCH, IOVA, FILL = 0x00, 0x08, 0x10
RUNNING = MigrationState.RUNNING

PAGES = st.integers(0, 15)
"""A page of a small address space."""

_ARCS = {
    MigrationState.RUNNING: (MigrationState.STOP, MigrationState.STOP_COPY, MigrationState.PRE_COPY),
    MigrationState.PRE_COPY: (MigrationState.RUNNING, MigrationState.STOP_COPY, MigrationState.STOP),
    MigrationState.STOP: (MigrationState.RUNNING, MigrationState.STOP_COPY),
    MigrationState.STOP_COPY: (MigrationState.STOP, MigrationState.RUNNING),
}


class AnyClient(RuleBasedStateMachine):
    """Maps, interrupts, registers, reset, migration, rubbish, and leaving; the model is the attributes."""

    eventfds = Bundle("eventfds")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "s")
        self.device = Everything()
        self.server = Server(self.device, self.path).start()
        self.ram = GuestMemory(16 * PAGE)
        self.made: list[EventFd] = []
        self.scratch = 0
        self.state = RUNNING
        self._connect()

    def _connect(self) -> None:
        self.client = Client.connect(self.path)
        self.maps: dict[int, int] = {}
        self.wired: dict[int, EventFd] = {}

    def teardown(self) -> None:
        self.client.close()
        self.server.close()
        self.device.close()
        self.ram.close()
        for eventfd in self.made:
            eventfd.close()
        self.folder.cleanup()

    @initialize(target=eventfds)
    def first_eventfd(self) -> EventFd:
        self.made.append(EventFd())
        return self.made[-1]

    @rule(target=eventfds)
    def another_eventfd(self) -> EventFd:
        self.made.append(EventFd())
        return self.made[-1]

    # client memory

    @precondition(lambda self: self.state in (RUNNING, MigrationState.PRE_COPY))
    @rule(page=PAGES, pages=st.integers(1, 4))
    def map(self, page: int, pages: int) -> None:
        start, end = page * PAGE, (page + pages) * PAGE
        free = all(end <= first or start >= first + size for first, size in self.maps.items())
        again = self.maps.get(start) == end - start
        try:
            self.client.dma_map(start, self.ram, offset=0, size=end - start)
        except RemoteError:
            assert not free
        else:
            assert free or again
            self.maps[start] = end - start

    @precondition(lambda self: self.state in (RUNNING, MigrationState.PRE_COPY) and self.maps)
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from(sorted(self.maps)))
        self.client.dma_unmap(start, self.maps.pop(start))

    @precondition(lambda self: self.state in (RUNNING, MigrationState.PRE_COPY))
    @rule(page=PAGES, count=st.integers(1, PAGE))
    def dma(self, page: int, count: int) -> None:
        start = page * PAGE
        mapped = any(first <= start and start + count <= first + size for first, size in self.maps.items())
        self.client.store(0, IOVA, 8, start)
        try:
            self.client.store(0, FILL, 4, count)
        except RemoteError:
            assert not mapped or not self._covered(start, count)
        else:
            assert self._covered(start, count)

    def _covered(self, start: int, count: int) -> bool:
        """Whether every byte is mapped, perhaps by neighbours."""
        return all(
            any(first <= at < first + size for first, size in self.maps.items())
            for at in (*range(start, start + count, PAGE), start + count - 1)
        )

    # registers

    @precondition(lambda self: self.state in (RUNNING, MigrationState.PRE_COPY))
    @rule(value=st.integers(0, 0xFFFF_FFFF), posted=st.booleans())
    def write_scratch(self, value: int, posted: bool) -> None:
        self.client.store(0, SCRATCH, 4, value, posted=posted)
        self.scratch = value

    @precondition(lambda self: self.state in (RUNNING, MigrationState.PRE_COPY))
    @rule()
    def reset(self) -> None:
        self.client.reset()
        self.scratch = 0

    # interrupts

    @precondition(lambda self: self.state in (RUNNING, MigrationState.PRE_COPY))
    @rule(vector=st.integers(0, 7), eventfd=eventfds)
    def wire(self, vector: int, eventfd: EventFd) -> None:
        self.client.enable_irqs(IrqIndex.MSIX, [eventfd], start=vector)
        self.wired[vector] = eventfd
        for each in self.made:
            each.take()  # an interrupt that waited for its eventfd

    @precondition(lambda self: self.state in (RUNNING, MigrationState.PRE_COPY))
    @rule(vector=st.integers(0, 7))
    def trigger(self, vector: int) -> None:
        self.client.trigger_irqs(IrqIndex.MSIX, start=vector)
        fired = {eventfd.fd: eventfd.take() for eventfd in self.made}
        expected = self.wired.get(vector)
        assert {fd for fd, count in fired.items() if count} == ({expected.fd} if expected else set())

    @precondition(lambda self: self.state in (RUNNING, MigrationState.PRE_COPY))
    @rule()
    def disable_interrupts(self) -> None:
        self.client.disable_irqs(IrqIndex.MSIX)
        self.wired.clear()

    # migration

    @rule(data=st.data())
    def change_state(self, data: st.DataObject) -> None:
        self.state = data.draw(st.sampled_from(_ARCS[self.state]))
        self.client.set_migration_state(self.state)

    # what no client should do

    @rule(command=st.integers(0, 30), payload=st.binary(max_size=40), flags=st.sampled_from([0, 2, 0x20, 0xFFFF_FFC0]))
    def send_rubbish(self, command: int, payload: bytes, flags: int) -> None:
        known = CURRENT.command(command)
        if known in (Command.DEVICE_RESET, Command.SET_IRQS, Command.DMA_UNMAP, Command.DMA_MAP, Command.REGION_WRITE):
            payload = payload[:3]  # too short to mean anything
            if known is Command.DEVICE_RESET:
                return
        if known in (Command.DEVICE_FEATURE, Command.MIG_DATA_READ, Command.MIG_DATA_WRITE, Command.REGION_WRITE_MULTI):
            payload = payload[:3]
        reply = self.client.raw(command, payload, flags=flags)
        assert reply is not None
        close_all(reply.fds)

    @rule(size=st.integers(1, 40))
    def leave_in_the_middle_of_a_write(self, size: int) -> None:
        message = Message(1, 10, payload=REGION_ACCESS.pack(SCRATCH, 0, 4, tail=b"\xff" * 4)).encode()
        self.client.channel.send_bytes(message[: min(size, len(message) - 1)])
        self._reconnect()

    @rule()
    def leave(self) -> None:
        self._reconnect()

    def _reconnect(self) -> None:
        self.client.close()
        self._connect()
        self.state = self.client.migration_state()

    # what has to be true at any time

    @invariant()
    def the_device_is_as_the_model_says(self) -> None:
        assert self.client.migration_state() is self.state
        if self.state in (RUNNING, MigrationState.PRE_COPY):
            assert self.client.load(0, SCRATCH, 4) == self.scratch
            assert len(self.device.dma.regions) == len(self.maps)


AnyClient.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyClient = AnyClient.TestCase
