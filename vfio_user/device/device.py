"""A PCI device as its author sees it: a subclass declares, handles, and calls these helpers.

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

from collections.abc import Callable, Sequence
from inspect import get_annotations
from math import isfinite
from typing import Any, ClassVar

from userdev.declare.authors_code import assigned_at
from userdev.declare.construction import followed_by
from userdev.declare.declared import Source, authors_frame, source_of
from userdev.declare.returned import check_work
from userdev.declare.unused import warn_of_unused_in
from userdev.errors import DeclarationError
from vfio_user.device.attributes import PLAIN, check_attributes
from vfio_user.device.class_check import check_class
from vfio_user.device.construction import of_declarations
from vfio_user.device.declarations import Declarations
from vfio_user.device.function import Function, Hardware
from vfio_user.device.mechanism import Mechanism
from vfio_user.device.plans import Planned
from vfio_user.pci import COMMAND, COMMAND_BUS_MASTER, Bar, Capability, PciIds, Placed

_READ_ONCE = (
    *("ids", "bars", "capabilities", "rom", "extra_regions"),
    *("error_interrupt", "release_interrupt", "dma_by_message", "migratable"),
)
"""Attributes that are looked at when a device is made, and never again."""
_GIVEN = ("config", "dma", "interrupts")
"""Those that every instance is given."""


class PciDevice(Declarations):
    """Base of all devices. A subclass declares; an instance is one device, which outlives its clients.

    Declared as class attributes, or given to `__init__` by a subclass that decides per device: `ids`, `bars`,
    `interrupts`, `capabilities` (MSI and MSI-X come from `interrupts`), `rom`. Registers, memory and state are
    declared with `register`, `stored_register`, `memory` and `state`.

    What serves it is its `Function`, which `function_of` gives.
    """

    _source: ClassVar[Source]
    _function: Function

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
        hardware = Hardware(
            self.ids if ids is None else ids,
            self.bars if bars is None else bars,
            type(self).interrupts if interrupts is None else interrupts,
            self.capabilities if capabilities is None else capabilities,
            self.rom if rom is None else rom,
        )
        for name in _GIVEN:
            if name in vars(self):
                raise ValueError(f"{name} is set before super().__init__(), which gives every device one of its own")
        function = self._function = Function(self, hardware)
        used = vars(hardware)
        function.made_of = {name: used[name] if name in used else getattr(self, name) for name in _READ_ONCE}
        # Plain attributes, for what handlers do most; `interrupts` hides the class's `Mechanism`.
        vars(self).update(config=function.config, dma=function.dma, interrupts=function.interrupts)

    @property
    def bus_master(self) -> bool:
        """The guest allows DMA. Not enforced: a device that wants to be exact asks before it starts."""
        return bool(self.config.get(COMMAND, 2) & COMMAND_BUS_MASTER)

    def defer(self, work: Callable[[], None]) -> None:
        """Run `work` after the replies of the current batch are sent: where a handler may use message DMA freely.

        As with `call_soon` and `call_later`, work of a device that migration has stopped waits until it runs again, and
        a reset drops what it finds. What is under way and must survive migration belongs into `state`, and is deferred
        again by `on_load`.

        Raises:
            WrongValue: `work` cannot be called.
        """
        check_work("defer", work)
        self._function.link.defer(self._function.plan(work).due)

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` where handlers run, in the order of the calls; any thread may ask. Held and dropped as by
        `defer`.

        Raises:
            WrongValue: `work` cannot be called.
        """
        check_work("call_soon", work)
        self._function.link.call_soon(self._function.plan(work).due)

    def call_later(self, seconds: float, work: Callable[[], None]) -> Planned:
        """Run `work` once where handlers run, in so many seconds, rounded up to milliseconds; from any thread.

        Held and dropped as by `defer`, and lost with the client: `attach` is the place to begin again. What is returned
        has `cancel`.

        Raises:
            WrongValue: `work` cannot be called.
            ValueError: a time that never comes.
        """
        check_work("call_later", work)
        if not isfinite(seconds):
            raise ValueError(f"call_later: in {seconds} seconds")
        planned = self._function.plan(work)
        planned.on_cancel(self._function.link.call_later(seconds, planned.due))
        return planned

    def let_map(self, bar: int, offset: int, size: int, fd: int) -> None:
        """Let the client map pages of a BAR from a file of the author's own, which has as many bytes as the BAR.

        What a client that maps them writes is in the file, and nobody is told; registers that are declared there hear
        of messages only. In `__init__`, after that of this class. `fd` stays the caller's, who seals a memfd that is
        mapped here too (F_SEAL_SHRINK): a client that made it smaller would end the process.

        Raises:
            ValueError: no whole pages, or a BAR that has mappable `memory` already, which is in a file of its own.
        """
        self._function.let_map(bar, offset, size, fd)

    def add_ioeventfd(
        self, bar: int, offset: int, width: int, *, datamatch: int | None = None, shadow: bool = False
    ) -> int:
        """Let the client signal an eventfd instead of sending writes of a declared register (GET_REGION_IO_FDS).

        Each time it is signalled the register's writer gets `datamatch`, or 0; with `shadow` the last value that was
        written, which the client's hypervisor puts into memory beside. Returns the eventfd.

        Raises:
            ValueError: there is no such register.
        """
        return self._function.add_ioeventfd(bar, offset, width, datamatch=datamatch, shadow=shadow)

    def digest(self) -> str:
        """A fingerprint of state and memory: the same on two devices exactly when they are in the same state."""
        return self._function.digest()

    def close(self) -> None:
        """Give the device back, with no client attached; then `on_close`, whatever raises. Once."""
        self._function.close()

    def _constructed(self) -> None:
        if "_function" not in vars(self):
            what = f"{type(self).__qualname__}.__init__ does not call super().__init__() ({self._source})"
            raise DeclarationError(what, hint="it makes the device")
        self._check_set()
        warn_of_unused_in(self, PciDevice, PLAIN)
        self._function.constructed()

    def _check_set(self) -> None:
        """Look at what `__init__` has set behind that of this class, which nobody would look at any more.

        Raises:
            DeclarationError: it is something that was read before, or that handlers need.
        """
        kind, found = type(self), vars(self)
        for name, read in self._function.made_of.items():
            if name in found and found[name] is not read and found[name] != read:
                what = (
                    f"{kind.__qualname__}.{name} is set behind super().__init__(), which has read it ({self._source})"
                )
                hint = f"write super().__init__({name}=...)" if name in get_annotations(Hardware) else "set it before"
                raise DeclarationError(f"{what}{assigned_at(kind, name)}", hint=hint)
        for name in _GIVEN:
            if found[name] is not getattr(self._function, name):
                what = f"{kind.__qualname__}.{name} is set, and every device has something else by that name"
                raise DeclarationError(f"{what} ({self._source}){assigned_at(kind, name)}", hint="give it another name")


def function_of(device: PciDevice) -> Function:
    """The function that serves a device: attaches clients, carries out accesses, saves and loads."""
    return device._function
