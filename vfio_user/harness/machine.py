"""A running QEMU: its process and the channels to it, all made before it starts, so that none has to be waited for."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from userdev.counted import counted
from userdev.errors import UserError
from userdev.process import Child, Deadline, tail
from vfio_user.harness import coredump
from vfio_user.harness.attachment import Attachment, QmpCommand
from vfio_user.harness.command_line import MachineConfig, Start, Wiring, command_line
from vfio_user.harness.console import Console, ConsoleError
from vfio_user.harness.last_words import end_of, fate_of, first_to_end_badly, reason, told_end
from vfio_user.harness.memory_file import MemoryFile
from vfio_user.harness.mishaps import Mishaps
from vfio_user.harness.qmp import Qmp, QmpError, QmpLost, QmpTimeout
from vfio_user.harness.qtest import QTest
from vfio_user.harness.server import ServerFailure
from vfio_user.harness.timeouts import SCALE_VARIABLE, patience
from vfio_user.harness.troubles import Wait, first_trouble

# Seconds for QEMU itself, whatever the guest does.
_GREETING_SECONDS = 30.0  # multiplied by patience: what it starts on may be slow, or busy
_ENDING_SECONDS = 1.0
"""What a QEMU that has hung up has to end: one that has not only says nothing, and it is we who end it."""
_READY_SECONDS = 30.0  # multiplied by patience: the guest computes
_FIRMWARE_TIMES = 2  # twice as much where it reads its kernel by itself, and unpacks that
_SAVE_SECONDS = 60.0  # multiplied by patience: its memory is read and written, and the disk may be slow
_STOP_SECONDS = 5.0

_GONE = "DeviceNotFound"
"""QMP's class of error for a device that there is not (qapi/error.json)."""

CHANNELS = ("qmp", "console", "agent", "qtest")
"""What leads from the harness into a machine: a socket pair each."""

# What a guest's init says, at the end of a line: a reset may have left a shell's prompt at its beginning.
UP = re.compile(rb"(?m:(?<!NOT )READY\r?$)|NOT READY\b[^\n]*\n|Kernel panic[^\n]*\n|Initramfs unpacking failed[^\n]*\n")
_NO_ROOM = b"Initramfs"
_TOO_MUCH_MEMORY = (
    "the guest's memory and what lies above it are more than its processor can address (512 GiB under emulation):"
    " give it less `--memory`\n"
)


def crowding(config: MachineConfig, processors: int) -> str:
    """What to say of a guest that is slow for having more processors than its host, which emulates each; else nothing.

    Every one of them waits for the others as the kernel brings them up.
    """
    if config.accelerator == "kvm" or config.cpus <= processors:
        return ""
    return (
        f"{counted(config.cpus, 'processor')} emulated on {processors} of this machine make it slow:"
        f" try fewer `--cpus`, or {SCALE_VARIABLE}"
    )


class Emulator(Protocol):
    """The facts of a QEMU that a machine needs (`vfio_user.harness.qemu.Qemu`)."""

    @property
    def argv(self) -> Sequence[str]:
        """The command that runs QEMU, before any option: its path, and what a host puts before that."""


class MachineError(UserError):
    """QEMU or its guest did not come up, or is gone. The evidence is the last lines of whoever failed."""


@dataclass(frozen=True)
class Launch:
    """One start of a QEMU: the hardware, what it boots, and where its logs go.

    `folder` receives NAME.console.log, NAME.qmp.log, NAME.qemu.log, NAME.command and, where `traced` has patterns of
    QEMU's trace events, NAME.trace.log. `monitor` is a path at which QEMU listens for a second QMP client. `memory` is
    the guest's, where it is to be saved or was saved apart from its devices; the machine closes it.
    """

    config: MachineConfig
    start: Start
    folder: Path
    name: str = "guest"
    monitor: Path | None = None
    traced: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    kill_signal: int = signal.SIGKILL
    memory: MemoryFile | None = None

    def log(self, kind: str) -> Path:
        """The file for one of its logs."""
        return self.folder / f"{self.name}.{kind}.log"


class Machine:
    """One QEMU, from its start to `stop`. A context manager.

    `beside` has the other programs of the run: one that died first is why QEMU did.

    Raises:
        MachineError: QEMU does not start; nothing of it is open then, whatever went wrong.
        ServerFailure: it does not for what one of its devices' servers did; likewise.
    """

    def __init__(self, qemu: Emulator, launch: Launch, *, beside: Callable[[], Iterable[Child]] = tuple) -> None:
        self.name = launch.name
        self._beside = beside
        self.config = launch.config
        self.attached = launch.start.attached
        self.patience = patience(launch.config.accelerator)
        self._ready_seconds = _READY_SECONDS * self.patience * (_FIRMWARE_TIMES if launch.start.firmware else 1)
        self.folder = launch.folder
        self._kill_signal = launch.kill_signal
        self._memory = launch.memory
        with ExitStack() as opened:
            if self._memory is not None:
                opened.callback(self._memory.close)
            local = self._start(qemu, launch, opened)
            opened.callback(self.child.stop, 0)
            self._channels = {os.fstat(end.fileno()).st_ino: channel for channel, end in local.items()}
            self.console = Console(local["console"], launch.log("console"))
            opened.callback(self.console.close)
            self.qtest = QTest(local["qtest"])
            self.agent_connection = local["agent"]
            try:
                limit = _GREETING_SECONDS * self.patience
                self.qmp = Qmp(local["qmp"], log=launch.log("qmp"), name=self.name, limit=limit)
            except QmpLost as error:
                ended_by_itself = self.child.wait(_ENDING_SECONDS) is not None
                self.child.stop(0)
                self.console.close()
                if not ended_by_itself:
                    raise MachineError(str(error), evidence=self.child.last_words()) from error
                raise self._ended(" at its start", self._refused()) from error
            opened.callback(self.qmp.close)
            self.mishaps = Mishaps(self.name, self.console, self.qmp.events)
            opened.pop_all()

    def _start(self, qemu: Emulator, launch: Launch, opened: ExitStack) -> dict[str, socket.socket]:
        """Start the process; our ends of its channels, which `opened` closes."""
        local: dict[str, socket.socket] = {}
        with ExitStack() as remote:
            wires: dict[str, int] = {}
            for channel in CHANNELS:
                near, far = socket.socketpair()
                local[channel] = opened.enter_context(near)
                wires[channel] = remote.enter_context(far).fileno()
            trace = launch.log("trace") if launch.traced else None
            memory = launch.memory.fd if launch.memory is not None else None
            wiring = Wiring(**wires, monitor=launch.monitor, trace=trace, traced=launch.traced, memory=memory)
            self.argv = command_line(qemu.argv, launch.config, wiring, launch.start, self.name)
            self.child = Child(
                self.name,
                self.argv,
                log=launch.log("qemu"),
                pass_fds=[*wires.values(), *([memory] if memory is not None else [])],
                environment=launch.environment,
                folder=launch.folder,
                take_core=coredump.take,
            )
        return local

    # -- its life -------------------------------------------------------------------------------------------------

    def wait_ready(self, *, since: int = 0) -> None:
        """Wait until the guest's init has said READY on the console, in what came after byte `since`.

        Raises:
            MachineError: not in time, which is less where something is wrong with a server; or the kernel panicked or
                QEMU is gone, which is told at once; with the console's last lines.
        """
        wait = self._wait(Deadline(self._ready_seconds))
        while True:
            try:
                found = self.console.wait_for(UP.pattern, wait.turn, since=since)[0]
                break
            except ConsoleError as error:
                if not self.console.has_ended and wait.remaining:
                    continue
                self.check(wait=1.0)
                hint = "" if wait.was_in_vain else crowding(self.config, os.cpu_count() or 1)
                why = wait.without("the guest did not come up")
                raise MachineError(why, hint=hint, evidence=error.evidence) from error
        if not found.startswith(b"READY"):
            said = found.decode(errors="replace").strip()
            more = "is there room for the image in the guest's memory? `--memory` gives it more"
            hint, lines = more if found.startswith(_NO_ROOM) else "", self.console.last_lines()
            raise MachineError(f"the guest did not come up: {said}", hint=hint, evidence=lines)
        self.mishaps.begin()

    def save(self, path: Path, memory: Path | None = None) -> None:
        """Pause the guest and write its memory and devices to `path`; with `memory` its memory there, as it is.

        The latter is for a machine that was started with a memory of ours.

        Raises:
            MachineError: QEMU refuses, or is gone.
            OSError: the memory cannot be written.
        """
        self.qmp.command("stop")
        self._set_up_migration(without_memory=memory is not None)
        self.qmp.command("migrate-set-parameters", max_bandwidth=1 << 40)
        self.qmp.command("migrate", uri=f"file:{path}")
        self._await_migration(f"saved to {path}")
        if memory is not None:
            assert self._memory is not None
            self._memory.keep(memory)

    def load(self, path: Path) -> None:
        """Read what `save` wrote into a machine started with `restore`, which has its memory where that was apart.

        Raises:
            MachineError: QEMU refuses; it has its reason.
        """
        self._set_up_migration(without_memory=self._memory is not None)
        if self._memory is not None:
            try:
                self._memory.await_filled()
            except OSError as error:
                raise MachineError(f"the guest's memory could not be read: {error}") from error
            self._memory.close()
        self.qmp.execute("migrate-incoming", {"uri": f"file:{path}", "exit-on-error": False})
        self._await_migration(f"restored from {path}")

    def go_on(self) -> None:
        """Let the guest run that was loaded."""
        self.mishaps.begin()
        self.qmp.command("cont")

    def stop(self) -> None:
        """End QEMU, softly if it still listens; a second call does nothing."""
        self.agent_connection.close()
        if self._memory is not None:
            self._memory.close()
        if self.child.running:
            with suppress(QmpLost, QmpError, QmpTimeout):
                self.qmp.command("quit", 2.0)
                self.child.wait(_STOP_SECONDS)
        self.qmp.close()
        self.qtest.close()
        self.console.close()  # before the wait for the process: QEMU flushes its consoles when it ends
        self.child.stop()

    def kill(self) -> None:
        """End QEMU as a crash would."""
        self.child.kill(self._kill_signal)
        self.child.wait(_STOP_SECONDS)

    def abandon(self) -> None:
        """End QEMU as a crash would, since nobody needs it any more: its end is nothing that went wrong."""
        self.child.was_stopped |= self.child.running
        self.kill()

    def left_behind(self) -> list[str]:
        """The leftovers after `stop`: nothing, unless this module is wrong."""
        left = [f"the socket {self.name}.{self._channels[inode]}" for inode in open_sockets() & self._channels.keys()]
        return left + ([f"QEMU {self.name} (process {self.child.pid})"] if self.child.group_is_alive() else [])

    def unwritten(self) -> OSError | None:
        """Why not all that was said is in the logs, where that is so; it names the file."""
        return next((log.failure for log in (*self.console.logs, self.qmp.log) if log.failure), None)

    def check(self, wait: float = 0.0) -> None:
        """Raise `MachineError` with QEMU's last words when it is gone, or goes within `wait` seconds.

        Raises:
            ServerFailure: instead, where a server of the run had died before it.
        """
        if self.child.wait(wait) is not None:
            raise self._ended()

    def _refused(self) -> str:
        """The reason why QEMU does not have a device that it was started with, where the device's server is to blame.

        QEMU says `-device {...}: why`.
        """
        head, _, why = reason(tail(self.child.log)).rpartition("}: ")
        refused = (attached for attached in self.attached if f'"id":"{attached.identity}"' in head)
        return next((why for attached in refused if attached.blames_server(why)), "")

    def _ended(self, when: str = "", refused: str = "") -> MachineError | ServerFailure:
        """What to say of it: a program of the run that died first is the one to look at, so it is named first."""
        fate = f"{fate_of(self.child)}{when}"
        by = self.child.ended
        first = first_to_end_badly(self._beside(), by) if by is not None else None
        if first is not None and first is not self.child:
            return ServerFailure.of(f"{told_end(first)}; then QEMU {fate}", first)
        if refused:
            return ServerFailure.of(f"QEMU refuses a device: {refused}", self.child)
        said = tail(self.child.log)
        more = _TOO_MUCH_MEMORY if "phys-bits too low" in said else ""
        return MachineError(end_of("QEMU", fate, said), hint=more, evidence=self.child.last_words())

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- its parts ------------------------------------------------------------------------------------------------

    def attach(
        self,
        attachment: Attachment,
        limit: float | Deadline = 30.0,
        *,
        unless: Callable[[], None] | None = None,
    ) -> None:
        """Plug in a device, with what it needs; nothing of one that is refused is left.

        `unless` is called while QEMU waits for its server, and raises when that will never answer.

        Raises:
            QmpError: QEMU refuses; it has its reason.
            MachineError: QEMU dies of it.
        """
        deadline = Deadline.of(limit)
        removing: list[QmpCommand] = []
        with self._telling_its_end():
            try:
                for needed in attachment.needs:
                    self.qmp.execute(*needed.adding, deadline)
                    removing += [needed.removing] if needed.removing is not None else []
                self.qmp.execute("device_add", attachment.device, deadline, unless=unless)
            except QmpError:
                for command in reversed(removing):
                    self.qmp.execute(*command, deadline)
                raise

    def detach(self, attachment: Attachment, limit: float | Deadline = 30.0) -> None:
        """Unplug a device, and wait until the guest has let it go; what it needed goes, too.

        One that has not been waited for to the end may be unplugged again, whether it has gone since or not.

        Raises:
            GuestCrash: it never will.
            QmpError: QEMU refuses; it has its reason.
        """
        deadline = Deadline.of(limit)
        with self._telling_its_end():
            try:
                self.qmp.execute("device_del", {"id": attachment.identity}, deadline)
            except QmpError as refused:
                if refused.kind != _GONE:
                    raise
            else:
                self._await_deleted(attachment.identity, self._wait(deadline))
            for needed in reversed(attachment.needs):
                if needed.removing is not None:
                    self.qmp.execute(*needed.removing, deadline)

    def _await_deleted(self, identity: str, wait: Wait) -> None:
        is_there = True
        while is_there:
            try:
                self.qmp.events.take(
                    "DEVICE_DELETED", {"device": identity}, Deadline(wait.turn), unless=self.mishaps.check
                )
                is_there = False
            except QmpTimeout as error:
                if not wait.remaining:
                    came = str(error).rpartition("; ")[2]
                    raise QmpTimeout(f"{wait.without(f'no DEVICE_DELETED of {identity}')}; {came}") from None

    def _wait(self, deadline: Deadline) -> Wait:
        """A wait for the guest, beside all programs of the run."""
        return Wait(deadline, self.patience, lambda: first_trouble(self._beside()))

    @contextmanager
    def _telling_its_end(self) -> Iterator[None]:
        """A QEMU that is gone says why, instead of that its QMP connection has ended."""
        try:
            yield
        except QmpLost:
            self.check(wait=_STOP_SECONDS)
            raise

    def ssh_port(self) -> int:
        """The host's TCP port that leads to the guest's SSH server."""
        text = self.qmp.human("info usernet")
        found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s", text)
        if found is None:
            raise MachineError("QEMU forwards no port to the guest", hint=text)
        return int(found[1])

    def _set_up_migration(self, *, without_memory: bool) -> None:
        wanted = {"events": True, "mapped-ram": not without_memory, "x-ignore-shared": without_memory}
        capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
        self.qmp.command("migrate-set-capabilities", capabilities=capabilities)
        self.qmp.events.forget("MIGRATION")  # of one that came to nothing before

    def _await_migration(self, done: str) -> None:
        deadline = Deadline(_SAVE_SECONDS * self.patience)
        while True:
            status = self.qmp.wait_event("MIGRATION", deadline)["data"]["status"]
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                reason = self.qmp.command("query-migrate").get("error-desc", status)
                raise MachineError(f"the guest could not be {done}: {reason}", evidence=self.child.last_words(5))


def open_sockets() -> set[int]:
    """The inodes of the sockets that this process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    return found
