"""Where a check meets the server: connections, what the device has, and whether anything changed."""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from userdev.busy_wait import BusyWait
from userdev.conformance import Cause, CheckFailed, Skip, Target, Unmet, relying, require
from userdev.conformance.check import HURRIED_SECONDS
from userdev.conformance.targets import Greet
from userdev.counted import counted
from userdev.errors import ProtocolError, UserdevError, errno_name
from userdev.process import Deadline
from userdev.transport import Stream, close_all
from vfio_user.client.channel import Pending
from vfio_user.client.client import Client
from vfio_user.client.errors import Disconnected, RemoteError, StrayReply, none_refused
from vfio_user.client.eventfd import EventFd
from vfio_user.client.memory import GuestMemory
from vfio_user.client.regions import Region
from vfio_user.wire import ERROR, Command, Dialect, Message
from vfio_user.wire.constants import MOST_IRQS, MOST_REGIONS, Feature, IrqIndex, RegionIndex
from vfio_user.wire.layouts import (
    DMA_ENTRY_V6,
    DMA_UNMAP,
    IRQ_INFO,
    REGION_ACCESS,
    REGION_INFO,
    VfioDeviceInfo,
    VfioIrqInfo,
)

INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
"""The first is a byte of the config space that is the driver's to write, and means nothing to the device; one without
the second need not keep it (PCI 3.0, 6.2.4).
"""

DESCRIBED = ("info/describes",)
"""What is asked of a device is taken from that."""

CLOSING_SECONDS = 1.0
"""That a server has to close the descriptors of a client that has left: one thread may serve, and another tidy up."""
BEHIND_SECONDS = 0.02
"""That a reply may come behind one that is none."""
LOOK_SECONDS = 0.01
"""Between two looks at that."""

MOST_MAPS = 65535
"""Ranges that a server takes which announces nothing else (max_dma_maps)."""

PAGE = 0x1000
UNUSED_IOVA = 0x7FFF_0000_0000
"""Where no check maps anything."""


def greeting(dialect: Dialect) -> Greet:
    """How a client of this dialect finds out that a server serves it."""

    def greet(stream: Stream, timeout: float) -> None:
        Client(stream, dialect=dialect, timeout=timeout).negotiate(minor=0)

    return greet


_NOWHERE = 0xFFFF_FFFF
IMPOSSIBLE = (
    ("a read past the end", Command.REGION_READ, REGION_ACCESS.pack(1 << 40, RegionIndex.CONFIG, 4)),
    (
        "a region that there is not",
        Command.GET_REGION_INFO,
        REGION_INFO.pack(REGION_INFO.size, 0, _NOWHERE, 0, 0, 0),
    ),
    ("an interrupt type that there is not", Command.GET_IRQ_INFO, IRQ_INFO.pack(IRQ_INFO.size, 0, _NOWHERE, 0)),
)
"""What no server can do, whatever its device: what, the command and its payload."""


def _no_error_bit(whose: str) -> Cause:
    said = f"{whose} no Error bit ({ERROR:#x}), without which it says that all is done"
    return Cause("the Error bit of replies that refuse", said, "header/flags-of-replies")


def _another_id(pending: Pending, stray: StrayReply) -> Cause:
    said = f"the reply to {pending.name}, which was sent with id {pending.id}, has id {stray.id}"
    return Cause("the ids of replies", said, "header/id-echoed")


class Observer(Client):
    """A client who remembers of replies what no check is about, and what explains that one goes wrong."""

    cause: Cause | None = None

    def wait(self, pending: Pending, *, timeout: float | None = None) -> Message:
        """As `Client.wait`."""
        try:
            reply = super().wait(pending, timeout=timeout)
        except StrayReply as stray:
            if not self._comes_yet(pending) and self.cause is None:
                self.cause = _another_id(pending, stray)
            raise
        if reply.errno and not reply.failed and self.cause is None:
            self.cause = _no_error_bit(f"the reply to {pending.name} has errno {errno_name(reply.errno)} and")
        return reply

    def _comes_yet(self, pending: Pending) -> bool:
        """Whether a reply follows that has the request's own id: then what nobody asked is one more."""
        with suppress(UserdevError):
            closed(super().wait(pending, timeout=BEHIND_SECONDS))
        return pending.reply is not None


class Bench:
    """One check's view of the server. Everything it opens is closed at the end of the check."""

    def __init__(
        self,
        target: Target,
        dialect: Dialect,
        *,
        timeout: float,
        first: Callable[[], Observer | None] | None = None,
        busy_wait: BusyWait | None = None,
    ) -> None:
        """`first` is asked for the check's own client, where one may be there that is as new.

        `busy_wait` is for its clients, as `Client` says.
        """
        self.target = target
        self.dialect = dialect
        self.timeout = timeout
        self.hurried = False
        """Whether what the check needs has gone wrong: how is known, and what comes of this one says nothing."""
        self._first = first
        self._busy_wait = busy_wait
        self.clients: list[Observer] = []
        self._eventfds: list[EventFd] = []
        self._memory: list[GuestMemory] = []
        self._fds: list[int] = []
        self._did_what_it_should_not = False

    def close(self) -> None:
        """Close all that the check has opened."""
        for client in self.clients:
            client.close()
        for eventfd in self._eventfds:
            eventfd.close()
        for memory in self._memory:
            memory.close()
        close_all(self._fds)

    # connections

    @cached_property
    def client(self) -> Client:
        """The check's own client, connected and with a version agreed."""
        first = self._first() if self._first is not None else None
        if first is None:
            with relying("version/agreed"):
                return self.connect()
        self.clients.append(first)
        first.channel.timeout = self.timeout
        return first

    def begin(self) -> None:
        """Agree on a version."""
        self.connect()

    def hurry(self) -> None:
        """As `Workbench.hurry`."""
        self.timeout = min(self.timeout, HURRIED_SECONDS)
        self.hurried = True

    def cause(self) -> Cause | None:
        """As `Workbench.cause`: what one of the check's clients saw, or that the server refuses nothing at all."""
        seen = next((client.cause for client in self.clients if client.cause is not None), None)
        if seen is None and self._did_what_it_should_not and self._refuses_nothing():
            return _no_error_bit(f"the replies to {', '.join(what for what, _, _ in IMPOSSIBLE)} have")
        return seen

    def connect(self) -> Client:
        """One more client, with a version agreed."""
        client = self.stranger()
        client.negotiate(minor=0)
        return client

    def stranger(self) -> Client:
        """A client that has not said anything yet."""
        stream = self.target.connect()
        client = Observer(stream, dialect=self.dialect, timeout=self.timeout, busy_wait=self._busy_wait)
        self.clients.append(client)
        return client

    # material

    def eventfd(self) -> EventFd:
        """Make an eventfd that is closed with the bench."""
        self._eventfds.append(EventFd())
        return self._eventfds[-1]

    def memory(self, size: int = 0x10000, *, shared: bool = True) -> GuestMemory:
        """Make guest memory of `size` bytes that is closed with the bench; without `shared` it has no descriptor."""
        self._memory.append(GuestMemory(size, shared=shared))
        return self._memory[-1]

    def own(self, fd: int) -> int:
        """Close this descriptor at the end of the check."""
        self._fds.append(fd)
        return fd

    def memfd(self, size: int = 0x10000) -> int:
        """Make a memfd of `size` bytes that is closed with the bench."""
        fd = self.own(os.memfd_create("conformance", os.MFD_CLOEXEC))
        os.ftruncate(fd, size)
        return fd

    # the device

    @cached_property
    def info(self) -> VfioDeviceInfo:
        """The device's description, asked for once."""
        with relying("info/describes"):
            return self.client.device_info()

    @cached_property
    def regions(self) -> list[Region]:
        """The description of each region."""
        with relying("region_info/describes-every-region"):
            return none_refused(self.client.region_infos(range(min(self.info.num_regions, MOST_REGIONS))))

    @cached_property
    def irqs(self) -> list[VfioIrqInfo]:
        """The description of each interrupt index."""
        with relying("irq_info/describes-every-type"):
            return none_refused(self.client.irq_infos(range(min(self.info.num_irqs, MOST_IRQS))))

    def irq(self, vectors: int = 1) -> VfioIrqInfo:
        """An interrupt type with at least so many vectors; MSI-X and MSI before INTx."""
        for index in (IrqIndex.MSIX, IrqIndex.MSI, IrqIndex.INTX):
            if index < len(self.irqs) and self.irqs[index].nr_vectors >= vectors:
                return self.irqs[index]
        raise Skip(f"no interrupt type has {counted(vectors, 'vector')}")

    def region(self, index: int) -> Region:
        """A region that every device has."""
        if index < len(self.regions):
            return self.regions[index]
        raise Unmet(*DESCRIBED, f"region {index} is needed, and the device has {counted(len(self.regions), 'region')}")

    def need_mappable(self) -> None:
        """Skip the check where no region may be mapped."""
        if not any(region.mappable for region in self.regions):
            raise Skip("no region may be mapped")

    def need_line(self) -> None:
        """Skip the check where the interrupt line keeps nothing, as it need not of a device without a pin."""
        if not keeps_its_line(self.client):
            raise Skip("the device has no interrupt pin, and its interrupt line keeps nothing")

    @property
    def most_maps(self) -> int:
        """The ranges that the server takes: what it has announced, or the default of the specification."""
        server = self.client.server
        announced = server.capabilities.max_dma_maps if server is not None else None
        return MOST_MAPS if announced is None else announced

    def irq_type(self, index: int) -> VfioIrqInfo:
        """An interrupt type that every device has, be it without a vector."""
        if index < len(self.irqs):
            return self.irqs[index]
        raise Unmet(*DESCRIBED, f"interrupt type {index} is needed, and the device has {len(self.irqs)}")

    def need_fds(self) -> None:
        """Skip the check where descriptors cannot go along."""
        if not self.client.channel.carries_fds:
            raise Skip("the transport carries no descriptors")
        if not self.client.fds_per_message:
            raise Skip("the server announces that it takes no descriptors")

    def need_dma(self) -> None:
        """Skip where the server ignores DMA_MAP and DMA_UNMAP, as one may whose device does no DMA.

        One that refuses to unmap what was never mapped does not; only another is asked what nobody could take.
        """
        if self.ask(Command.DMA_UNMAP, self.unmap_request(UNUSED_IOVA, PAGE)).failed:
            return
        if not self.ask(Command.DMA_MAP, b"\0").failed:
            raise Skip("the device does no DMA: DMA_MAP succeeds whatever it says")

    def unmap_request(self, iova: int, size: int) -> bytes:
        """A DMA_UNMAP of this range, in the dialect's layout."""
        if self.client.dma_tables:
            return DMA_ENTRY_V6.pack(iova, size, 0, 0, 0)
        return DMA_UNMAP.pack(DMA_UNMAP.size, 0, iova, size)

    def need_migration(self) -> None:
        """Skip the check where the device does not migrate."""
        with relying("feature/none-without-migration"):
            if Command.DEVICE_FEATURE not in self.dialect or not self.client.has_feature(Feature.MIGRATION):
                raise Skip("the device does not migrate by messages")

    def need_migration_region(self) -> int:
        """The index of the v1 migration region; skips the check where there is none."""
        index = self.client.migration_region_index()
        if index is None:
            raise Skip("the device has no migration region")
        return index

    def server_fds(self) -> int:
        """The number of descriptors that the server has open."""
        if self.target.pid is None:
            raise Skip("the server's process is not known: give --server-command")
        return sum(1 for _ in Path(f"/proc/{self.target.pid}/fd").iterdir())

    def left_open(self, before: int, client: Client) -> int:
        """The descriptors that the server has open beside the `before` that it had, once it had time to close them.

        `client` is connected, behind all those whose they were: to close them is its to do, and not before an answer.
        """
        deadline = Deadline(CLOSING_SECONDS)
        while (more := self.server_fds() - before) > 0 and not deadline.passed:
            client.serve_until(lambda: False, timeout=LOOK_SECONDS)
        return more

    # asking

    def ask(
        self, command: Command, payload: bytes = b"", fds: Sequence[int] = (), *, client: Client | None = None
    ) -> Message:
        """The reply to a request, good or bad; its descriptors are closed."""
        reply = (client or self.client).raw(self.dialect.number(command), payload, fds)
        assert reply is not None
        return closed(reply)

    def failed(self, reply: Message) -> bool:
        """Whether a reply that should be an error is one."""
        self._did_what_it_should_not |= not reply.failed
        return reply.failed

    def _refuses_nothing(self) -> bool:
        """Whether what no server can do is done; that it cannot be asked is no yes. No client is there afterwards."""
        for client in self.clients:
            client.close()
        with suppress(UserdevError):
            asking = self.connect()
            return not any(self.ask(command, payload, client=asking).failed for _, command, payload in IMPOSSIBLE)
        return False

    def refused(self, reply: Message, accepted: Sequence[int], what: str) -> None:
        """`reply`, whose descriptors are closed, has to be an error with one of these errnos."""
        closed(reply)
        names = " or ".join(errnos.errorcode[number] for number in accepted)
        require(self.failed(reply), f"{what} succeeded instead of failing with {names}")
        got = errno_name(reply.errno)
        require(reply.errno in accepted, f"{what} failed with {got} instead of {names}")

    def good(self, reply: Message, what: str) -> Message:
        """`reply`, whose descriptors are closed, has to be no error."""
        closed(reply)
        require(not reply.failed, f"{what} failed with {errno_name(reply.errno)}")
        return reply

    def alive(self) -> None:
        """The server has to serve a new client."""
        for client in self.clients:
            client.close()
        try:
            self.connect().device_info()
        except (RemoteError, ProtocolError, Disconnected) as error:
            raise CheckFailed(f"the next client is not served: {error}", getattr(error, "request", "")) from None

    def ends(self, client: Client, what: str) -> None:
        """The server has to end this connection."""
        gone = False
        try:
            client.serve_until(lambda: False, timeout=self.timeout)
        except Disconnected:
            gone = True
        require(gone, f"the connection stays open after {what}")

    def snapshot(self) -> dict[str, object]:
        """The facts that a refused request may not change: the device's description and its config space's header.

        What the server does not tell is a fact too: that it has to is the rule of other checks.
        """
        client = self.client
        info = client.device_info()
        state: dict[str, object] = {"GET_INFO": info}
        for index, region in enumerate(client.region_infos(range(min(info.num_regions, MOST_REGIONS)))):
            state[f"region {index}"] = region.errno if isinstance(region, RemoteError) else _description(region)
        for index, irq in enumerate(client.irq_infos(range(min(info.num_irqs, MOST_IRQS)))):
            state[f"interrupt type {index}"] = irq.errno if isinstance(irq, RemoteError) else irq
        state["config space"] = _header(client)
        return state

    def unchanged(self, before: dict[str, object], what: str) -> None:
        """Fail the check where the device is another than `before`, which `what` has made it."""
        after = self.snapshot()
        changed = [name for name, value in before.items() if after.get(name) != value]
        require(not changed, f"{what} changed {', '.join(changed)}")


def closed(reply: Message) -> Message:
    """The reply, with its descriptors closed and none left: what a server sends along is no check's to keep."""
    fds, reply.fds = reply.fds, []
    close_all(fds)
    return reply


def keeps_its_line(client: Client) -> bool:
    """Whether what is written to the interrupt line stays, as it has to where there is an interrupt pin."""
    if client.config_read(INTERRUPT_PIN, 1) != b"\0":
        return True
    before = client.config_read(INTERRUPT_LINE, 1)
    other = bytes([before[0] ^ 0xFF])
    try:
        client.config_write(INTERRUPT_LINE, other)
    except RemoteError:
        return False
    kept = client.config_read(INTERRUPT_LINE, 1) == other
    client.config_write(INTERRUPT_LINE, before)
    return kept


def _description(region: Region) -> object:
    return region.size, region.flags, region.offset, region.sparse, region.type


def _header(client: Client) -> object:
    try:
        header = bytearray(client.config_read(0, 64))
    except RemoteError as error:
        return error.errno
    header[6:8] = b"\0\0"  # the status register is the device's to change
    return bytes(header)
