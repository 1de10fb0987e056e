"""Edu devices that do their DMA wrongly."""

from __future__ import annotations

from userdev_servers.edu import RUN, TO_RAM, Edu


class Busy(Edu):
    """Is busy for good."""

    def run_dma(self) -> None:
        return


class Corrupting(Edu):
    def run_dma(self) -> None:
        is_read = not self.command & TO_RAM
        super().run_dma()
        self.buffer[0] ^= 0xFF * is_read


class Early(Edu):
    """Writes a byte in front of where it was told to."""

    def run_dma(self) -> None:
        _, destination, _ = self.transfer
        if self.command & TO_RAM:
            self.dma.write(destination - 1, b"\0")
        super().run_dma()


class Late(Edu):
    """Writes a byte more than it was told to."""

    def run_dma(self) -> None:
        before = list(self.transfer)
        if self.command & TO_RAM:
            self.transfer[2] += 1
        super().run_dma()
        self.transfer[:] = before


class Knowing(Edu):
    """Has what the suite writes to memory without a look at it."""

    def run_dma(self) -> None:
        if self.command & TO_RAM:
            super().run_dma()
        else:
            self.buffer[:1024] = bytes(range(256)) * 4
            self.command &= ~RUN
