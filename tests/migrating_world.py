"""A world for the migration coordinator: two QEMUs, their devices' servers, and what must never happen between them.

Whatever is asked of them is recorded, and any of it may be told to fail. That two sides never run at once is looked at
after each step.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from userdev.control import ControlError
from userdev.errors import UserError
from vfio_user.harness.migration.coordinator import Coordinator
from vfio_user.harness.migration.link import DeviceLink
from vfio_user.harness.migration.pci_state import COMMAND, INTERRUPT_PIN, PciState
from vfio_user.harness.migration.plan import Conductor, Plan
from vfio_user.harness.migration.report import Mode, Report
from vfio_user.harness.qmp import ARRIVED, QmpTimeout

STATE = b"state" * 100
DONE = ": done"
"""Behind a call: it has had its effect, and who asked has not heard of it yet."""


class World:
    """Everything there is, and all that was asked of it, in order."""

    def __init__(self, folder: Path, *, devices: int = 2, running: bool = True, shares_memory: bool = True) -> None:
        self.calls: list[str] = []
        self.fails: dict[int, BaseException] = {}
        """What the call of this number raises."""
        self.unheard: set[str] = set()
        """Commands that were posted, and whose ends nobody has waited for."""
        self.source = Qemu(self, "source", folder, running=running)
        self.destination = Qemu(self, "destination", folder, running=False)
        self.source.other, self.destination.other = self.destination, self.source
        self.servers = [
            (Server(self, f"source.dev{n}", shares_memory), Server(self, f"destination.dev{n}", shares_memory))
            for n in range(devices)
        ]
        self.links = [
            DeviceLink(f"dev{n}", f"0000:00:0{n + 3}.0", *pair)  # type: ignore[arg-type]
            for n, pair in enumerate(self.servers)
        ]
        self.report = Report(Mode.COORDINATED, "here", "there")

    def happens(self, what: str) -> None:
        """Something is asked for: record it, and fail if that is to be."""
        self.calls.append(what)
        if (failure := self.fails.get(len(self.calls) - 1)) is not None:
            raise failure

    def look(self) -> None:
        """Look whether something runs twice."""
        source, destination = self.source, self.destination
        assert not (source.running and destination.running), f"the guest runs twice: {self.calls}"
        for here, there in self.servers:
            assert not (here.runs and there.runs), f"a device runs twice: {self.calls}"
            went_back = here.runs and here.has_stopped
            assert not (went_back and destination.alive), f"a device goes on before the other side ended: {self.calls}"

    def migrate(self, plan: Plan | None = None, conductor: Conductor | None = None) -> Report:
        coordinator = Coordinator(
            self.source,  # type: ignore[arg-type]
            self.destination,  # type: ignore[arg-type]
            self.links,
            self.report,
            address="::1",
            plan=plan or Plan(),
            conductor=conductor or Conductor(),
        )
        try:
            coordinator.run()
        finally:
            for link in self.links:
                link.close()
        return self.report


class Qemu:
    """A machine: its guest, QMP, QTest, and process."""

    config = SimpleNamespace(memory=512)
    qmp: Qemu
    qtest: Qemu
    other: Qemu

    def __init__(self, world: World, name: str, folder: Path, *, running: bool) -> None:
        self.world, self.name = world, name
        self.running, self.alive = running, True
        self.status = "none"
        self.breaks = False
        """Whether the stream breaks as soon as QEMU goes on with it."""
        self.waits_for_a_device = False
        self.command_register = 0x2
        self.uris: list[str] = []
        """Where it was told to read its guest from, or to send it to."""
        self.qmp = self.qtest = self
        self.events = self
        self.mishaps: Any = frozenset()
        self.child = SimpleNamespace(
            running=True,
            wait=lambda seconds: None,
            fate=lambda: "ended",
            log=folder / f"{name}.log",
            argv=[],
            exit_code=None,
        )
        self._told: deque[dict[str, Any]] = deque()

    def _happens(self, what: str) -> None:
        self.world.happens(f"{self.name}.{what}")

    def tell(self, event: str, **data: object) -> None:
        """The clock of the destination is an hour behind, and both are of 1970."""
        stamp = {"seconds": 7200 if self.name == "source" else 3600, "microseconds": 0}
        self._told.append({"event": event, "data": data, "timestamp": stamp, ARRIVED: time.monotonic()})

    def check(self) -> None:
        self._happens("check")

    def abandon(self) -> None:
        self._happens("kill")
        self.alive = self.running = self.child.running = False

    # QMP

    def command(self, name: str, limit: object = None, /, **arguments: object) -> Any:
        return self.execute(name, arguments)

    def execute(
        self,
        name: str,
        arguments: Any,
        limit: object = None,
        *,
        out_of_band: bool = False,
        unless: Callable[[], None] = lambda: None,
    ) -> Any:
        self._happens(name)
        if "uri" in arguments:
            self.uris.append(arguments["uri"])
        found: Any = getattr(self, "_" + name.replace("-", "_"), dict)()
        self.world.look()
        if self.waits_for_a_device and not out_of_band:
            unless()
            held = [here.name for here, _ in self.world.servers if here.held]
            assert not held, f"{name} is not answered while a processor waits for {held}, with the big lock in its hand"
        self._happens(f"{name}{DONE}")
        return found

    def wait_event(self, name: str, deadline: object = None, match: Any = None) -> dict[str, Any]:
        if not match:
            self._happens(f"event {name}")
        for event in self._told:
            if event["event"] == name and (match or {}).items() <= event["data"].items():
                self._told.remove(event)
                return event
        raise QmpTimeout(f"no {name} event")

    def forget(self, name: str | None = None) -> None:
        self._told = deque(event for event in self._told if name is not None and event["event"] != name)

    def _query_status(self) -> dict[str, Any]:
        return {"running": self.running}

    def _query_migrate(self) -> dict[str, Any]:
        return {"status": self.status, "socket-address": [{"host": "::1", "port": "1"}], "ram": {"transferred": 7}}

    def _migrate(self) -> None:
        self.status = "pre-switchover"
        for status in ("setup", "active", "pre-switchover"):
            self.tell("MIGRATION", status=status)
        if self.running:
            self.running, self.was_running = False, True
            self.tell("STOP")

    def _migrate_continue(self) -> None:
        if self.breaks:
            for status in ("device", "failing"):
                self.tell("MIGRATION", status=status)
            self.status = "failed"
            self.running = self.was_running
            self.waits_for_a_device = self.running
            return
        for side in (self, self.other):
            side.status = "completed"
            for status in ("device", "completed"):
                side.tell("MIGRATION", status=status)

    def _migrate_cancel(self) -> None:
        self.status = "cancelled"

    def _cont(self) -> None:
        self.running = True
        self.tell("RESUME")

    # QTest

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        yield

    def inl(self, port: int) -> int:
        return 0

    def outl(self, port: int, value: int) -> None:
        pass

    def ask_all(self, lines: Sequence[str]) -> list[str]:
        self._happens("qtest lines")
        return ["0x0"] * len(lines)

    def config_write(self, function: object, offset: int, value: int, width: int = 4) -> None:
        self._happens("write command" if offset == COMMAND else "config")
        self.command_register = value


class Server:
    """A device's server with its interposer, spoken to through the control socket."""

    saves_alike = True

    def __init__(self, world: World, name: str, shares_memory: bool) -> None:
        self.world, self.name, self.shares_memory = world, name, shares_memory
        self.control = self
        self.child = SimpleNamespace(running=True, fate=lambda: "ended", argv=[], exit_code=None)
        self.interposer = SimpleNamespace(child=self.child)
        self.state = "RUNNING"
        self.has_stopped = False
        self.held = 0
        self.logs = False
        self.arrived = b""
        self._left = b""

    @property
    def runs(self) -> bool:
        """Whether the device does something by itself, for a guest that is there."""
        mine = self.world.source if self.name.startswith("source") else self.world.destination
        return mine.alive and self.state in ("RUNNING", "PRE_COPY") and (mine is self.world.source or self.has_stopped)

    def call(self, command: str, **arguments: Any) -> Any:
        return self.post(command, **arguments).result()

    def post(self, command: str, **arguments: Any) -> Any:
        what = f"{self.name}.{command}" + (f" {arguments['set']}" if "set" in arguments else "")
        try:
            self.world.happens(what)
        except ControlError as refusal:
            return SimpleNamespace(result=partial(_refuse, refusal))
        number = f"{len(self.world.calls)} {what}"
        self.world.unheard.add(number)
        answer: Any = getattr(self, "_" + command, lambda **_: {})(**arguments)
        self.world.look()

        def result() -> Any:
            self.world.unheard.discard(number)
            self.world.happens(what + DONE)
            return answer

        return SimpleNamespace(result=result)

    def _session(self) -> dict[str, Any]:
        return {"resets": 0, "client_migrates": False}

    def _migration_support(self) -> dict[str, Any]:
        return {"supports": ["STOP_COPY", "PRE_COPY"]}

    def _region_read(self, **_: Any) -> dict[str, Any]:
        return {"data": ""}

    def _migration_state(self, set: str = "", timeout: float = 0.0) -> dict[str, Any]:
        if set:
            assert timeout > 0 or not set, "somebody would wait for ever"
            if set in ("PRE_COPY", "STOP_COPY") and self.state != "PRE_COPY":
                self._left = STATE
            if self.state == "RESUMING" and set == "STOP" and self.arrived != STATE:
                raise UserError(f"{len(self.arrived)} bytes are no state")
            self.has_stopped |= set in ("STOP", "STOP_COPY", "RESUMING")
            self.state = set
        return {"state": self.state}

    def _mig_data_read(
        self, size: int | None = None, fd: bool = False, fds: Sequence[int] = (), raw: bool = False
    ) -> dict[str, Any]:
        """Half of what is left while the device runs, and all of it then."""
        count = min(len(self._left), len(STATE) // 2 if self.state == "PRE_COPY" else len(STATE), size or len(STATE))
        piece, self._left = self._left[:count], self._left[count:]
        if fd:
            os.write(fds[0], piece)
        return {"bytes": count, "complete": not count, "raw": piece}

    def _mig_data_write(self, fd: bool = False, fds: Sequence[int] = (), behind: bytes = b"") -> dict[str, Any]:
        self.arrived += os.read(fds[0], 1 << 20) if fd else behind
        return {}

    def _dma_logging_start(self, page_size: int) -> None:
        self.logs = True

    def _dma_logging_stop(self) -> None:
        self.logs = False

    def _dma_logging_resend(self, page_size: int) -> dict[str, Any]:
        return {"pages": 1, "unmapped": [0x1000]}

    def _hold(self) -> None:
        self.held += 1

    def _resume(self) -> None:
        self.held = max(0, self.held - 1)  # as `Holding` has it


def _refuse(why: ControlError) -> None:
    raise why


def config_of(command: int) -> PciState:
    """A function whose guest has written this to its command register, and that interrupts by INTx."""
    config = bytearray(256)
    config[COMMAND : COMMAND + 2] = command.to_bytes(2, "little")
    config[INTERRUPT_PIN] = 1
    return PciState(bytes(config))
