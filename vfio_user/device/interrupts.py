"""Interrupts of a device: INTx, MSI and MSI-X behind one `trigger`, with masking and pending bits as PCI has them.

Which mechanism is active is the client's choice: the one with eventfds (MSI-X before MSI before INTx), or, where
interrupts go as messages, the one enabled in configuration space. A vector that is masked, or whose eventfd is not
there yet, stays pending and is delivered when that changes.

INTx is a level. It fires once when raised and masks itself, as the kernel's VFIO does; when the client unmasks it while
it is still raised it fires again.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from userdev.errors import ProtocolError
from userdev.eventfd import drain
from vfio_user.device.irq_wiring import (
    ERR,
    INFO_FLAGS,
    INTX,
    MASK,
    MSI,
    MSIX,
    REQ,
    TRIGGER,
    IrqInfo,
    IrqLines,
    IrqRequest,
)
from vfio_user.device.link import Link, NoClient
from vfio_user.device.msix_table import MsiXTable, PendingBits, pba_size
from vfio_user.pci import (
    COMMAND,
    COMMAND_INTX_DISABLE,
    STATUS,
    STATUS_INTERRUPT,
    ConfigSpace,
    MsiCapability,
    MsiXCapability,
)

log = logging.getLogger(__name__)

MESSAGE_INDEXES = (MSIX, MSI)
NAMES = {INTX: "intx", MSI: "msi", MSIX: "msix"}

ANY = 1 << 32
"""As many vectors as one likes: nothing happens where a device does not interrupt."""

MaskHook = Callable[[str, Sequence[int], bool], None]
"""Told of a mechanism by its name, of some of its vectors, and whether they are masked now."""

_SIGNAL_SECONDS = 0.5
"""What is done under the lock takes microseconds; a signal that takes so long waits for the client."""
_ATTEMPTS = 8
"""A client may fill an eventfd again before it is cut."""


class Interrupts:
    """The interrupts of one device. Everything an author calls may be called from any thread."""

    def __init__(
        self,
        config: ConfigSpace,
        offsets: Mapping[int, int],
        *,
        intx: bool = False,
        msi: MsiCapability | None = None,
        msix_vectors: int = 0,
        absent: Collection[int] = (),
        on_mask: MaskHook | None = None,
    ) -> None:
        """`offsets`: of the capabilities, by id. `absent`: which of the indexes ERR and REQ the device has not.
        `on_mask` is told what a client masks.
        """
        counts = {INTX: int(intx), MSI: msi.vectors if msi else 0, MSIX: msix_vectors}
        self.infos = [
            IrqInfo(index, counts.get(index, 0 if index in absent else 1), int(INFO_FLAGS[index]))
            for index in (INTX, MSI, MSIX, ERR, REQ)
        ]
        self._vectors = max(counts.values()) or ANY
        """Of the mechanism that has most."""
        self.link: Link = NoClient()
        self._on_mask = on_mask
        self.table = MsiXTable(counts[MSIX], self._changed)
        self.pba = PendingBits(pba_size(msix_vectors), lambda: self._pending_bits(MSIX))
        self._config = config
        self._msi = msi
        self._msi_offset = offsets.get(MsiCapability.id, 0)
        self._msix_offset = offsets.get(MsiXCapability.id, 0)
        self._lines = [IrqLines(info) for info in self.infos]
        self._lock = threading.RLock()
        self._level = False
        self._pending: dict[int, set[int]] = {MSI: set(), MSIX: set()}
        self._coalesced: set[int] = set()
        self._resample: int | None = None
        self._active: int | None = None
        self._route: dict[int, Callable[[], None]] = {}  # of vectors that can be signalled without further question
        for offset, size in (
            (COMMAND, 2),
            (self._msi_offset, self._msi.size if self._msi else 0),
            (self._msix_offset, 4),
        ):
            if offset and size:
                config.watch(offset, size, lambda old, new: self._changed())
        self._changed()

    # What an author calls.

    def trigger(self, vector: int = 0) -> None:
        """Interrupt the guest: a message for MSI and MSI-X, for INTx the line is raised until `lower`.

        Without any mechanism enabled nothing happens. An MSI vector above what the client granted wraps, as PCI says.

        Raises:
            ValueError: the active mechanism has no such vector; where that is INTx, or none, no mechanism has it.
        """
        with self._lock:
            signal = self._route.get(vector)
            if signal is not None:
                signal()
                return
            in_band = self._trigger(vector)
        self._send(in_band)

    def lower(self) -> None:
        """Drop the INTx line; nothing for MSI and MSI-X."""
        with self._lock:
            self._level = False

    def coalesce(self, vector: int = 0) -> None:
        """Trigger once for all calls until the current batch of messages is answered. For the session's thread.

        Raises:
            ValueError: no mechanism of the device has such a vector.
        """
        if not 0 <= vector < self._vectors:
            raise self._wrong(vector)
        if not self._coalesced:
            self.link.defer(self.trigger_coalesced)
        self._coalesced.add(vector)

    def trigger_coalesced(self) -> None:
        """The batch is answered, or the device is about to stop."""
        vectors, self._coalesced = self._coalesced, set()
        for vector in sorted(vectors):
            self.trigger(vector)

    def error(self) -> None:
        """Tell the client of an unrecoverable error (index ERR), if it listens."""
        with self._lock:
            self._lines[ERR].fire(0)

    def request_release(self) -> None:
        """Ask the client to give the device back (index REQ), if it listens."""
        with self._lock:
            self._lines[REQ].fire(0)

    @property
    def active(self) -> str:
        """none, intx, msi or msix: what `trigger` would use now."""
        return NAMES[self._active] if self._active is not None else "none"

    @property
    def pending(self) -> frozenset[int]:
        """MSI or MSI-X vectors that wait for being unmasked or wired."""
        with self._lock:
            return frozenset(self._pending[MSIX] | self._pending[MSI])

    # What the device and the session call.

    def set_irqs(self, request: IrqRequest) -> None:
        """SET_IRQS. The request's descriptors are taken over, also after an error.

        Raises:
            ProtocolError: EINVAL; nothing has changed then.
        """
        try:
            request.check(self.infos)
            if request.resamples:
                self._set_resample(request.fds.pop() if request.fds else None)
                return
            removes_resample = request.index == INTX and request.wires and not request.fds
            with self._lock:
                self._apply(request)
        finally:
            request.close()
        if removes_resample:
            self._set_resample(None)
        self._changed()
        if request.action is not TRIGGER:
            self._say_masked(request.index, request.chosen, masked=request.action is MASK)

    def refresh(self) -> None:
        """Bring the status bits of configuration space up to date, before it is read. Session's thread only."""
        status = self._config.get(STATUS, 2) & ~STATUS_INTERRUPT
        self._config.set(STATUS, 2, status | (STATUS_INTERRUPT if self._level else 0))
        if self._msi and self._msi.maskable:
            self._config.set(self._msi_offset + self._msi.pending_offset, 4, self._pending_bits(MSI))

    def reset(self) -> None:
        """Clear what a reset of the function clears; the client's wiring stays."""
        with self._lock:
            self._level = False
            self._lines[INTX].masked.clear()
            for pending in self._pending.values():
                pending.clear()
            self._coalesced.clear()
            self.table.reset()
        self._changed()

    def release(self) -> None:
        """The client is gone: close its descriptors and forget what it masked."""
        self._set_resample(None)
        with self._lock:
            for lines in self._lines:
                lines.cut_all()
                lines.masked.clear()
            self._coalesced.clear()
            self.link = NoClient()
        self._changed()

    def unblock(self) -> None:
        """Free whoever waits for room in an eventfd that the client has filled and made blocking; from any thread.

        The client loses its count, and the vector its eventfd.
        """
        cut: list[tuple[IrqLines, int]] = []
        for _ in range(_ATTEMPTS):
            if self._lock.acquire(timeout=_SIGNAL_SECONDS):
                break
            cut += [(lines, vector) for lines in self._lines for vector in lines.empty_full()]
        else:
            return
        try:
            for lines, vector in cut:
                lines.cut(vector)
        finally:
            self._lock.release()
        if cut:
            log.warning("%d eventfds of the client were full and blocking: they are not signalled any more", len(cut))
            self._changed()

    def save(self) -> dict[str, Any]:
        """The state that migrates: INTx's level, what is pending and masked of MSI and MSI-X, and the MSI-X table."""
        with self._lock:
            return {
                "level": self._level,
                "msi_pending": sorted(self._pending[MSI]),
                "msix_pending": sorted(self._pending[MSIX]),
                "msi_masked": sorted(self._lines[MSI].masked),
                "msix_masked": sorted(self._lines[MSIX].masked),
                "table": bytes(self.table.entries),
                "table_used": self.table.used,
            }

    def check(self, saved: Mapping[str, Any]) -> None:
        """Look whether `load` can take what was saved.

        Raises:
            ProtocolError: EINVAL, it cannot.
        """
        ours = self.save()
        if saved.keys() != ours.keys() or any(type(saved[name]) is not type(ours[name]) for name in ours):
            raise ProtocolError("saved interrupts are misshapen", errno.EINVAL)
        if len(saved["table"]) != len(ours["table"]):
            raise ProtocolError("saved interrupts have an MSI-X table of another size", errno.EINVAL)
        for index, name in ((MSI, "msi"), (MSIX, "msix")):
            for vector in [*saved[f"{name}_pending"], *saved[f"{name}_masked"]]:
                if type(vector) is not int or not 0 <= vector < self.infos[index].count:
                    raise ProtocolError(f"saved interrupts: {name} has no vector {vector!r}", errno.EINVAL)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over what `save` gave, which `check` has looked at, and signal what may be signalled now."""
        with self._lock:
            self._level = saved["level"]
            for index, name in ((MSI, "msi"), (MSIX, "msix")):
                self._pending[index] = set(saved[f"{name}_pending"])
                self._lines[index].masked = set(saved[f"{name}_masked"])
            self.table.entries[:] = saved["table"]
            self.table.used = saved["table_used"]
        self._changed()

    # Within.

    def _trigger(self, vector: int) -> list[tuple[int, int]]:
        """Trigger a vector that is not wired, or masked; returns what has to go as messages."""
        if not 0 <= vector < self._vectors:
            raise self._wrong(vector)
        match self._active:
            case None:
                return []
            case index if index == INTX:
                self._level = True
                return self._deliver()
            case index:
                if not 0 <= vector < self.infos[index].count:
                    raise ValueError(f"{self.active} has {self.infos[index].count} vectors, none is {vector}")
                self._pending[index].add(self._granted(vector) if index == MSI else vector)
                return self._deliver()

    def _wrong(self, vector: int) -> ValueError:
        return ValueError(f"the device has {self._vectors} vectors, none is {vector!r}: they count from 0")

    def _deliver(self) -> list[tuple[int, int]]:
        """Deliver what waits and can be delivered."""
        index = self._active
        if index is None:
            return []
        lines = self._lines[index]
        if index == INTX:
            disabled = self._config.get(COMMAND, 2) & COMMAND_INTX_DISABLE
            if not self._level or disabled or lines.masked:
                return []
            if lines.fire(0):
                lines.masked.add(0)
                return []
            if self.link.in_band_interrupts:
                lines.masked.add(0)
                return [(INTX, 0)]
            return []
        in_band: list[tuple[int, int]] = []
        for vector in sorted(self._pending[index]):
            if self._is_masked(index, vector):
                continue
            if not lines.fire(vector):
                if not self.link.in_band_interrupts:
                    continue
                in_band.append((index, vector))
            self._pending[index].discard(vector)
        return in_band

    def _changed(self) -> None:
        """Find out again what is active and what can be signalled at once; deliver what waited for it."""
        with self._lock:
            enabled = [index for index in MESSAGE_INDEXES if self._is_enabled(index)]
            self._active = enabled[0] if enabled else INTX if self.infos[INTX].count else None
            for index in MESSAGE_INDEXES:
                if index not in enabled:
                    self._pending[index].clear()
            self._route = {
                vector: signal
                for vector, signal in (self._lines[enabled[0]].signals.items() if enabled else ())
                if not self._is_masked(enabled[0], vector)
            }
            in_band = self._deliver()
        self._send(in_band)

    def _is_enabled(self, index: int) -> bool:
        if self._lines[index].fds:
            return True
        if index == MSIX:
            return bool(self._msix_offset) and bool(self._msix_control & MsiXCapability.ENABLE)
        return bool(self._msi_offset) and bool(self._msi_control & MsiCapability.ENABLE)

    def _is_masked(self, index: int, vector: int) -> bool:
        if vector in self._lines[index].masked:
            return True
        if index == MSIX:
            return bool(self._msix_control & MsiXCapability.FUNCTION_MASK) or self.table.masked(vector)
        if self._msi and self._msi.maskable:
            return bool(self._config.get(self._msi_offset + self._msi.mask_offset, 4) >> vector & 1)
        return False

    def _pending_bits(self, index: int) -> int:
        """A bit for each vector that waits; one of the device's own threads may be adding another."""
        with self._lock:
            return sum(1 << vector for vector in self._pending[index])

    @property
    def _msi_control(self) -> int:
        return self._config.get(self._msi_offset + MsiCapability.CONTROL, 2)

    @property
    def _msix_control(self) -> int:
        return self._config.get(self._msix_offset + MsiXCapability.CONTROL, 2)

    def _granted(self, vector: int) -> int:
        """The vector that the client granted for this one: the low bits, where it enabled fewer than were asked for."""
        if not self._msi_control & MsiCapability.ENABLE:
            return vector
        return vector & ((1 << (self._msi_control >> 4 & 7)) - 1)

    def _apply(self, request: IrqRequest) -> None:
        lines = self._lines[request.index]
        if request.disables_all:
            lines.cut_all()
            lines.masked.clear()
        elif request.wires:
            for vector in range(request.start, request.start + request.count):
                if request.fds:
                    lines.wire(vector, request.fds.pop(0))
                else:
                    lines.cut(vector)
                if request.index == INTX:
                    lines.masked.clear()
        elif request.action is TRIGGER:
            for vector in request.chosen:
                lines.fire(vector)
        elif request.action is MASK:
            lines.masked.update(request.chosen)
        else:
            lines.masked.difference_update(request.chosen)

    def _send(self, messages: list[tuple[int, int]]) -> None:
        """Not under the lock: the session's own lock is taken in there, which its thread holds while it calls us."""
        for index, vector in messages:
            self.link.interrupt(index, vector)

    def _set_resample(self, fd: int | None) -> None:
        """An eventfd by which the client unmasks INTx (KVM's resampling)."""
        old, self._resample = self._resample, fd
        if old is not None:
            self.link.unwatch(old)
            os.close(old)
        if fd is not None:
            self.link.watch(fd, self._resampled)

    def _resampled(self) -> None:
        if self._resample is not None and drain(self._resample):
            with self._lock:
                self._lines[INTX].masked.clear()
            self._changed()
            self._say_masked(INTX, [0], masked=False)

    def _say_masked(self, index: int, vectors: Sequence[int], *, masked: bool) -> None:
        if self._on_mask is not None and vectors:
            self._on_mask(NAMES[index], vectors, masked)
