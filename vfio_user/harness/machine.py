"""A running QEMU: its process and the channels to it, all made before it starts, so that none has to be waited for."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from userdev.errors import UserError
from vfio_user.harness.command_line import MachineConfig, Start, Wiring, command_line
from vfio_user.harness.console import Console, ConsoleError
from vfio_user.harness.deadline import Deadline, patience
from vfio_user.harness.last_words import reason
from vfio_user.harness.mishaps import Mishaps
from vfio_user.harness.process import Child, tail
from vfio_user.harness.qmp import Qmp, QmpError, QmpLost, QmpTimeout
from vfio_user.harness.qtest import QTest

# Seconds for QEMU itself, whatever the guest does.
_GREETING = 30.0
_READY = 30.0  # multiplied by patience: the guest computes
_SAVE = 60.0
_STOP = 5.0

# What a guest's init says, at the end of a line: a reset may have left a shell's prompt at its beginning.
UP = re.compile(rb"(?m:(?<!NOT )READY\r?$)|NOT READY\b[^\n]*\n|Kernel panic[^\n]*\n")


class Emulator(Protocol):
    """What a machine needs to know of a QEMU (`vfio_user.harness.qemu.Qemu`)."""

    @property
    def argv(self) -> Sequence[str]: ...


class MachineError(UserError):
    """QEMU or its guest did not come up, or is gone. The hint has the last lines of whoever failed."""


class Machine:
    """One QEMU, from its start to `stop`. A context manager.

    `folder` receives NAME.console.log, NAME.qmp.log, NAME.qemu.log, NAME.command and, with `trace`, NAME.trace.log.
    `monitor` is a path at which QEMU listens for a second QMP client. Raises `MachineError` when QEMU does not start.
    """

    def __init__(
        self,
        qemu: Emulator,
        config: MachineConfig,
        start: Start,
        *,
        folder: Path,
        name: str = "guest",
        monitor: Path | None = None,
        trace: bool = False,
        environment: Mapping[str, str] | None = None,
        kill_signal: int = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.config = config
        self.patience = patience(config.accelerator)
        self.folder = folder
        self._kill_signal = kill_signal
        with ExitStack() as remote:
            local = {}
            wires = {}
            for channel in ("qmp", "console", "agent", "qtest"):
                local[channel], wires[channel] = socket.socketpair()
                remote.enter_context(wires[channel])
            wiring = Wiring(
                **{channel: wire.fileno() for channel, wire in wires.items()},
                monitor=monitor,
                trace=folder / f"{name}.trace.log" if trace else None,
            )
            self.argv = command_line(qemu.argv, config, wiring, start, name)
            self.child = Child(
                name,
                self.argv,
                log=folder / f"{name}.qemu.log",
                pass_fds=wiring_fds(wiring),
                environment=environment,
                folder=folder,
                leaves_core=True,
            )
        self._channels = {os.fstat(wire.fileno()).st_ino: name for name, wire in local.items()}
        self.console = Console(local["console"], folder / f"{name}.console.log")
        self.qtest = QTest(local["qtest"])
        self.agent_connection = local["agent"]
        try:
            self.qmp = Qmp(local["qmp"], log=folder / f"{name}.qmp.log", name=name, limit=_GREETING)
        except QmpLost as error:
            self.agent_connection.close()
            self.qtest.close()
            local["qmp"].close()
            self.child.stop(0)
            self.console.close()
            raise self._ended(" at its start") from error
        except BaseException:
            self.child.stop(0)
            raise
        self.mishaps = Mishaps(name, self.console, self.qmp.events)

    # -- its life -------------------------------------------------------------------------------------------------

    def wait_ready(self, *, since: int = 0) -> None:
        """Wait until the guest's init has said READY on the console, in what came after byte `since`.

        Raises `MachineError` with the console's last lines, at once when the kernel panicked or QEMU is gone.
        """
        deadline = Deadline(_READY * self.patience)
        try:
            found = self.console.wait_for(UP.pattern, deadline, since=since)[0]
        except ConsoleError as error:
            self.check(wait=1.0)
            raise MachineError(f"the guest did not come up in {deadline.seconds:g} s", hint=error.hint) from error
        if not found.startswith(b"READY"):
            raise MachineError(
                f"the guest did not come up: {found.decode(errors='replace').strip()}", hint=self.console.last_lines()
            )
        self.mishaps.begin()

    def save(self, path: Path) -> None:
        """Pause the guest and write its memory and devices to `path`. Raises `MachineError`."""
        self.qmp.command("stop")
        self._set_up_migration()
        self.qmp.command("migrate-set-parameters", max_bandwidth=1 << 40)
        self.qmp.command("migrate", uri=f"file:{path}")
        self._await_migration(f"saved to {path}")

    def load(self, path: Path) -> None:
        """Read what `save` wrote into a machine started with `restore`, and let the guest run.

        Raises `MachineError` with QEMU's reason.
        """
        self._set_up_migration()
        self.qmp.execute("migrate-incoming", {"uri": f"file:{path}", "exit-on-error": False})
        self._await_migration(f"restored from {path}")
        self.mishaps.begin()
        self.qmp.command("cont")

    def stop(self) -> None:
        """End QEMU, softly if it still listens; a second call does nothing."""
        self.agent_connection.close()
        if self.child.running:
            with suppress(QmpLost, QmpError, QmpTimeout):
                self.qmp.command("quit", 2.0)
                self.child.wait(_STOP)
        self.qmp.close()
        self.qtest.close()
        self.console.close()  # before the wait for the process: QEMU flushes its consoles when it ends
        self.child.stop()

    def kill(self) -> None:
        """End QEMU as a crash would."""
        self.child.signal(self._kill_signal)
        self.child.wait(_STOP)

    def left_behind(self) -> list[str]:
        """What of it still exists after `stop`: nothing, unless this module is wrong."""
        left = [f"the socket {self.name}.{self._channels[inode]}" for inode in open_sockets() & self._channels.keys()]
        return left + ([f"QEMU {self.name} (process {self.child.pid})"] if self.child.group_is_alive() else [])

    def unwritten(self) -> OSError | None:
        """Why not all that was said is in the logs, where that is so; it names the file."""
        return next((log.failure for log in (*self.console.logs, self.qmp.log) if log.failure), None)

    def check(self, wait: float = 0.0) -> None:
        """Raise `MachineError` with QEMU's last words when it is gone, or goes within `wait` seconds."""
        if self.child.wait(wait) is not None:
            raise self._ended()

    def _ended(self, when: str = "") -> MachineError:
        said = self.child.last_words()
        why = reason(tail(self.child.log))
        return MachineError(f"QEMU {self.child.fate()}{when}" + (f": {why}" if why else ""), hint=said)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- its parts ------------------------------------------------------------------------------------------------

    def add_device(self, device: Mapping[str, object], limit: float | Deadline = 30.0) -> None:
        """Plug in a device. Raises `QmpError` with QEMU's reason, `MachineError` when it dies of it."""
        try:
            self.qmp.execute("device_add", device, limit)
        except QmpLost:
            self.check(wait=_STOP)
            raise

    def remove_device(self, identity: str, limit: float | Deadline = 30.0) -> None:
        """Unplug a device, and wait until the guest has let it go. Raises `GuestCrash` when it never will."""
        deadline = Deadline.of(limit)
        try:
            self.qmp.execute("device_del", {"id": identity}, deadline)
            self.qmp.events.take("DEVICE_DELETED", {"device": identity}, deadline, unless=self.mishaps.check)
        except QmpLost:
            self.check(wait=_STOP)
            raise

    def ssh_port(self) -> int:
        """The host's TCP port that leads to the guest's SSH server."""
        text = self.qmp.human("info usernet")
        found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s", text)
        if found is None:
            raise MachineError("QEMU forwards no port to the guest", hint=text)
        return int(found[1])

    def _set_up_migration(self) -> None:
        wanted = [{"capability": name, "state": True} for name in ("mapped-ram", "events")]
        self.qmp.command("migrate-set-capabilities", capabilities=wanted)

    def _await_migration(self, done: str) -> None:
        deadline = Deadline(_SAVE)
        while True:
            status = self.qmp.wait_event("MIGRATION", deadline)["data"]["status"]
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                reason = self.qmp.command("query-migrate").get("error-desc", status)
                raise MachineError(f"the guest could not be {done}: {reason}", hint=self.child.last_words(5))


def wiring_fds(wiring: Wiring) -> tuple[int, ...]:
    """The descriptors that QEMU has to inherit."""
    ends = (wiring.qmp, wiring.console, wiring.agent, wiring.qtest)
    return tuple(end for end in ends if isinstance(end, int))


def open_sockets() -> set[int]:
    """The inodes of the sockets that this process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    return found
