"""The device of libvfio-user's sample `server`, with our API: so its sample `client` can be tried on us.

    python -m tests.reference_sample SOCKET     as the program `server` that the client starts beside itself: status of
                                                the client, whose parent this process is

BAR 0 takes a time, at which INTx comes and a page of the first memory that was mapped is written, and read again. BAR 1
is memory, and is saved while the device runs.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil

from userdev.process import Child, is_listening
from vfio_user.device import Bar, DmaRegion, IntX, PciDevice, PciIds, memory, register, state
from vfio_user.device.irq_wiring import IrqRequest

PAGE = 4096
PATIENCE = 60.0


class Sample(PciDevice):
    """libvfio-user's sample server."""

    ids = PciIds(0xDEAD, 0xBEEF, class_code=0xFF0000, subsystem_vendor=0xCAFE, subsystem=0xBABE)
    bars = (Bar(0, size=0x1000), Bar(1, size=0x4000))
    interrupts = IntX()
    dma_by_message = True  # the client wants it so, and shares its memory all the same
    alarm: int = state(0)
    content: memoryview = memory(0x4000, bar=1)

    def __init__(self) -> None:
        super().__init__()
        self._mapped: set[int] = set()
        self._wire, self.interrupts.set_irqs = self.interrupts.set_irqs, self._set_irqs  # type: ignore[method-assign]

    def on_dma_map(self, region: DmaRegion) -> None:
        self._mapped.add(region.iova)

    def on_dma_unmap(self, region: DmaRegion) -> None:
        self._mapped.discard(region.iova)

    @register(bar=0, offset=0, width=8)
    def at(self, value: int) -> None:
        self.alarm = value
        self._wait()

    @at.reader
    def _(self) -> int:
        return int(time.time()) - self.alarm & (1 << 64) - 1

    def _set_irqs(self, request: IrqRequest) -> None:
        """After a migration the client is ready for the alarm when it has taken the interrupt."""
        self._wire(request)
        if self.alarm:
            self._wait()

    def _wait(self) -> None:
        ring = threading.Timer(max(0.0, self.alarm - time.time()), lambda: self.call_soon(self._ring))
        ring.daemon = True
        ring.start()

    def _ring(self) -> None:
        self.interrupts.trigger(0)
        first = min(self._mapped)
        self.dma.write(first, b"A" * PAGE)
        if self.dma.read(first, PAGE) != b"A" * PAGE:
            raise RuntimeError("what was read is not what was written")


def command(socket: str) -> list[str]:
    """Of our server."""
    served = ["serve", f"{__spec__.name}:Sample", "--dialect", "region-migration", "--socket-path", socket]
    return [sys.executable, "-m", "vfio_user", *served]


def main() -> None:
    client = psutil.Process().children()[0]  # it was ours before it started this program in its parent's place
    path, own = Path(sys.argv[-1]), Path(sys.argv[-1] + ".own")
    server = Child("server", command(str(own)), log=Path(sys.argv[-1] + ".log"))
    try:
        # The client connects once, as soon as the file is there: a moment after `bind` nobody listens yet.
        while not is_listening(own):
            if server.wait(0.01) is not None:
                sys.exit(server.last_words())
        own.rename(path)
        sys.exit(client.wait(timeout=PATIENCE))
    finally:
        server.stop()
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
