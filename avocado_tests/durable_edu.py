"""An edu whose every register and buffer outlives its server, for tests in which servers are killed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated, Any

from userdev_servers.edu import RUN, Edu
from vfio_user.device import register

KEPT = ("inverted", "result", "status", "interrupt_status", "vector", "transfer", "command")


class DurableEdu(Edu):
    """What a write has changed is in the file before the write is answered."""

    def __init__(self, *, file: Annotated[str, "where it keeps its state"] = "durable-edu") -> None:
        self._file = Path(file)
        self._ready = False
        super().__init__()
        if self._file.exists():
            kept = pickle.loads(self._file.read_bytes())
            self.buffer[:] = kept.pop("buffer")
            for name, value in kept.items():
                setattr(self, name, value)
        self._ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in KEPT and self._ready:
            state = {kept: getattr(self, kept) for kept in KEPT}
            unfinished = self._file.with_suffix(".unfinished")
            unfinished.write_bytes(pickle.dumps({**state, "buffer": bytes(self.buffer)}))
            unfinished.replace(self._file)

    @register(bar=0, offset=0x80, width=(4, 8), count=3, stride=8)
    def set_transfer(self, index: int, value: int) -> None:  # type: ignore[override]
        if not self.command & RUN:
            self.transfer = [value if place == index else kept for place, kept in enumerate(self.transfer)]

    @set_transfer.reader
    def kept_transfer(self, index: int) -> int:
        return self.transfer[index]

    @register(bar=0, offset=0x98, width=(4, 8))
    def start_dma(self, value: int) -> None:  # type: ignore[override]
        if value & RUN and not self.command & RUN:
            self.command = value
            self.defer(self.run_dma)

    @start_dma.reader
    def finished_command(self) -> int:
        if self.command & RUN:  # its server was killed before the transfer was done
            self.run_dma()
        return self.command
