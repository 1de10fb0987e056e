"""Device servers as child processes: ours by the name of a device, anybody's by a command line."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path

from userdev.errors import UserError
from vfio_user.harness.cache import cache_dir
from vfio_user.harness.deadline import Deadline
from vfio_user.harness.hosts.host import Host, LocalHost
from vfio_user.harness.process import Child
from vfio_user.harness.scratch import Scratch, checked_socket_path, listen

_SOCKET = "{socket}"
_HOST = "{host}"
_IN_QEMU = "qemu:"
_PROPERTIES = re.compile(r"\s*\[([\w-]+=[^\[\]]*)\]\s*$")
_SWITCHES = {"on": True, "true": True, "off": False, "false": False}
_HOW = "qemu:NAME for a device model of QEMU, MODULE:CLASS for one of yours, or a server's command line with {socket}"


@dataclass(frozen=True)
class Device:
    """What to plug into a guest. Exactly one of `served`, `command` and `driver` is set.

    `served` names a device of ours, `command` is the command line of another server with {socket} where its socket's
    path goes, `driver` is a device model inside QEMU. `options` are further arguments of our server's command line;
    `properties` those of the QEMU device. {host} in command or options is the name of the host that it is started on.
    """

    served: str = ""
    command: str = ""
    driver: str = ""
    options: tuple[str, ...] = ()
    properties: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A short name for files and messages."""
        return self.served.rpartition(":")[2] or self.driver or Path(shlex.split(self.command)[0]).name

    @property
    def files(self) -> tuple[Path, ...]:
        """Programs of our cache in its command: what `vfio-user reference` has built."""
        return tuple(path for path in map(Path, shlex.split(self.command)) if path.is_relative_to(cache_dir()))

    @property
    def is_ours(self) -> bool:
        """Whether its command is one of this project's."""
        return bool(self.served) or "vfio_user" in shlex.split(self.command)

    @classmethod
    def parse(cls, text: str) -> Device:
        """From "edu" or "edu --option value", "package.module:Class", "qemu:edu", or a server's command line with
        {socket} in it. Each may have properties of the QEMU device behind it: "edu [x-msg-timeout=500,ats=on]". Raises
        `UserError`.
        """
        if behind := _PROPERTIES.search(text):
            return replace(cls.parse(text[: behind.start()]), properties=_properties(behind[1]))
        if _SOCKET in text:
            return cls(command=text)
        if text.startswith(_IN_QEMU):
            driver = text.removeprefix(_IN_QEMU)
            if not driver:
                raise UserError("qemu: needs the name of a QEMU device after it", hint="for example qemu:edu")
            return cls(driver=driver)
        words = shlex.split(text)
        if not words:
            raise UserError("a device needs a name", hint=_HOW)
        name, *options = words
        if ":" not in name and name not in devices():
            raise UserError(f"there is no device called {name!r}", hint=f"there are: {', '.join(devices())}; or {_HOW}")
        return cls(served=name, options=tuple(options))


def _properties(text: str) -> dict[str, object]:
    """From NAME=VALUE,NAME=VALUE: numbers (0x is hexadecimal), on and off, else words."""
    found: dict[str, object] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value):
            raise UserError(f"{item.strip()!r} is no property of a QEMU device", hint="for example x-msg-timeout=500")
        try:
            found[name] = int(value, 0)
        except ValueError:
            found[name] = _SWITCHES.get(value, value)
    return found


def devices() -> list[str]:
    """The names of the devices that `vfio-user serve` can serve."""
    return sorted(point.name for point in entry_points(group="vfio_user.devices"))


class ServerError(UserError):
    """A device server did not come up, or died. The hint has the last lines of its log."""


class DeviceServer:
    """A server process and the path of its socket, at which a client may connect at once.

    Ours inherits a socket that listens already. Another is waited for, without connecting to it: many servers take
    only one client. Raises `ServerError`.
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
    ) -> None:
        self.name = name
        self.device = device
        self.path = scratch.socket_path(f"{name}.sock")
        self.log = folder / f"{name}.server.log"
        with ExitStack() as inherited:
            fds: tuple[int, ...] = ()
            if device.served:
                listener = inherited.enter_context(listen(self.path))
                fds = (listener.fileno(),)
            own_socket = self.path if device.command else None
            self.argv = host.command(server_command(device, self.path, fds, host.name), own_socket)
            self.child = Child(
                name, self.argv, log=self.log, pass_fds=fds, environment=scratch.environment, leaves_core=True
            )
        try:
            self._await_start(host, Deadline(limit))
        except BaseException:
            self.child.stop()
            raise

    def check(self, wait: float = 0.0) -> None:
        """Raise `ServerError` with its last words when it has ended, or ends within `wait` seconds."""
        if self.child.wait(wait) is not None:
            raise ServerError(
                f"the device server {self.name!r} {self.child.fate()}", hint=f"its last lines:\n{self.last_words()}"
            )

    def last_words(self) -> str:
        return self.child.last_words()

    def kill(self) -> None:
        """End it as a crash would."""
        self.child.signal(9)
        self.child.wait(5)

    def stop(self) -> None:
        """End it, softly first; a second call does nothing."""
        self.child.stop()

    def _await_start(self, host: Host, deadline: Deadline) -> None:
        try:
            host.await_start(self.child)
        except UserError as error:
            raise ServerError(
                f"the device server {self.name!r} did not start on {host.name}: {self.child.last_words(1)}",
                hint="its program has to be on that host already" if self.device.command else self.last_words(),
            ) from error
        while self.device.command and not host.listens(self.child, self.path):
            self.check()
            if deadline.passed:
                raise ServerError(
                    f"the device server {self.name!r} does not listen on {self.path} after {deadline.seconds:g} s",
                    hint=f"its last lines:\n{self.last_words()}",
                )
            time.sleep(0.01)  # the kernel has no event for listen(2)


def server_command(device: Device, path: Path, fds: Sequence[int | str] = (), host: str = LocalHost.name) -> list[str]:
    """The command line of a device's server on a host, for a socket at `path` or an inherited one."""
    if device.command:
        checked_socket_path(path)
        return shlex.split(device.command.replace(_SOCKET, shlex.quote(str(path))).replace(_HOST, host))
    inherited = [argument for fd in fds for argument in ("--fd", str(fd))]
    options = (option.replace(_HOST, host) for option in device.options)
    where = inherited or ["--socket-path", str(path)]
    return [sys.executable, "-P", "-m", "vfio_user", "serve", device.served, *where, *options]
