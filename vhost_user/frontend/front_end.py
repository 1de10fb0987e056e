"""A front-end: it negotiates with a back-end, shares memory with it, and drives its queues, as VMM and driver do.

What real back-ends do otherwise than one would guess is in `tests/vhost/test_back_ends.py`, each with its name.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

from userdev.transport import Address, Stream, connect
from vhost_user.frontend import device_state
from vhost_user.frontend.channel import Channel
from vhost_user.frontend.connection import Connection
from vhost_user.frontend.errors import BackEndError, NotOffered, Refused
from vhost_user.frontend.memory import PAGE, DirtyPages, GuestMemory
from vhost_user.frontend.packed import PackedDriver
from vhost_user.frontend.queue import Queue
from vhost_user.frontend.split import SplitDriver
from vhost_user.wire import DeviceStatus, FrontEndRequest, Negotiated, ProtocolFeature, VirtioFeature
from vhost_user.wire.payloads import Config, Inflight, IotlbMessage, IotlbType, Log, Permission

R = FrontEndRequest
_V, _P, _S = VirtioFeature, ProtocolFeature, DeviceStatus

TIMEOUT = 10.0
"""Seconds that an answer, or a request in a ring, may take unless told."""

FEATURES = _V.VERSION_1 | _V.PROTOCOL_FEATURES
"""Asked for unless told. QEMU's storage daemon ends a connection that goes without VERSION_1."""

PROTOCOL_FEATURES = (
    _P.MQ
    | _P.LOG_SHMFD
    | _P.REPLY_ACK
    | _P.BACKEND_REQ
    | _P.CONFIG
    | _P.INFLIGHT_SHMFD
    | _P.RESET_DEVICE
    | _P.CONFIGURE_MEM_SLOTS
    | _P.STATUS
    | _P.DEVICE_STATE
)
"""Asked for unless told: all that a front-end can do."""

QUEUE_SIZE = 64
"""Descriptors of a ring, unless told."""

_READ_AND_WRITE = Permission.READ | Permission.WRITE
_BEFORE_START = _S.ACKNOWLEDGE | _S.DRIVER | _S.FEATURES_OK


class Offer(NamedTuple):
    """What a back-end offers."""

    features: VirtioFeature = _V(0)
    protocol_features: ProtocolFeature = _P(0)


class InflightBuffer(NamedTuple):
    """The region that requests under way are kept in; the front-end that was given it closes its descriptor."""

    described: Inflight
    fd: int


class FrontEnd(Connection):
    """One connection to a back-end at a time, and the memory and queues that back-ends are given. A context manager."""

    def __init__(
        self, address: Address | str | Stream, *, memory: GuestMemory | None = None, timeout: float = TIMEOUT
    ) -> None:
        """Connect to `address`, or take over a stream. `memory` is of the front-end's own from now on.

        Raises:
            UserError: nobody listens there.
        """
        stream = address if isinstance(address, Stream) else connect(address, timeout=timeout)
        super().__init__(stream, timeout=timeout)
        self.memory = memory or GuestMemory()
        self.queues: list[Queue] = []
        """Those that it has made."""
        self.offered = Offer()
        self.channel: Channel | None = None
        self._owns = False
        self._status = _S(0)
        self._logs: list[DirtyPages] = []
        self._inflight: list[int] = []

    def reconnect(self, address: Address | str | Stream) -> None:
        """Have another connection, with the same memory and queues, as QEMU's reconnect-ms does; negotiate again.

        Queues start then with all that has not come back, or as an in-flight region says.
        """
        self._framer.close()
        self.stream.close()
        self._take_over(address if isinstance(address, Stream) else connect(address, timeout=self.timeout))
        self.negotiated, self.offered = Negotiated(), Offer()
        self._owns = False
        for queue in self.queues:
            queue.forget_base()

    def close(self) -> None:
        """End the connection, and give everything back; idempotent."""
        super().close()
        for queue in self.queues:
            queue.close()
        for log in self._logs:
            log.close()
        while self._inflight:
            os.close(self._inflight.pop())
        if self.channel is not None:
            self.channel.close()
        self.memory.close()

    # Negotiation

    def negotiate(
        self, features: VirtioFeature = FEATURES, protocol: ProtocolFeature = PROTOCOL_FEATURES
    ) -> Negotiated:
        """Agree on those of these features that the back-end offers; it is owned from then on, once per connection.

        Raises:
            BackEndError: the back-end refuses, or has gone.
        """
        offered = _V(self.ask(R.GET_FEATURES))
        offered_protocol = agreed_protocol = _P(0)
        if _V.PROTOCOL_FEATURES in offered:
            offered_protocol = _P(self.ask(R.GET_PROTOCOL_FEATURES))
            if _V.PROTOCOL_FEATURES in features:
                agreed_protocol = protocol & offered_protocol
                self.send(R.SET_PROTOCOL_FEATURES, int(agreed_protocol))
        self.offered = Offer(offered, offered_protocol)
        agreed = features & offered
        try:
            if not self._owns:  # rust-vmm's ends the connection at a second one
                self.send(R.SET_OWNER)
                self._owns = True
            self.negotiated = Negotiated(agreed, agreed_protocol)
            self.do(R.SET_FEATURES, int(agreed))
        except BackEndError as error:
            error.request = R.SET_FEATURES.name  # the first that tells how those without an answer were taken
            raise
        if self.has(_P.STATUS):
            self.set_status(_BEFORE_START)
        return self.negotiated

    def need(self, feature: ProtocolFeature | VirtioFeature) -> None:
        """Insist on what is to be negotiated.

        Raises:
            NotOffered: the back-end does not offer it, or was not asked.
        """
        self.need_offered(feature)
        super().need(feature)

    def need_offered(self, feature: ProtocolFeature | VirtioFeature) -> None:
        """Insist on what the back-end is to offer.

        Raises:
            NotOffered: it does not.
        """
        offered = self.offered.protocol_features if isinstance(feature, _P) else self.offered.features
        if feature not in offered:
            raise NotOffered(f"the back-end does not offer {feature.name}")

    def queue_count(self) -> int:
        """The queues that the back-end can have, as GET_QUEUE_NUM says; 1 without MQ, where it must not be asked.

        A network card's are counted in pairs ("Multiple queue support").
        """
        count: int = self.ask(R.GET_QUEUE_NUM) if self.has(_P.MQ) else 1
        return count

    def set_status(self, status: DeviceStatus) -> None:
        """Say what the driver has come to; 0 is a reset."""
        self.need(_P.STATUS)
        self.do(R.SET_STATUS, int(status))
        self._status = status

    def status(self) -> DeviceStatus:
        """The status, as the back-end has it."""
        self.need(_P.STATUS)
        return _S(self.ask(R.GET_STATUS))

    def driver_ok(self) -> None:
        """Say that the driver is ready, once and where STATUS is negotiated: DPDK starts no ring before."""
        if self.has(_P.STATUS) and _S.DRIVER_OK not in self._status:
            self.set_status(_BEFORE_START | _S.DRIVER_OK)

    def reset(self) -> None:
        """Have the device be as after power-on; queues are to be started again. Memory and negotiation stay.

        Raises:
            NotOffered: the back-end has no message for it.
        """
        if self.has(_P.RESET_DEVICE):
            self.do(R.RESET_DEVICE)
            self.do(R.SET_FEATURES, int(self.negotiated.features))  # rust-vmm's forgets what was agreed on
        else:
            self.set_status(_S(0))
        for queue in self.queues:
            queue.forget_base()
        if self.has(_P.STATUS):
            self.set_status(_BEFORE_START)

    # Memory

    def share_memory(self, *, as_table: bool = False) -> None:
        """Give the back-end the whole memory: region by region where it takes so many, or `as_table`, all at once."""
        if not as_table and self._has_slots(len(self.memory.regions)):
            for region in self.memory.regions:
                self.do(R.ADD_MEM_REG, region, [self.memory.fd])
        else:
            self.do(R.SET_MEM_TABLE, self.memory.regions, [self.memory.fd] * len(self.memory.regions))

    def _has_slots(self, count: int) -> bool:
        """Whether it takes so many regions, one by one; each that does takes one."""
        return self.has(_P.CONFIGURE_MEM_SLOTS) and (count == 1 or self.ask(R.GET_MAX_MEM_SLOTS) >= count)

    def take_memory(self) -> None:
        """Take all regions back; without a descriptor, as rust-vmm's refuses one."""
        self.need(_P.CONFIGURE_MEM_SLOTS)
        for region in self.memory.regions:
            self.do(R.REM_MEM_REG, region)

    def share_log(self, pages: int | None = None, *, offset: int = 0) -> DirtyPages:
        """Give the back-end a dirty log, of the whole memory unless told. Its answer is not looked at: they differ.

        `offset` is where it begins in its file, on a page.

        Raises:
            NotOffered: the back-end takes no log in shared memory.
        """
        self.need(_P.LOG_SHMFD)
        log = DirtyPages(self.memory.size // PAGE if pages is None else pages, offset=offset)
        self._logs.append(log)
        self.ask(R.SET_LOG_BASE, Log(log.size, offset), [log.fd])
        return log

    def log_writes(self, on: bool = True) -> None:
        """Have what is written be marked, rings that run included, or not any more: what a migration begins with."""
        if on:
            self.need_offered(_V.LOG_ALL)
        features = self.negotiated.features
        features = features | _V.LOG_ALL if on else features & ~_V.LOG_ALL
        self.do(R.SET_FEATURES, int(features))
        self.negotiated = replace(self.negotiated, features=features)
        for queue in self.queues:
            queue.logged = on
            self.do(R.SET_VRING_ADDR, queue.addresses)

    def ask_inflight(self, queues: int = 1, size: int = QUEUE_SIZE) -> InflightBuffer:
        """Have a region be made for the requests under way of so many queues; it is given by `set_inflight`.

        Raises:
            NotOffered: the back-end keeps no account of them.
            BackEndError: it gives none.
        """
        self.need(_P.INFLIGHT_SHMFD)
        described, fds = self.ask_for_fds(R.GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
        self._inflight += fds
        if not fds:
            raise BackEndError("GET_INFLIGHT_FD is answered without a descriptor")
        return InflightBuffer(described, fds[0])

    def set_inflight(self, region: InflightBuffer) -> None:
        """Have the back-end keep account there, and do what its predecessor did not finish."""
        self.do(R.SET_INFLIGHT_FD, region.described, [region.fd])

    # An IOMMU

    def translate(
        self, iova: int, user_address: int, size: int = PAGE, *, allowed: Permission = _READ_AND_WRITE
    ) -> None:
        """Say what an I/O address is, in this front-end's own addresses, and what is allowed there (IOTLB_MSG).

        Its acknowledgement is asked for, as QEMU does: DPDK gives none otherwise.

        Raises:
            NotOffered: no IOMMU was negotiated.
            Refused: the back-end does not take it.
        """
        self._say_iotlb(IotlbMessage(iova, size, user_address, allowed, IotlbType.UPDATE))

    def invalidate(self, iova: int, size: int = PAGE) -> None:
        """Take back what was said of I/O addresses; raises as `translate`."""
        self._say_iotlb(IotlbMessage(iova, size, 0, 0, IotlbType.INVALIDATE))

    def _say_iotlb(self, message: IotlbMessage) -> None:
        self.need(_V.ACCESS_PLATFORM)
        if error := self.ask(R.IOTLB_MSG, message, need_reply=self.has(_P.REPLY_ACK)):
            raise Refused(R.IOTLB_MSG.name, error)

    # Configuration space, and what the back-end says by itself

    def read_config(self, size: int) -> bytes:
        """The first `size` bytes of configuration space: QEMU's storage daemon begins there whatever is asked.

        Raises:
            NotOffered: the device has none, or the back-end leaves it to others.
            BackEndError: the back-end does not have so many.
        """
        self.need(_P.CONFIG)
        said = self.ask(R.GET_CONFIG, Config(0, size, 0, bytes(size)))
        if said is None or len(said.data) < size:
            raise BackEndError(f"the back-end does not give {size} bytes of configuration space: its log may say why")
        data: bytes = said.data
        return data

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to configuration space, as a driver does."""
        self.need(_P.CONFIG)
        self.do(R.SET_CONFIG, Config(offset, len(data), 0, data))

    def open_channel(self) -> Channel:
        """Give the back-end a channel of its own.

        Raises:
            NotOffered: it has nothing to say by itself.
        """
        self.need(_P.BACKEND_REQ)
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        made = Channel(timeout=self.timeout)
        try:
            self.do(R.SET_BACKEND_REQ_FD, None, [made.theirs])
        except BackEndError:
            made.close()
            raise
        made.given()
        self.channel = made
        return made

    def save_state(self) -> bytes:
        """The device's internal state; its queues are stopped. See `device_state.save`."""
        return device_state.save(self)

    def load_state(self, state: bytes) -> None:
        """Give the device an internal state; its queues are stopped. See `device_state.load`."""
        device_state.load(self, state)

    # Queues

    def queue(self, index: int = 0, size: int = QUEUE_SIZE, *, at: int | None = None) -> Queue:
        """A ring in the shared memory, packed where that was negotiated, of which the back-end is not told yet.

        `at` is its address; unless told, where there is room.
        """
        kind = PackedDriver if self.has(_V.RING_PACKED) else SplitDriver
        at = self.memory.allocate(kind.room(size), align=PAGE, at=at)
        driver = kind(self.memory, at, size, self.negotiated.features)
        made = Queue(self, self.memory, index, driver, self.driver_ok)
        self.queues.append(made)
        return made

    def start(self, *queues: Queue) -> None:
        """Have several queues served together, as drivers do it: see `Queue.start`."""
        for queue in queues:
            queue.set_up()
        for queue in queues:
            queue.enable(kick=False)
        self.driver_ok()
        for queue in queues:
            if queue.outstanding:
                queue.kick()
