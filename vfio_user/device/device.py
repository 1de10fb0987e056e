"""A PCI device: what an author subclasses, and what a session serves.

    class Doorbell(PciDevice):
        ids = PciIds(vendor=0x1AF4, device=0x10F0)
        interrupts = MsiX(vectors=1)
        total: int = state(0)

        @register(bar=0, offset=0x0, width=4)
        def ring(self, value: int) -> None:
            self.total += value
            self.interrupts.trigger(0)

        @ring.reader
        def _(self) -> int:
            return self.total

All handlers and hooks run one at a time, under the session's lock. A device's own threads use `call_soon` to get there;
only `interrupts` and mapped `dma` may be used from them directly.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from typing import Any, ClassVar

from userdev.declare.construction import followed_by
from userdev.declare.declared import Source, authors_frame, source_of
from userdev.declare.digest import digest_of
from userdev.declare.state import Snapshot
from userdev.errors import AUTHORS_FAILURES, DeclarationError, ProtocolError
from vfio_user.device.attributes import check_attributes
from vfio_user.device.class_check import check_class
from vfio_user.device.config_region import ConfigRegion, GuestReset, watch_resets
from vfio_user.device.construction import of_declarations
from vfio_user.device.dma import Dma
from vfio_user.device.hooks import Hooks
from vfio_user.device.interrupts import Interrupts
from vfio_user.device.ioeventfds import IoEventFds
from vfio_user.device.irq_wiring import IrqInfo
from vfio_user.device.layout import ExtraRegion, Fits, Layout, Readers, Writers, place_msix, used_bars
from vfio_user.device.lifecycle import ResetKind
from vfio_user.device.link import Link, NoClient
from vfio_user.device.mechanism import NO_INTERRUPTS, IntX, Mechanism, Msi, MsiX
from vfio_user.device.plans import Planned, Plans
from vfio_user.device.region import Access, RegionInfo
from vfio_user.device.saved import Saved, check_saved, checked_extra, memory_digest
from vfio_user.device.standstill import Hold, Standstill
from vfio_user.migration import Memory, Migration, Storage
from vfio_user.pci import (
    COMMAND,
    COMMAND_BUS_MASTER,
    Bar,
    Capability,
    ConfigSpace,
    MsiCapability,
    PciIds,
    Placed,
    build_config_space,
    place_capabilities,
)
from vfio_user.wire.constants import IrqIndex, RegionFlags


class PciDevice(Hooks):
    """Base of all devices. A subclass declares; an instance is one device, which outlives its clients.

    Declared as class attributes, or given to `__init__` by a subclass that decides per device: `ids`, `bars`,
    `interrupts`, `capabilities` (MSI and MSI-X come from `interrupts`), `rom`. Registers, memory and state are
    declared with `register`, `stored_register`, `memory` and `state`.
    """

    ids: PciIds
    bars: Sequence[Bar] = ()
    interrupts: Mechanism = NO_INTERRUPTS
    capabilities: Sequence[Capability | Placed] = ()
    extra_regions: Sequence[ExtraRegion] = ()
    rom: bytes = b""
    state_version = 1
    """Goes up when declared state changes so that older saved state no longer fits."""

    error_interrupt = True
    """There is an interrupt for unrecoverable errors, `interrupts.error`."""
    release_interrupt = True
    """There is one that asks for the device back, `interrupts.request_release`."""
    dma_by_message = False
    """Client memory is reached by messages alone, though the client shares it."""

    migratable = True
    """All that a guest can tell it by is in declared state, so that it can be moved."""

    config: ConfigSpace
    readers: Readers
    """{(region, offset, width): read} for accesses that are exactly a register. Values are not yet cut to width."""
    writers: Writers
    fits: Fits
    """For each of the readers: what cuts its value, which `Fit` describes."""
    regions: list[RegionInfo]
    """What GET_REGION_INFO tells: BARs 0 to 5, ROM 6, configuration space 7, VGA 8, device-specific from 9."""
    irqs: list[IrqInfo]
    """What GET_IRQ_INFO tells: INTx, MSI, MSI-X, ERR, REQ."""
    dma: Dma
    link: Link
    migration: Migration | None
    _source: ClassVar[Source]
    _snapshot: Snapshot
    _layout: Layout
    _io_fds: IoEventFds
    _standstill: Standstill
    _absence: Hold | None
    """From the end of a client to the next one."""
    _stopped: Hold | None
    """While migration has the device stopped."""
    _plans: Plans

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse what is wrong with the class; see `vfio_user.device.class_check`."""
        super().__init_subclass__(**arguments)
        check_class(cls, PciDevice)
        cls._source = source_of(authors_frame())
        if (constructor := vars(cls).get("__init__")) is not None:
            cls.__init__ = followed_by(constructor, PciDevice._constructed)  # type: ignore[method-assign]

    @of_declarations
    def __init__(
        self,
        *,
        ids: PciIds | None = None,
        bars: Sequence[Bar] | None = None,
        interrupts: Mechanism | None = None,
        capabilities: Sequence[Capability | Placed] | None = None,
        rom: bytes | None = None,
    ) -> None:
        """Build the device as it is after power-on.

        Raises:
            ValueError: declarations that contradict each other or PCI.
        """
        given = {"ids": ids, "bars": bars, "interrupts": interrupts, "capabilities": capabilities, "rom": rom}
        check_attributes(self, given)
        mechanism = interrupts if interrupts is not None else type(self).interrupts
        all_capabilities = list(self.capabilities if capabilities is None else capabilities)
        bars = list(self.bars if bars is None else bars)
        self._snapshot = Snapshot(self)
        self._snapshot.power_on()

        msix, msi, intx = mechanism.part(MsiX), mechanism.part(Msi), mechanism.part(IntX)
        reserved: list[tuple[int, int, int]] = []
        if msi:
            all_capabilities.append(Placed(MsiCapability(msi.vectors, msi.address64, msi.maskable), msi.capability))
        if msix:
            table, bars = place_msix(msix, bars, used_bars(type(self)))
            all_capabilities.append(Placed(table, msix.capability))
            reserved = [
                (table.table_bar, table.table_offset, msix.table_size),
                (table.pba_bar, table.pba_offset, msix.pba_size),
            ]
        placed = place_capabilities(all_capabilities)
        self._layout = Layout(self, bars, self.extra_regions, reserved)
        self.config, offsets = build_config_space(
            self.ids if ids is None else ids,
            bars=self._layout.bars,
            rom_size=self._layout.add_rom(self.rom if rom is None else rom),
            interrupt_pin=intx.pin if intx else 0,
            capabilities=placed,
        )
        there = {IrqIndex.ERR: self.error_interrupt, IrqIndex.REQ: self.release_interrupt}
        found = Interrupts(
            mechanism,
            self.config,
            offsets,
            absent=[index for index, is_there in there.items() if not is_there],
            on_mask=self._hook("on_irq_mask"),
        )
        self.__dict__["interrupts"] = found
        if reserved:
            self._layout.answer(*reserved[0], found.table)
            self._layout.answer(*reserved[1], found.pba)
        self._layout.add_config(len(self.config), ConfigRegion(self.config, found.refresh, self, placed))
        watch_resets(self.config, offsets, placed, GuestReset(self.hold_still, self.reset).ask)

        self.regions = self._layout.infos
        self.irqs = found.infos
        self.readers = self._layout.readers
        self.writers = self._layout.writers
        self.fits = self._layout.fits
        self.dma = Dma(self._hook("on_dma_map"), self._hook("on_dma_unmap"))
        self.dma.by_message = self.dma_by_message
        self.link = NoClient()
        self._io_fds = IoEventFds(lambda work: self._plans.plan(work).due())
        hooks = (lambda: self.on_quiesce(), lambda: self.on_resume(), lambda work: self.link.call_soon(work))
        self._standstill = Standstill(type(self).__name__, *hooks)
        self._absence = None
        self._stopped = None
        self._plans = Plans()
        self.migration = Migration(self) if self.migratable else None

    # What an author uses.

    @property
    def bus_master(self) -> bool:
        """The guest allows DMA. Not enforced: a device that wants to be exact asks before it starts."""
        return bool(self.config.get(COMMAND, 2) & COMMAND_BUS_MASTER)

    def defer(self, work: Callable[[], None]) -> None:
        """Run `work` after the replies of the current batch are sent: where a handler may use message DMA freely.

        As with `call_soon` and `call_later`, work of a device that migration has stopped waits until it runs again, and
        a reset drops what it finds. What is under way and must survive migration belongs into `state`, and is deferred
        again by `on_load`.
        """
        self.link.defer(self._plans.plan(work).due)

    def call_soon(self, work: Callable[[], None]) -> None:
        """From any thread: run `work` where handlers run, in the order of the calls. Held and dropped as by `defer`."""
        self.link.call_soon(self._plans.plan(work).due)

    def call_later(self, seconds: float, work: Callable[[], None]) -> Planned:
        """Run `work` once where handlers run, in so many seconds, rounded up to milliseconds; from any thread.

        Held and dropped as by `defer`, and lost with the client: `attach` is the place to begin again. What is returned
        has `cancel`.

        Raises:
            ValueError: a time that never comes.
        """
        if not isfinite(seconds):
            raise ValueError(f"call_later: in {seconds} seconds")
        planned = self._plans.plan(work)
        planned.on_cancel(self.link.call_later(seconds, planned.due))
        return planned

    def let_map(self, bar: int, offset: int, size: int, fd: int) -> None:
        """Let the client map pages of a BAR from a file of the author's own, which has as many bytes as the BAR.

        What a client that maps them writes is in the file, and nobody is told; registers that are declared there hear
        of messages only. In `__init__`, after that of this class. `fd` stays the caller's.

        Raises:
            ValueError: no whole pages, or a BAR that has mappable `memory` already, which is in a file of its own.
        """
        info = self.regions[bar] if bar in range(len(self.regions)) else RegionInfo(bar)
        if size % 4096 or offset % 4096 or offset + size > info.size:
            raise ValueError(f"a client maps whole pages of BAR {bar}, not {size:#x} bytes at {offset:#x}")
        if info.fd not in (None, fd):
            raise ValueError(f"BAR {bar} is in another file")
        info.fd = fd
        info.flags |= RegionFlags.MMAP
        info.sparse = (*info.sparse, (offset, size))

    def add_ioeventfd(
        self, bar: int, offset: int, width: int, *, datamatch: int | None = None, shadow: bool = False
    ) -> int:
        """Let the client signal an eventfd instead of sending writes of a declared register (GET_REGION_IO_FDS).

        Each time it is signalled the register's writer gets `datamatch`, or 0; with `shadow` the last value that was
        written, which the client's hypervisor puts into memory beside. Returns the eventfd.

        Raises:
            ValueError: there is no such register.
        """
        write = self.writers.get((bar, offset, width))
        if write is None:
            raise ValueError(f"there is no register of {width} bytes at {offset:#x} of BAR {bar}")
        add = self._io_fds.add_shadow if shadow else self._io_fds.add
        found = add(offset, width, write, datamatch)
        self.regions[bar].io_fds.append(found)
        assert found.fd is not None
        self._io_fds.watch(self.link, found.fd)
        return found.fd

    # What the session calls.

    def attach(self, link: Link) -> None:
        """A client came. Raises what `on_resume` and `on_attach` do."""
        self.link = self.dma.link = self.interrupts.link = link
        self._io_fds.watch(link)
        absence, self._absence = self._absence, None
        if absence is not None:
            absence.release()
        self.on_attach()

    def client_gone(self) -> Hold:
        """The client is gone: stand still until the next one comes. `detach` follows when that is so, or late."""
        if self._absence is None:
            self._absence = self.hold_still()
        return self._absence

    def give_up_waiting(self) -> None:
        """Whoever waits for the device to stand still waits no longer, as its client has gone."""
        self._standstill.give_up()

    def detach(self) -> None:
        """The client's memory and descriptors are released; the device keeps its state.

        All of it happens, whatever the author's hooks raise; the last that was raised is raised at the end.
        """
        absence = self.client_gone()
        with ExitStack() as at_the_end:  # runs from the last to the first
            at_the_end.callback(self._unlink)
            at_the_end.callback(self.interrupts.release)
            at_the_end.callback(self.dma.stop_log)
            at_the_end.callback(self.dma.unmap_all)
            at_the_end.callback(self.on_reset, ResetKind.LOST_CONNECTION)
            self._standstill.give_up()
        absence.say_refusal("the client's end")

    def hold_still(self) -> Hold:
        """Before memory, state or the migration state changes: have the device stand still until this is released.

        What `on_quiesce` raises is the hold's refusal.
        """
        return self._standstill.hold()

    def stop(self) -> None:
        """Migration: stand still until `start`; what is planned waits.

        Raises:
            ProtocolError: the device refuses, with its errno, or does not stand still yet (EBUSY).
        """
        if self._stopped is None:
            hold = self.hold_still()
            try:
                hold.check()
            except AUTHORS_FAILURES:
                hold.release()
                raise
            self._stopped = hold
            self.interrupts.trigger_coalesced()
            self._plans.stop()

    def start(self) -> None:
        """Migration: go on, and do what came due meanwhile."""
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.release()
        for planned in self._plans.go_on():
            self.link.defer(planned.due)

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read `count` bytes of a region; an access of any shape (see `vfio_user.device.region`).

        Raises:
            ProtocolError: EINVAL, no such region or past its end; what a handler raises.
        """
        access = self._access(region, offset, count)
        read = self.readers.get((region, offset, count))
        if read is not None:
            mask = (1 << 8 * count) - 1  # a narrow read of a register that is wider
            return (self.fits[region, offset, count](read()) & mask).to_bytes(count, "little")
        return access.read(offset, count)

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write bytes of a region; raises as `region_read`, and EINVAL for a region that cannot be written."""
        access = self._access(region, offset, len(data))
        if not self.regions[region].flags & RegionFlags.WRITE:
            raise ProtocolError(f"region {region} cannot be written", errno.EINVAL)
        write = self.writers.get((region, offset, len(data)))
        if write is not None:
            write(int.from_bytes(data, "little"))
        else:
            access.write(offset, bytes(data))

    def client_reset(self) -> None:
        """DEVICE_RESET. The session has the device quiesced."""
        self.reset(ResetKind.DEVICE)

    def reset(self, kind: ResetKind) -> None:
        """Reset the function: declared state, configuration space, pending interrupts; then `on_reset`.

        Client memory and eventfds stay: they are the client's. LOST_CONNECTION changes nothing by itself.
        """
        if kind is not ResetKind.LOST_CONNECTION:
            self._plans.drop()
            self._snapshot.reset()
            self._layout.memory.reset()
            self.config.reset()
            self.interrupts.reset()
        self.on_reset(kind)

    def identity(self) -> dict[str, Any]:
        """What the device is: state is only loaded where all of it is equal. A subclass adds its own options."""
        return {
            "class": type(self).__name__,
            "ids": self.config.after_reset(0, 4) + self.config.after_reset(0x2C, 4),
            "config": self.config.after_reset(0, len(self.config)),
            "regions": [region.size for region in self.regions],
            "interrupts": [irq.count for irq in self.irqs],
        }

    def memories(self) -> list[Memory]:
        """Declared memory, in place."""
        return list(self._layout.memory.all)

    def storages(self) -> Sequence[Storage]:
        """What a device keeps outside of memory that is to migrate with it, such as an image; see `Storage`. None."""
        return ()

    def save_state(self) -> Saved:
        """Everything but memory that a guest could tell this device by; see `vfio_user.device.saved`."""
        self.on_save()
        return {
            "version": self.state_version,
            "values": self._snapshot.save(),
            "config": self.config.save(),
            "interrupts": self.interrupts.save(),
            "extra": checked_extra(self.save_extra()),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raises ProtocolError (EINVAL) with the reason if `load_state` would not take it. Changes nothing."""
        try:
            check_saved(state, self.state_version, len(self.config))
            self._snapshot.check(state["values"])
            self.interrupts.check(state["interrupts"])
            self.on_check(state["values"])
        except (TypeError, KeyError, AttributeError) as error:
            raise ProtocolError(f"saved state is misshapen: {error}", errno.EINVAL) from error

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Become what was saved, apart from memory, which is loaded in place before; then `on_load`.

        Raises:
            ProtocolError: EINVAL, as `check_state`; nothing has changed then.
        """
        self.check_state(state)
        self._plans.drop()
        self._snapshot.load(state["values"])
        self.config.load(state["config"])
        self.interrupts.load(state["interrupts"])
        self.load_extra(state["extra"])
        self.on_load()

    def check_savable(self) -> None:
        """Raises ProtocolError (EIO) where a declared value or memory could not be loaded again, by its name."""
        self.on_save()
        self._snapshot.check_savable()
        self._layout.memory.check(self)
        checked_extra(self.save_extra())

    def digests(self) -> dict[str, str]:
        """A fingerprint of each part of the state: configuration space, interrupts, each declared value and memory."""
        saved = self.save_state()
        parts = {"configuration space": saved["config"], "interrupts": saved["interrupts"], **saved["values"]}
        if saved["extra"]:
            parts["save_extra()"] = saved["extra"]
        found = {name: digest_of(part) for name, part in parts.items()}
        return found | {memory.name: memory_digest(memory) for memory in self._layout.memory.all}

    def digest(self) -> str:
        """A fingerprint of state and memory: the same on two devices exactly when they are in the same state."""
        return digest_of(self.digests())

    def close(self) -> None:
        """Give back the device: what the author has, by `on_close`, and its own descriptors. Detach first.

        All of it happens, whatever `on_close` raises, which is raised at the end.
        """
        with ExitStack() as at_the_end:  # runs from the last to the first
            at_the_end.callback(self._layout.close)
            at_the_end.callback(self._io_fds.close)
            at_the_end.callback(self.on_close)
            if self.migration is not None:
                at_the_end.callback(self.migration.close)

    # Within.

    def _constructed(self) -> None:
        """The author's `__init__` is done: the state that it has set is what resets bring back."""
        if "_snapshot" not in vars(self):
            what = f"{type(self).__qualname__}.__init__ does not call super().__init__() ({self._source})"
            raise DeclarationError(what, hint="it makes the device")
        self._snapshot.take_as_after_reset()

    def _unlink(self) -> None:
        self._io_fds.unwatch(self.link)
        self.link = self.dma.link = NoClient()

    def _access(self, region: int, offset: int, count: int) -> Access:
        access = self._layout.accesses[region] if 0 <= region < len(self.regions) else None
        if access is None:
            raise ProtocolError(f"there is no region {region}", errno.EINVAL)
        if offset + count > self.regions[region].size:
            raise ProtocolError(
                f"{count} bytes at {offset:#x} of region {region}, which has {self.regions[region].size:#x}",
                errno.EINVAL,
            )
        return access

    def _hook(self, name: str) -> Callable[..., None] | None:
        """A hook that the class overrides; nothing is called where it does not."""
        if getattr(type(self), name) is getattr(PciDevice, name):
            return None
        hook: Callable[..., None] = getattr(self, name)
        return hook
