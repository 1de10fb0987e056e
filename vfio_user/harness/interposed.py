"""A device server with an interposer before it: what a guest is connected to is the interposer."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vfio_user.harness.artifacts import write_text
from vfio_user.harness.hosts.host import Host, LocalHost
from vfio_user.harness.process import Child
from vfio_user.harness.scratch import Scratch, listen
from vfio_user.harness.server import Device, DeviceServer, server_command
from vfio_user.interposer.control.client import InterposerControl

Scenario = Path | Mapping[str, Any]
"""What is to happen to messages (docs/interposer.md, "Faults"): a file, or what such a file would hold."""


@dataclass(frozen=True)
class Interposition:
    """What an interposer does beside forwarding; docs/interposer.md tells what each means."""

    faults: Scenario | None = None
    keep_alive: bool = False
    """Start the server, and another whenever it is gone: the guest does not notice."""
    msg_timeout: float | None = None
    """Seconds that the client waits for a reply, where that is not QEMU's default: its x-msg-timeout."""
    capture_dma: bool = False
    capture_interrupts: bool = False

    @classmethod
    def of(cls, wanted: Interpose) -> Interposition | None:
        """From what callers may say: whether at all, a scenario, or everything."""
        if isinstance(wanted, Interposition):
            return wanted
        if isinstance(wanted, bool):
            return cls() if wanted else None
        return cls(faults=wanted)

    def options(self, folder: Path, name: str) -> list[str]:
        """For the command line; a scenario that is no file yet is written into `folder`, as evidence."""
        flags = {"--capture-dma": self.capture_dma, "--capture-interrupts": self.capture_interrupts}
        options = [flag for flag, wanted in flags.items() if wanted]
        if self.msg_timeout is not None:
            options += ["--msg-timeout", str(self.msg_timeout)]
        if isinstance(self.faults, Mapping):
            file = folder / f"{name}.faults.yaml"
            write_text(file, yaml.safe_dump(dict(self.faults), sort_keys=False))
            return [*options, "--faults", str(file)]
        return [*options, "--faults", str(self.faults)] if self.faults is not None else options


Interpose = bool | Scenario | Interposition
"""How to ask for an interposer: True, a scenario, or an `Interposition`."""


class InterposedServer(DeviceServer):
    """`path` is where a client connects, `server_path` where the server listens, `control` the interposer's commands.

    The interposer inherits sockets that listen already. One that keeps its server alive starts it as well: then `child`
    is the interposer too. Raises `ServerError`.
    """

    def __init__(
        self,
        device: Device,
        scratch: Scratch,
        folder: Path,
        name: str,
        *,
        limit: float = 30.0,
        host: Host = LocalHost(),  # noqa: B008  # frozen
        trace: bool = False,
        interposition: Interposition = Interposition(),  # frozen
    ) -> None:
        self.interposition = interposition
        self.host_name = host.name
        if interposition.keep_alive:
            self.name, self.device, self.path = name, device, scratch.socket_path(f"{name}.sock")
            self.log = folder / f"{name}.interposer.log"
        else:
            super().__init__(device, scratch, folder, name, limit=limit, host=host)
        self.server_path = self.path
        self.shares_memory = host.shares_memory
        self.path = scratch.socket_path(f"{name}.front")
        self.control_path = scratch.socket_path(f"{name}.control")
        self.trace = folder / f"{name}.trace" if trace else None
        try:
            with ExitStack() as inherited:
                fds = [inherited.enter_context(listen(path)).fileno() for path in (self.path, self.control_path)]
                options = interposition.options(folder, name)
                self.interposer_argv = host.command([*self._command(*fds), *options])
                self.interposer = Child(
                    f"{name}.interposer",
                    self.interposer_argv,
                    log=folder / f"{name}.interposer.log",
                    pass_fds=fds,
                    environment=scratch.environment,
                    leaves_core=True,
                )
            host.await_start(self.interposer)
        except BaseException:
            if not interposition.keep_alive:
                super().stop()
            raise
        if interposition.keep_alive:
            self.child, self.argv = self.interposer, self.interposer_argv
        self.control = InterposerControl(self.control_path)

    @property
    def is_ours(self) -> bool:
        """Whether the server is one of this project's: its saved state is the same bytes whenever it is the same."""
        return bool(self.device.served)

    def kill(self) -> None:
        """End the server as a crash would."""
        if self.interposition.keep_alive:
            self.control.call("signal", signal="SIGKILL")
        else:
            super().kill()

    def stop(self) -> None:
        self.control.close()
        self.interposer.stop()
        super().stop()
        for path in (self.path, self.server_path, self.control_path):
            path.unlink(missing_ok=True)

    def _command(self, front: int, control: int) -> list[str]:
        command = [sys.executable, "-P", "-m", "vfio_user", "interpose", "--listen", f"fd:{front}"]
        if self.interposition.keep_alive:
            command += ["--keep-alive", "--server-command", self.device.command or self._served()]
        else:
            command += ["--connect", str(self.server_path)]
            if self.shares_memory:  # then its processes are this machine's
                command += ["--server-pid", str(self.child.pid)]
        command += ["--control", f"fd:{control}"]
        return command + (["--trace", str(self.trace)] if self.trace else [])

    def _served(self) -> str:
        """Our server's command line, with {fd} for the socket that it inherits."""
        return shlex.join([*server_command(self.device, self.server_path, ("{fd}",), self.host_name)])
