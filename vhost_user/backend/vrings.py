"""All rings of a session, with what they share; and the one way in which any of them is stopped.

A ring that is stopped is drained: what waits on other threads is waited for, and handlers give every other request back
before anything else is done. Whoever needs rings to stand still calls `stop` or `stop_all`, and nothing else does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from userdev.errors import ProtocolError
from userdev.serving.background import Background
from vhost_user.backend.in_band import InBand
from vhost_user.backend.inflight import InflightRegion
from vhost_user.backend.lifecycle import RingEvent, RingState
from vhost_user.backend.misses import Ask, Misses
from vhost_user.backend.supplying import SupplyVring
from vhost_user.backend.vring import HandledVring, Vring
from vhost_user.backend.watcher import Watcher
from vhost_user.device import DeviceModel, Supply, Taken, VhostDevice
from vhost_user.memory import DirtyLog, Iotlb, MemoryTable
from vhost_user.rings import BrokenRing, Chain, PackedRing, Ring, RingAddresses, SplitRing
from vhost_user.wire import VirtioFeature
from vhost_user.wire.features import words_of
from vhost_user.wire.payloads import VRING_F_LOG, IotlbMessage, IotlbType, Region, VringAddress, XenRegion

_NO_FEATURES = VirtioFeature(0)
PACKED_BASE = 1 << 15 | 1 << 31
"""Where a packed ring begins: at its first descriptor, both wrap counters 1."""

_ON_RUNNING_RINGS = VirtioFeature.LOG_ALL | VirtioFeature.PROTOCOL_FEATURES
"""What may change while rings run: a migration begins, or is given up; or all rings are enabled ("Ring states")."""


class Vrings:
    """The rings, their memory, their dirty log and their in-flight region."""

    def __init__(self, model: DeviceModel, watcher: Watcher, ask: Ask, in_band: InBand) -> None:
        """`ask` asks the front-end for a translation."""
        self.table = MemoryTable()
        self.misses = Misses(ask)
        self._in_band = in_band
        self._by_guest_address = False
        self._iotlb = Iotlb(self.table)
        self.features = _NO_FEATURES
        self._queues = model.device.queues
        self._log: DirtyLog | None = None
        self._inflight: InflightRegion | None = None
        self.started: list[Vring] = []
        """Those that have a kick: only they may have requests, and a device may have many more."""
        self._background = Background[int](lambda: watcher.call_soon(self._reap), "request")
        self._rings = [self._vring(index, model.device, taker, watcher) for index, taker in enumerate(model.takers)]
        for vring in self._rings:
            vring.tell_others = self._one_began

    def __iter__(self) -> Iterator[Vring]:
        return iter(self._rings)

    def __getitem__(self, index: int) -> Vring:
        """The ring of this number.

        Raises:
            ProtocolError: there is none.
        """
        if index >= len(self._rings):
            raise ProtocolError(f"there is no queue {index}, of {len(self._rings)}")
        return self._rings[index]

    # Stopping

    def stop(self, vring: Vring) -> int:
        """Have a ring stopped and drained; where it would go on, as GET_VRING_BASE says it.

        What survives is what a front-end need not send again to start it: size, addresses, and whom it tells. Its
        kick descriptor does not: QEMU enables rings that it has not started, whose memory may be the guest's again.
        """
        was_started = vring.state.is_started
        vring.happen(RingEvent.STOP)
        vring.let_go()
        self.started = [other for other in self.started if other is not vring]
        if was_started and not self.started:
            self._iotlb.clear()  # QEMU takes nothing back of what a device has that it has stopped
        return self._base(vring)

    def stop_all(self) -> None:
        """Have all of them stopped and drained."""
        for vring in self._rings:
            self.stop(vring)

    def reset(self) -> None:
        """Have all of them stopped, drained and disabled; memory stays, and whom they tell."""
        self.stop_all()
        self.disable_all()
        for vring in self._rings:
            vring.addresses, vring.base = None, None

    def forget(self) -> None:
        """Have everything be as in the beginning."""
        self.stop_all()
        for vring in self._rings:
            vring.forget()
        self.table.clear()
        self._iotlb.clear()
        self.set_log(None)
        self.set_inflight(None)

    def close(self) -> None:
        """Let go of everything, threads too."""
        self.forget()
        self._background.close()

    def _drain(self) -> None:
        """Have every request given back that waits on another thread: a ring leaves, with all that it has under way."""
        if self._background.outstanding:
            self._background.wait()
            self._reap()

    def _one_began(self) -> None:
        for vring in self.started:
            vring.other_began()

    def _reap(self) -> None:
        self._background.reap()
        for vring in self.started:
            if vring.owes:
                vring.publish()

    # What they share

    def set_features(self, features: VirtioFeature) -> None:
        """Have these be agreed on.

        Raises:
            ProtocolError: rings that run cannot become others.
        """
        changed = (features ^ self.features) & ~_ON_RUNNING_RINGS
        if changed and any(vring.state.is_started for vring in self._rings):
            raise ProtocolError(f"features change while rings run: {words_of(changed)}")
        self.features = features
        self._share_log()

    def address_by_guest(self, by_guest: bool) -> None:
        """GPA_ADDRESSES: what a front-end says of rings, and of translations, is where the guest has them."""
        self._by_guest_address = self._iotlb.by_guest_address = by_guest

    def set_memory(self, regions: Sequence[Region | XenRegion], fds: Sequence[int]) -> None:
        """SET_MEM_TABLE: have these regions and no others, also where rings run.

        Raises:
            ProtocolError: one is wrong; then nothing has changed.
        """
        self.table.set(regions, fds)
        self._forget_translations()

    def remove_memory(self, region: Region | XenRegion) -> None:
        """REM_MEM_REG.

        Raises:
            ProtocolError: ENOENT, there is none like it.
        """
        self.table.remove(region)
        self._forget_translations()

    def translate(self, message: IotlbMessage) -> None:
        """IOTLB_MSG: a translation is told or taken back. Nothing is under way that could use one that is taken back.

        Raises:
            ProtocolError: it is about memory that is in no region, or is no message for a back-end.
        """
        if self._iotlb.would_forget(message):
            self._recall()
        self._iotlb.handle(message)
        if message.type == IotlbType.UPDATE:
            self.misses.updated(message)

    def _forget_translations(self) -> None:
        if len(self._iotlb):
            self._recall()
            self._iotlb.clear()

    def _recall(self) -> None:
        for vring in self.started:
            vring.recall()

    def set_log(self, log: DirtyLog | None) -> None:
        """Mark in this log from now on, also what runs."""
        before, self._log = self._log, log
        self._share_log()
        if before is not None:
            before.close()

    def set_inflight(self, region: InflightRegion | None) -> None:
        """Have rings that start from now on keep account in there."""
        before, self._inflight = self._inflight, region
        if before is not None:
            before.close()

    @property
    def is_packed(self) -> bool:
        """Whether they are packed rings."""
        return VirtioFeature.RING_PACKED in self.features

    # One of them

    def set_size(self, vring: Vring, size: int) -> None:
        """SET_VRING_NUM.

        Raises:
            ProtocolError: the device has no queue of that size, or it runs.
        """
        _check_stopped(vring)
        if not 0 < size <= self._queues.size:
            raise ProtocolError(f"{size} descriptors, and the device's queues have 1 to {self._queues.size}")
        vring.size = size

    def set_base(self, vring: Vring, base: int) -> None:
        """SET_VRING_BASE.

        Raises:
            ProtocolError: it runs.
        """
        _check_stopped(vring)
        vring.base = base

    def set_addresses(self, vring: Vring, said: VringAddress) -> None:
        """SET_VRING_ADDR. A ring that runs may be told to log, or not to.

        Raises:
            ProtocolError: another change, while it runs.
        """
        addresses = RingAddresses(said.descriptor, said.used, said.available)
        if addresses != vring.addresses:
            _check_stopped(vring)
        vring.addresses = addresses
        vring.log_address = said.log if said.flags & VRING_F_LOG else None
        if vring.ring is not None:
            vring.ring.log_used(vring.log_address)

    def set_kick(self, vring: Vring, fd: int | None) -> None:
        """SET_VRING_KICK: it starts. One that runs looks at once: it may have been told by the descriptor before.

        Raises:
            OSError: the descriptor cannot be waited for.
        """
        vring.set_kick(fd)
        self._start(vring)
        vring.kicked()

    def kick(self, vring: Vring) -> None:
        """VRING_KICK: it starts if it is stopped, and does what is there."""
        self._start(vring)
        vring.kicked()
        if vring.pending:
            vring.serve()

    def _start(self, vring: Vring) -> None:
        if vring not in self.started:
            self.started = [*self.started, vring]
        if not vring.is_told and VirtioFeature.PROTOCOL_FEATURES not in self.features:
            vring.happen(RingEvent.ENABLE)
        vring.happen(RingEvent.START)

    def set_call(self, vring: Vring, fd: int | None) -> None:
        """SET_VRING_CALL. A ring that runs tells it at once: what it owed may have gone to another."""
        vring.call.set(fd)
        if vring.state is RingState.RUNNING:
            vring.call.signal()

    def set_err(self, vring: Vring, fd: int | None) -> None:
        """SET_VRING_ERR. A ring that is broken tells it at once."""
        vring.err.set(fd)
        if vring.state.is_broken:
            vring.err.signal()

    def tell_in_band(self) -> None:
        """There is a channel to tell of rings on: what was owed may not have been told."""
        for vring in self.started:
            if vring.call.is_in_band and vring.state is RingState.RUNNING:
                vring.call.signal()
            if vring.err.is_in_band and vring.state.is_broken:
                vring.err.signal()

    def enable(self, vring: Vring, *, on: bool) -> None:
        """SET_VRING_ENABLE."""
        vring.is_told = True
        vring.happen(RingEvent.ENABLE if on else RingEvent.DISABLE)

    def enable_all(self) -> None:
        """SET_FEATURES without PROTOCOL_FEATURES: "the back-end must enable all rings immediately"."""
        for vring in self._rings:
            vring.happen(RingEvent.ENABLE)

    def disable_all(self) -> None:
        """Have none of them run until it is enabled; or, where that is not said, started."""
        for vring in self._rings:
            vring.happen(RingEvent.DISABLE)
            vring.is_told = False

    def unblock(self) -> None:
        """Free whoever waits for the front-end to read what it was told, from any thread."""
        for vring in self._rings:
            vring.call.unblock()
            vring.err.unblock()

    def _vring(
        self, index: int, device: VhostDevice, taker: Callable[[Chain], Taken] | Supply, watcher: Watcher
    ) -> Vring:
        if isinstance(taker, Supply):
            return SupplyVring(index, device, taker, watcher, self._make, self.misses, self._in_band)
        shared = (self.misses, self._in_band, self._background, self._drain)
        return HandledVring(index, device, taker, watcher, self._make, *shared)

    def _make(self, vring: Vring) -> Ring:
        """The ring that a front-end has described.

        Raises:
            BrokenRing: it was started too early, or cannot be as the front-end says.
            IotlbMiss: where it is has to be asked for first.
        """
        if vring.addresses is None:
            raise BrokenRing("it was started before its addresses were known")
        described = (vring.size, vring.addresses, self.table, self.features)
        iotlb = self._iotlb if VirtioFeature.ACCESS_PLATFORM in self.features else None
        by_guest = self._by_guest_address
        ring: Ring
        try:
            if self.is_packed:
                packed = self._inflight.packed(vring.index) if self._inflight else None
                ring = PackedRing(
                    *described, base=self._base(vring), inflight=packed, iotlb=iotlb, by_guest_address=by_guest
                )
            else:
                split = self._inflight.split(vring.index) if self._inflight else None
                ring = SplitRing(
                    *described, base=self._base(vring), inflight=split, iotlb=iotlb, by_guest_address=by_guest
                )
        except BrokenRing:
            raise
        except ProtocolError as error:
            raise BrokenRing(str(error)) from None
        ring.log_used(vring.log_address)
        ring.log = self._log_now
        return ring

    def _base(self, vring: Vring) -> int:
        """Where a ring goes on, or begins where nobody has said."""
        return vring.base if vring.base is not None else PACKED_BASE * self.is_packed

    @property
    def _log_now(self) -> DirtyLog | None:
        return self._log if VirtioFeature.LOG_ALL in self.features else None

    def _share_log(self) -> None:
        for vring in self._rings:
            if vring.ring is not None:
                vring.ring.log = self._log_now


def _check_stopped(vring: Vring) -> None:
    if vring.state.is_started:
        raise ProtocolError(f"{vring} is {vring.state.value}: this is said of one that is stopped")
