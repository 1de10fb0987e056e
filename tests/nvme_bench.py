"""An NVMe controller without PCI, on a port that keeps what it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from userdev.declare.declared import declarations
from userdev.declare.state import State
from userdev_servers.block.images import open_images
from userdev_servers.nvme.controller import Controller
from userdev_servers.nvme.engine import Engine
from userdev_servers.nvme.model import Model
from userdev_servers.nvme.namespace import Namespace
from userdev_servers.nvme.queues import _COMMAND as COMMAND
from userdev_servers.nvme.queues import _COMPLETION as COMPLETION
from userdev_servers.nvme.queues import CompletionQueue, SubmissionQueue
from userdev_servers.nvme.spec import Csts
from userdev_servers.nvme.state import ControllerState
from vfio_user.device import Dma
from vfio_user.testing import RecordingLink

SQ, CQ, DATA, ENTRIES = 0x1000, 0x2000, 0x3000, 16
VECTOR = 3


class Port:
    """A guest's memory, a log of its interrupts, and turns that the test gives."""

    def __init__(self, *, active: str = "msix") -> None:
        self.guest = RecordingLink(memory=bytearray(0x8000))
        self.dma = Dma()
        self.dma.link = self.guest
        self.dma.map(0, len(self.guest.memory), 3)
        self.interrupts = self
        self.active = active
        self.triggered: list[int] = []
        self.levels = [False]
        self.work: list[Callable[[], None]] = []

    def trigger(self, vector: int = 0) -> None:
        self.triggered.append(vector)
        self.levels.append(True)

    def lower(self) -> None:
        self.levels.append(False)

    def defer(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    call_soon = defer

    def line(self) -> bool:
        """INTx is up."""
        return self.levels[-1]

    def turn(self) -> None:
        """Do what waits, and what comes of it."""
        while self.work:
            self.work.pop(0)()


def fresh_state() -> ControllerState:
    state = ControllerState()
    for value in declarations(ControllerState, State):
        setattr(state, value.name, value.fresh())
    state.model = Model(queues=2, vectors=4, namespaces=1)
    state.status = Csts.READY
    return state


class Bench:
    """A controller with admin queues and a pair of I/O queues, and what drives them."""

    def __init__(self, path: Path, *, active: str = "msix") -> None:
        self.port = Port(active=active)
        [backing] = open_images(f"{path / 'disk.img'}:1M", 512)
        self.state = fresh_state()
        self.controller = Controller(self.port, self.state, [Namespace.whole(1, backing, 512)])
        self.idle = 0
        self.engine = Engine(self.controller, self.port, idle=self._count, woken=lambda: None)
        self.engine.open((SQ, ENTRIES), (CQ, ENTRIES))
        cq = CompletionQueue(1, CQ + 0x800, ENTRIES, VECTOR if active == "msix" else 0)
        self.controller.queues.add(cq)
        self.controller.queues.add(SubmissionQueue(1, SQ + 0x800, ENTRIES, cq))
        self.tails = [0, 0]

    def _count(self) -> None:
        self.idle += 1

    def put(self, number: int, opcode: int, cid: int = 7, **fields: int) -> None:
        words = [fields.get(f"cdw{word}", 0) for word in range(10, 16)]
        entry = COMMAND.pack(opcode, 0, cid, fields.get("nsid", 0), 0, 0, fields.get("prp1", DATA), 0, *words)
        at = SQ + 0x800 * number + 64 * self.tails[number]
        self.port.guest.memory[at : at + 64] = entry
        self.tails[number] = (self.tails[number] + 1) % ENTRIES

    def do(self, number: int, opcode: int, cid: int = 7, **fields: int) -> None:
        self.put(number, opcode, cid, **fields)
        self.engine.ring(2 * number, self.tails[number])
        self.port.turn()

    def finish(self) -> None:
        """What waits for the disk has ended, and the guest is told."""
        self.controller.background.wait()
        self.port.turn()

    def answers(self, number: int) -> list[tuple[int, int, int]]:
        """Identifier, status and result of the commands that have ended."""
        entries = (
            COMPLETION.unpack_from(self.port.guest.memory, CQ + 0x800 * number + 16 * at) for at in range(ENTRIES)
        )
        return [(cid, field >> 1 & 0x7FF, result) for result, _, _, _, cid, field in entries if field & 1]

    def under_way(self) -> int:
        """Commands; that the engine is idle says the same of them."""
        assert self.engine.idle is not bool(self.controller.background.outstanding)
        return self.controller.background.outstanding

    def close(self) -> None:
        self.controller.close()
