"""The edu device with work of its own, for tests that disturb a device at the wrong moment.

Beside edu's registers, in BAR 0:

======  ====  ==========================================================================================
0xa0    RW    stream: writes a counter of 8 bytes to this address of guest memory, all the time; 0 ends it
0xa8    RW    storm: not 0 raises interrupts on vector 0 all the time; 0 ends it
0xb0    RW    hold: a read takes so many milliseconds, and gives them
0xb8    R     work done: writes and interrupts of its own, ever; the only thing that no reset clears
======  ====  ==========================================================================================
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Annotated

from userdev.errors import ProtocolError
from userdev_servers.edu import Edu
from vfio_user.device import Quiesce, ResetKind, register, state

log = logging.getLogger("vfio_user.servers.busy_edu")

PACE = 0.0005
"""Seconds between two pieces of work: quick enough to be in the way, slow enough for a guest under TCG."""


class BusyEdu(Edu):
    """An edu that writes guest memory and interrupts by itself, on a thread, and has every kind of reset."""

    stream_to: int = state(0)
    storming: int = state(0)
    hold_ms: int = state(0)

    def __init__(
        self,
        *,
        msix: Annotated[int, "MSI-X vectors; 0 leaves the capability out"] = 4,
        plain: Annotated[bool, "no FLR and no power states: the guest's kernel has no way to reset it"] = False,
    ) -> None:
        self._turn = threading.Condition()  # held for each piece of work; who wants it still takes it
        self._still = False
        self._engine: threading.Thread | None = None
        self.work_done = 0
        super().__init__(msix=msix, flr=not plain, pm=not plain)

    @register(bar=0, offset=0xA0, width=(4, 8))
    def stream(self, value: int) -> None:
        with self._turn:
            self.stream_to = value
            self._go()

    @stream.reader
    def read_stream(self) -> int:
        return self.stream_to

    @register(bar=0, offset=0xA8, width=4)
    def storm(self, value: int) -> None:
        with self._turn:
            self.storming = value
            self._go()

    @storm.reader
    def read_storm(self) -> int:
        return self.storming

    @register(bar=0, offset=0xB0, width=4)
    def hold(self, value: int) -> None:
        self.hold_ms = value

    @hold.reader
    def read_hold(self) -> int:
        time.sleep(self.hold_ms / 1000)
        return self.hold_ms

    @register(bar=0, offset=0xB8, width=4)
    def odometer(self) -> int:
        return self.work_done

    def on_quiesce(self) -> Quiesce | None:
        with self._turn:  # waits for the piece under way
            self._still = True
        return None

    def on_resume(self) -> None:
        with self._turn:
            self._still = False
            self._go()

    def on_reset(self, kind: ResetKind) -> None:
        if kind is ResetKind.LOST_CONNECTION:
            with self._turn:
                self.stream_to = self.storming = 0

    @property
    def _has_work(self) -> bool:
        return bool(self.stream_to or self.storming) and not self._still

    def _go(self) -> None:
        if self._engine is None and self._has_work:
            self._engine = threading.Thread(target=self._run, name="edu engine", daemon=True)
            self._engine.start()
        self._turn.notify_all()

    def _run(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._has_work)
                self._work()
            time.sleep(PACE)

    def _work(self) -> None:
        if self.stream_to and self.bus_master:
            try:
                self.dma.write_u64(self.stream_to & self.dma_mask, self.work_done)
            except ProtocolError as error:  # the guest took the memory away
                log.warning("the stream ended: %s", error)
                self.stream_to = 0
        if self.storming:
            self.interrupts.trigger(0)
        self.work_done += 1
