"""The configuration space region, and the registers in it that do something: power state and function level reset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from userdev.declare.returned import WrongReturn
from vfio_user.device.hooks import Hooks
from vfio_user.device.lifecycle import ResetKind
from vfio_user.device.region import Windows
from vfio_user.device.standstill import Hold
from vfio_user.pci import ConfigSpace, PciExpress, Placed, PowerManagement
from vfio_user.wire.constants import RegionIndex


class ConfigRegion:
    """Accesses of any width. Status bits are brought up to date before a read, the author's hooks are told of reads
    before and of writes after, and capabilities with callbacks answer for themselves.
    """

    def __init__(
        self, config: ConfigSpace, refresh: Callable[[], None], hooks: Hooks, capabilities: Iterable[Placed] = ()
    ) -> None:
        self._config = config
        self._refresh = refresh
        self._hooks = hooks
        self._pieces = Windows(
            RegionIndex.CONFIG,
            lambda _, offset, count: config.read(offset, count),
            lambda _, offset, data: config.write(offset, data),
        )
        for placed in capabilities:
            if placed.callback and placed.registers:
                self._pieces.answer(placed.registers.start, len(placed.registers), _Callback(hooks, placed))

    def read(self, offset: int, count: int) -> bytes:
        """The `count` bytes at `offset` of the space, after the status bits and the author's hook had their turn."""
        self._refresh()
        self._hooks.on_config_read(offset, count)
        return self._pieces.read(offset, count)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes where a client may; the author's hook is told of all of them afterwards."""
        self._pieces.write(offset, data)
        self._hooks.on_config_write(offset, data)


class _Callback:
    """The registers of a capability that the device answers for."""

    def __init__(self, hooks: Hooks, placed: Placed) -> None:
        self._hooks = hooks
        self._capability = placed.capability
        self._start = placed.registers.start

    def read(self, offset: int, count: int) -> bytes:
        data = self._hooks.capability_read(self._capability, self._start + offset, count)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise WrongReturn(self._hooks.capability_read, data, f"{count} bytes, those of the capability there")
        return bytes(data[:count]).ljust(count, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        self._hooks.capability_write(self._capability, self._start + offset, data)


class GuestReset:
    """A reset that the guest asks for. PCI knows no way to refuse one: a device that does not stand still is reset too.

    One that has to wait comes after the write's reply, and is the answer to all that are asked for until then.
    """

    def __init__(self, hold_still: Callable[[], Hold], reset: Callable[[ResetKind], None]) -> None:
        self._hold_still = hold_still
        self._reset = reset
        self._waits = False

    def ask(self, kind: ResetKind) -> None:
        """Reset once the device stands still; a second request that comes before is the same reset."""
        if not self._waits:
            self._waits = True
            hold = self._hold_still()
            hold.then(partial(self._carry_out, kind, hold))

    def _carry_out(self, kind: ResetKind, hold: Hold) -> None:
        self._waits = False
        hold.say_refusal(kind.value)
        try:
            self._reset(kind)
        finally:
            hold.release()


def watch_resets(
    config: ConfigSpace,
    offsets: Mapping[int, int],
    capabilities: Iterable[Placed],
    reset: Callable[[ResetKind], None],
) -> None:
    """Call `reset` when the guest asks for one through a capability."""
    for placed in capabilities:
        capability = placed.capability
        if isinstance(capability, PciExpress) and capability.flr:
            offset = offsets[PciExpress.id] + PciExpress.DEVICE_CONTROL
            config.watch(offset, 2, _flr(config, offset, reset))
        elif isinstance(capability, PowerManagement):
            offset = offsets[PowerManagement.id] + PowerManagement.PMCSR
            config.watch(offset, 2, _power_state(config, offset, capability, reset))


def _flr(config: ConfigSpace, offset: int, reset: Callable[[ResetKind], None]) -> Callable[[int, int], None]:
    def written(old: int, new: int) -> None:
        if new & PciExpress.INITIATE_FLR:  # it always reads as zero
            config.set(offset, 2, new & ~PciExpress.INITIATE_FLR)
            reset(ResetKind.FLR)

    return written


def _power_state(
    config: ConfigSpace, offset: int, capability: PowerManagement, reset: Callable[[ResetKind], None]
) -> Callable[[int, int], None]:
    def written(old: int, new: int) -> None:
        before, after = old & capability.POWER_STATE, new & capability.POWER_STATE
        if after not in capability.states:  # a state that is not supported is not entered
            config.set(offset, 2, (new & ~capability.POWER_STATE) | before)
        elif before == capability.D3HOT and after == 0 and not capability.no_soft_reset:
            reset(ResetKind.D3HOT_TO_D0)

    return written
