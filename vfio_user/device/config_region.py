"""The configuration space region, and the registers in it that do something: power state and function level reset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from vfio_user.device.lifecycle import ResetKind
from vfio_user.device.standstill import Hold
from vfio_user.pci import Capability, ConfigSpace, PciExpress, PowerManagement


class ConfigRegion:
    """Accesses of any width; `refresh` is called before a read, to bring status bits up to date."""

    def __init__(self, config: ConfigSpace, refresh: Callable[[], None]) -> None:
        self._config = config
        self._refresh = refresh

    def read(self, offset: int, count: int) -> bytes:
        self._refresh()
        return self._config.read(offset, count)

    def write(self, offset: int, data: bytes) -> None:
        self._config.write(offset, data)


class GuestReset:
    """A reset that the guest asks for. PCI knows no way to refuse one: a device that does not stand still is reset too.

    One that has to wait comes after the write's reply, and is the answer to all that are asked for until then.
    """

    def __init__(self, hold_still: Callable[[], Hold], reset: Callable[[ResetKind], None]) -> None:
        self._hold_still = hold_still
        self._reset = reset
        self._waits = False

    def ask(self, kind: ResetKind) -> None:
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
    capabilities: Iterable[Capability],
    reset: Callable[[ResetKind], None],
) -> None:
    """Call `reset` when the guest asks for one through a capability."""
    for capability in capabilities:
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
