"""A ring whose buffers wait until the device has something for its driver (`vhost_user.device.supply`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vhost_user.backend.in_band import InBand
from vhost_user.backend.misses import Misses
from vhost_user.backend.vring import Vring
from vhost_user.backend.watcher import Watcher
from vhost_user.memory import IotlbMiss
from vhost_user.rings import BrokenRing, Chain, Ring

if TYPE_CHECKING:
    from vhost_user.device import Supply, VhostDevice


class SupplyVring(Vring):
    """Only what the device fills is taken from the ring for good, so that a stop finds nothing under way.

    The driver is asked for kicks when a buffer was wanted and none was there.
    """

    def __init__(
        self,
        index: int,
        device: VhostDevice,
        supply: Supply,
        watcher: Watcher,
        make: Callable[[Vring], Ring],
        misses: Misses,
        in_band: InBand,
    ) -> None:
        super().__init__(index, device, watcher, make, misses, in_band)
        self._supply = supply
        self._taken: deque[Chain] = deque()

    # The device's port (vhost_user.device.supply.SupplyPort)

    def take(self) -> Chain | None:
        """The next buffers; a ring that is found broken breaks by itself, and has none."""
        ring = self.ring
        assert ring is not None
        try:
            while (chain := ring.pop()) is None:
                if not ring.enable_kicks():
                    return None
        except IotlbMiss as miss:
            self._wait_for(miss)
            return None
        except BrokenRing as error:
            self.break_down(str(error))
            return None
        self._taken.append(chain)
        return chain

    def give(self, chain: Chain, written: int) -> None:
        """Give back the first that was taken; the driver has it when this ring's turn comes.

        Raises:
            ValueError: it is another one, or has not so much room.
        """
        if not self._taken or self._taken[0] is not chain:
            raise ValueError(f"{self}: what is given back is not the first of {len(self._taken)} that were taken")
        assert self.ring is not None
        self.ring.push(chain, written)
        self._taken.popleft()
        self.pending = self.owes = True

    def leave(self) -> None:
        """Put back all that were taken and not given."""
        assert self.ring is not None
        while self._taken:
            try:
                self.ring.unpop(self._taken.pop())
            except BrokenRing as error:
                self._taken.clear()
                self.break_down(str(error))

    # The ring's life (vhost_user.backend.vring.Vring)

    def recall(self) -> None:  # noqa: D102 - Vring has it
        if self.ring is not None:
            self.leave()

    def _begin(self) -> None:
        self._supply.port = self

    def _end(self) -> None:
        self._supply.port = None
        if self.ring is not None:
            self.leave()
            if self.owes and not self.ring.is_lost:
                self.publish()

    def _take(self, ring: Ring) -> bool:
        ring.disable_kicks()
        self._device.on_supply(self.index)
        if self.owes and not ring.is_lost:
            self.publish()
        return False
