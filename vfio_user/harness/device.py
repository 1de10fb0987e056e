"""What can be plugged into a guest, as people name it: ours by its name, anybody's by a command line, QEMU's own."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from userdev.errors import UserError
from userdev.process import require_program
from userdev.serving.catalogue import perhaps
from vfio_user.harness.cache import cache_dir
from vfio_user.harness.family import VFIO_USER, Family, devices, family_of, family_of_driver
from vfio_user.harness.hosts.host import LOCAL, Host
from vfio_user.harness.scratch import checked_socket_path

SOCKET = "{socket}"
HOST = "{host}"
SCRATCH = "{scratch}"
_IN_QEMU = "qemu:"
_PROPERTIES = re.compile(r"\s*\[([\w-]+=[^\[\]]*)\]\s*$")
_UNCLOSED = re.compile(r"\s\[[\w-]+=[^\[\]]*$")
_SWITCHES = {"on": True, "true": True, "off": False, "false": False}
_HOW = (
    "qemu:NAME for a device model of QEMU, MODULE:CLASS for one of yours, vhost-user:MODULE:CLASS for a virtio one,"
    " or a server's command line with {socket}"
)


class UnknownDevice(UserError):
    """The name of no device of any protocol."""


@dataclass(frozen=True)
class Device:
    """What to plug into a guest. Exactly one of `served`, `command` and `driver` is set.

    `served` names a device of ours, `command` is the command line of another server with {socket} where its socket's
    path goes, `driver` is a device model inside QEMU. `options` are further arguments of our server's command line;
    `properties` those of the QEMU device. {host} in command or options is the name of the host that it is started on,
    {scratch} a folder that is there until the lab ends.
    `family` is the protocol that a server speaks: what the QEMU device has to do with that the property `driver` names.
    `registers` says whose registers another server's are, for traces: as `interpose --registers` takes it.
    """

    served: str = ""
    command: str = ""
    driver: str = ""
    options: tuple[str, ...] = ()
    properties: Mapping[str, object] = field(default_factory=dict)
    family: Family = VFIO_USER
    registers: str = ""

    @property
    def register_names(self) -> str:
        """Where a trace has the names of its registers from; nothing where nobody knows them."""
        return self.registers or (self.served if self.family.names_registers else "")

    @property
    def name(self) -> str:
        """A short name for files and messages."""
        return self.served.rpartition(":")[2] or self.driver or Path(shlex.split(self.command)[0]).name

    @property
    def keeps_image_in_scratch(self) -> bool:
        """Whether it is a device of ours whose disk image is in {scratch}, and does not go along in a migration."""
        words = [word for option in self.options for word in option.split("=", 1)]
        images = [value for name, value in pairwise(words) if name == "--image"]
        return any(SCRATCH in image for image in images) and ("--migrate-image", "yes") not in pairwise(words)

    def as_dict(self) -> dict[str, object]:
        """The fields that say something, by name; the protocol by its own."""
        said = {name: value for name, value in vars(self).items() if value and name != "family"}
        return {**said, "protocol": self.family.name}

    @property
    def files(self) -> tuple[Path, ...]:
        """Programs of our cache in its command: what `vfio-user reference` has built."""
        return tuple(path for path in map(Path, shlex.split(self.command)) if path.is_relative_to(cache_dir()))

    @property
    def is_ours(self) -> bool:
        """Whether its command is one of this project's."""
        return bool(self.served) or self.family.package in shlex.split(self.command)

    def require_program(self) -> None:
        """See to it that the program of a server of somebody's own is on this machine.

        Raises:
            UserError: it is not.
        """
        if self.command and "{" not in (program := shlex.split(self.command)[0]):
            require_program(program)

    @classmethod
    def parse(cls, text: str) -> Device:
        """From "edu" or "edu --option value", "package.module:Class" (virtio: "vhost-user:package.module:Class"),
        "qemu:edu", or a server's command line with {socket} in it.

        Each may have properties of the QEMU device behind it, "edu [x-msg-timeout=500,ats=on]". `driver` says which
        device that is, as for a server of yours behind vhost-user: "./server {socket} [driver=vhost-user-blk-pci]".

        Raises:
            UserError: it is none of these.
        """
        if behind := _PROPERTIES.search(text):
            properties = _properties(behind[1])
            device = cls.parse(text[: behind.start()])
            known = family_of_driver(str(properties.get("driver", "")))
            return replace(device, properties=properties, family=known or device.family)
        if unclosed := _UNCLOSED.search(text):
            raise UserError(f"a device's properties have no end: {unclosed[0].strip()}", hint="put ] behind the last")
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UserError(f"the device cannot be read: {error}: {text}") from None
        if SOCKET in text:
            return cls(command=text)
        if text.startswith(_IN_QEMU):
            driver = text.removeprefix(_IN_QEMU)
            if not driver:
                raise UserError("qemu: needs the name of a QEMU device after it", hint="for example qemu:edu")
            return cls(driver=driver)
        if not words:
            raise UserError("a device needs a name", hint=_HOW)
        name, *options = words
        family = family_of(name)
        if family is None:
            near = perhaps(name, devices())
            is_line = bool(options) and not options[0].startswith("-")  # as of a program with words of its own
            if "/" in text or "{" in text or (shutil.which(name) and (is_line or not near)):
                what = f"the server's command says nowhere what to listen on: {text}"
                raise UserError(what, hint=f"put {SOCKET} where the path belongs; or a device: {', '.join(devices())}")
            hint = f"{near}there are: {', '.join(devices())}; or {_HOW}"
            raise UnknownDevice(f"there is no device called {name!r}", hint=hint)
        return cls(served=name, options=tuple(options), family=family)


def _properties(text: str) -> dict[str, object]:
    """Parse NAME=VALUE,NAME=VALUE: numbers (0x is hexadecimal), on and off, else words."""
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


def server_command(device: Device, path: Path, fds: Sequence[int | str] = (), host: Host = LOCAL) -> list[str]:
    """The command line of a device's server on a host, for a socket at `path` or an inherited one."""
    if device.command:
        checked_socket_path(path)
        return shlex.split(_filled_in(device.command, host.name, shlex.quote(str(path)), shlex.quote(str(path.parent))))
    inherited = [argument for fd in fds for argument in ("--fd", str(fd))]
    options = [_filled_in(option, host.name, str(path), str(path.parent)) for option in device.options]
    where = inherited or ["--socket-path", str(path)]
    return device.family.serving(device.served, where, options, host.python)


def command_line(device: Device) -> str:
    """The same in one line, with {socket} in it, of a device that is none of QEMU's own.

    Raises:
        UserError: it is one.
    """
    if device.driver:
        what = f"{_IN_QEMU}{device.driver} is inside QEMU, and has no server"
        raise UserError(what, hint="give a device of `serve`")
    return device.command or shlex.join(server_command(device, Path(SOCKET)))


def _filled_in(text: str, host: str, socket: str, scratch: str) -> str:
    return text.replace(SOCKET, socket).replace(HOST, host).replace(SCRATCH, scratch)
