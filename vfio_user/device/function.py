"""One device as a client's session and migration see it: built from what its author declares, once.

The author's class is its own namespace, in which a register may have any name that the author's half does not use
itself; nothing here is looked up in it but hooks. All of it is called where handlers run, one call at a time.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from userdev.declare.digest import digest_of
from userdev.declare.returned import WrongReturn, check_by
from userdev.declare.state import Snapshot
from userdev.errors import AUTHORS_FAILURES, ProtocolError
from vfio_user.device.config_region import ConfigRegion, GuestReset, watch_resets
from vfio_user.device.declarations import Declarations
from vfio_user.device.dma import Dma
from vfio_user.device.hooks import Hooks
from vfio_user.device.interrupts import Interrupts
from vfio_user.device.ioeventfds import IoEventFds
from vfio_user.device.irq_wiring import IrqInfo
from vfio_user.device.layout import RegionLayout, place_msix, used_bars
from vfio_user.device.lifecycle import ResetKind, answer_of
from vfio_user.device.link import Link, NoClient
from vfio_user.device.mechanism import IntX, Mechanism, Msi, MsiX
from vfio_user.device.plans import Planned, Plans
from vfio_user.device.region import Access, RegionInfo
from vfio_user.device.saved import Saved, check_saved, extra_of
from vfio_user.device.standstill import Hold, Standstill
from vfio_user.migration import Memory, Migration, Storage
from vfio_user.migration.memory_digest import MemoryDigest
from vfio_user.pci import Bar, Capability, MsiCapability, PciIds, Placed, build_config_space, place_capabilities
from vfio_user.wire.constants import IrqIndex, MigrationState, RegionFlags


@dataclass(frozen=True)
class Hardware:
    """The parts of one device: its class's attributes, or what its constructor was given instead."""

    ids: PciIds
    bars: Sequence[Bar]
    interrupts: Mechanism
    capabilities: Sequence[Capability | Placed]
    rom: bytes


class _Placement(NamedTuple):
    """Where everything of a device's hardware is."""

    bars: list[Bar]
    capabilities: list[Placed]
    msi: MsiCapability | None
    reserved: list[tuple[int, int, int]]
    """(BAR, offset, size) of what is not the author's: of MSI-X the table and the pending bits."""


def _placement(hardware: Hardware, author: type) -> _Placement:
    mechanism, bars, capabilities = hardware.interrupts, list(hardware.bars), list(hardware.capabilities)
    msix, msi = mechanism.part(MsiX), mechanism.part(Msi)
    reserved: list[tuple[int, int, int]] = []
    msi_capability = MsiCapability(msi.vectors, msi.address64, msi.maskable) if msi else None
    if msi and msi_capability:
        capabilities.append(Placed(msi_capability, msi.capability))
    if msix:
        table, bars = place_msix(msix, bars, used_bars(author))
        capabilities.append(Placed(table, msix.capability))
        reserved = [
            (table.table_bar, table.table_offset, msix.table_size),
            (table.pba_bar, table.pba_offset, msix.pba_size),
        ]
    return _Placement(bars, place_capabilities(capabilities), msi_capability, reserved)


class Function:
    """A PCI function: its regions, interrupts, client memory, state and life. It outlives its clients."""

    def __init__(self, author: Declarations, hardware: Hardware) -> None:
        """Build it as it is after power-on.

        Raises:
            ValueError: declarations that contradict each other or PCI.
        """
        self._author = author
        self.name = type(author).__name__
        self.made_of: Mapping[str, object] = {}
        """What was read of its author's attributes when it was made, by name."""
        self.link: Link = NoClient()
        """The session of the client that is there."""
        self._snapshot = Snapshot(author)
        self._snapshot.power_on()
        self._absence: Hold | None = None  # from the end of a client to the next one
        self._stopped: Hold | None = None  # while migration has the device stopped
        self._plans = Plans(lambda: self.may_run)
        self._asked: deque[Callable[[], None]] = deque()  # by the host, and not done yet

        placement = _placement(hardware, type(author))
        intx, msix = hardware.interrupts.part(IntX), hardware.interrupts.part(MsiX)
        self._layout = RegionLayout(author, placement.bars, author.extra_regions, placement.reserved)
        self.config, offsets = build_config_space(
            hardware.ids,
            bars=self._layout.bars,
            rom_size=self._layout.add_rom(hardware.rom),
            interrupt_pin=intx.pin if intx else 0,
            capabilities=placement.capabilities,
        )
        there = {IrqIndex.ERR: author.error_interrupt, IrqIndex.REQ: author.release_interrupt}
        self.interrupts = Interrupts(
            self.config,
            offsets,
            intx=intx is not None,
            msi=placement.msi,
            msix_vectors=msix.vectors if msix else 0,
            absent=[index for index, is_there in there.items() if not is_there],
            on_mask=self._hook("on_irq_mask"),
        )
        if placement.reserved:
            self._layout.answer(*placement.reserved[0], self.interrupts.table)
            self._layout.answer(*placement.reserved[1], self.interrupts.pba)
        config_region = ConfigRegion(self.config, self.interrupts.refresh, author, placement.capabilities)
        self._layout.add_config(len(self.config), config_region)
        watch_resets(self.config, offsets, placement.capabilities, GuestReset(self.hold_still, self.reset).ask)

        self.regions: list[RegionInfo] = self._layout.infos
        """What GET_REGION_INFO tells: BARs 0 to 5, ROM 6, configuration space 7, VGA 8, device-specific from 9."""
        self.irqs: list[IrqInfo] = self.interrupts.infos
        """What GET_IRQ_INFO tells: INTx, MSI, MSI-X, ERR, REQ."""
        self.readers = self._layout.readers
        """{(region, offset, width): read} for accesses that are exactly a register. Values are not yet cut to width."""
        self.writers = self._layout.writers
        self.fits = self._layout.fits
        """For each of the readers: what cuts its value, which `Fit` describes."""
        self.dma = Dma(self._hook("on_dma_map"), self._hook("on_dma_unmap"))
        self.dma.by_message = author.dma_by_message
        self._io_fds = IoEventFds(lambda work: self._plans.plan(work).due())
        self._standstill = Standstill(
            self.name,
            lambda: answer_of(author.on_quiesce),
            lambda: author.on_resume(),
            lambda work: self.link.call_soon(work),
        )
        self.migration = Migration(self) if author.migratable else None

    def constructed(self) -> None:
        """The author's `__init__` is done: resets bring back what it has set, state and configuration space."""
        self._snapshot.take_as_after_reset()
        self.config.take_as_after_reset()

    # Clients

    def attach(self, link: Link) -> None:
        """A client came. Raises what `on_resume` and `on_attach` do."""
        if isinstance(self.link, NoClient):
            self.link.make_way(link)
        self.link = self.dma.link = self.interrupts.link = link
        self._io_fds.watch(link)
        absence, self._absence = self._absence, None
        if absence is not None:
            absence.release()
        self._author.on_attach()

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
            at_the_end.callback(lambda: self.link.call_soon(self._do_asked))
            at_the_end.callback(self._unlink)
            at_the_end.callback(self.interrupts.release)
            at_the_end.callback(self.dma.stop_log)
            at_the_end.callback(self.dma.unmap_all)
            at_the_end.callback(self._author.on_reset, ResetKind.LOST_CONNECTION)
            self._standstill.give_up()
        absence.say_refusal("the client's end")

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` of the host's where handlers run; here and now where there is no client. From any thread.

        One that goes before its turn has come does not take it along, as it does what the device itself has posted.
        """
        self._asked.append(work)
        self.link.call_soon(self._do_asked)

    def hold_still(self) -> Hold:
        """Before memory, state or the migration state changes: have the device stand still until this is released.

        What `on_quiesce` raises is the hold's refusal.
        """
        return self._standstill.hold()

    # Work

    @property
    def may_run(self) -> bool:
        """Migration has not stopped the device: what is planned is done when it is due."""
        return self._stopped is None

    def plan(self, work: Callable[[], None]) -> Planned:
        """Work that is done once, when `Planned.due` is called and the device may run, unless a reset comes first."""
        return self._plans.plan(work)

    def stop(self) -> None:
        """Migration: stand still until `start`; what is planned waits.

        Raises:
            ProtocolError: the device refuses, with its errno, or does not stand still yet (EBUSY).
        """
        if self._stopped is not None:
            return
        hold = self.hold_still()
        try:
            hold.check()
            self.interrupts.trigger_coalesced()
        except AUTHORS_FAILURES:
            hold.release()
            raise
        self._stopped = hold

    def start(self) -> None:
        """Migration: go on, and do what came due meanwhile.

        Raises what `on_resume` does; the device goes on then too.
        """
        stopped = self._stopped
        try:
            if stopped is not None:
                stopped.release()
        finally:
            self._stopped = None
            for planned in self._plans.take_held():
                self.link.defer(planned.due)

    def on_migration(self, state: MigrationState) -> None:
        """Tell the author of the migration state that comes."""
        self._author.on_migration(state)

    # Regions

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

    def let_map(self, bar: int, offset: int, size: int, fd: int) -> None:
        """Do `PciDevice.let_map`."""
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
        """Do `PciDevice.add_ioeventfd`."""
        write = self.writers.get((bar, offset, width))
        if write is None:
            raise ValueError(f"there is no register of {width} bytes at {offset:#x} of BAR {bar}")
        add = self._io_fds.add_shadow if shadow else self._io_fds.add
        found = add(offset, width, write, datamatch)
        self.regions[bar].io_fds.append(found)
        assert found.fd is not None
        self._io_fds.watch(self.link, found.fd)
        return found.fd

    # Reset

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
        self._author.on_reset(kind)

    # State

    def identity(self) -> dict[str, Any]:
        """The device's kind and configuration: state is only loaded where all of it is equal.

        Raises:
            WrongReturn: the author's part of it is no mapping.
        """
        own = self._author.identity()
        if not isinstance(own, Mapping):
            raise WrongReturn(self._author.identity, own, "a dict: {**super().identity(), ...}")
        return {
            "class": self.name,
            "ids": self.config.after_reset(0, 4) + self.config.after_reset(0x2C, 4),
            "config": self.config.after_reset(0, len(self.config)),
            "regions": [region.size for region in self.regions],
            "interrupts": [irq.count for irq in self.irqs],
            **own,
        }

    def memories(self) -> list[Memory]:
        """The declared memory, in place."""
        return list(self._layout.memory.all)

    def storages(self) -> Sequence[Storage]:
        """The author's data outside of memory that is to migrate.

        Raises:
            WrongReturn: the author's hook has returned something else.
        """
        found = self._author.storages()
        if not isinstance(found, Sequence):
            raise WrongReturn(self._author.storages, found, "a list of Storage, empty where there is none")
        return found

    def save_state(self) -> Saved:
        """Save everything but memory that a guest could tell this device by; see `vfio_user.device.saved`."""
        self._author.on_save()
        return {
            "version": self._author.state_version,
            "values": self._snapshot.save(),
            "config": self.config.save(),
            "interrupts": self.interrupts.save(),
            "extra": extra_of(self._author.save_extra),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Look whether `load_state` would take a state; changes nothing.

        Raises:
            ProtocolError: EINVAL, it would not, with the reason.
        """
        try:
            check_saved(state, self._author.state_version, len(self.config))
            self._snapshot.check(state["values"])
            self.interrupts.check(state["interrupts"])
            check_by(self._author.on_check, state["values"])
        except WrongReturn:
            raise
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
        self._author.load_extra(state["extra"])
        self._author.on_load()

    def check_savable(self) -> None:
        """Look whether all that is declared could be loaded again.

        Raises:
            ProtocolError: EIO, a value or memory could not, by its name.
        """
        self._author.on_save()
        self._snapshot.check_savable()
        self._layout.memory.check(self._author)
        extra_of(self._author.save_extra)

    def digests(self, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """A fingerprint of each part of the state: configuration space, interrupts, each declared value and memory.

        Memory whose fingerprint is `known` is not looked at.
        """
        saved = self.save_state()
        parts = {"configuration space": saved["config"], "interrupts": saved["interrupts"], **saved["values"]}
        if saved["extra"]:
            parts["save_extra()"] = saved["extra"]
        found = {name: digest_of(part) for name, part in parts.items()}
        memories = self._layout.memory.all
        return found | {one.name: known.get(one.name) or MemoryDigest(one).finish() for one in memories}

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
            at_the_end.callback(self._author.on_close)
            if self.migration is not None:
                at_the_end.callback(self.migration.close)

    # Within

    def _do_asked(self) -> None:
        while self._asked:
            try:
                work = self._asked.popleft()
            except IndexError:  # another thread has taken the last
                return
            work()

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
        """A hook that the author's class overrides; nothing is called where it does not."""
        if getattr(type(self._author), name) is getattr(Hooks, name):
            return None
        hook: Callable[..., None] = getattr(self._author, name)
        return hook
