"""What a whole run says of its guests: a cell of a matrix. Each test's own words go before it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from userdev.errors import UserError
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.device import SOCKET, Device
from vfio_user.harness.family import VFIO_USER, Family
from vfio_user.harness.interposition import Interposition

CELL_VARIABLE = "VFIO_USER_CELL"
"""Has the cell of the tests that a run starts: avocado takes no parameters beside variants."""

CELL_PARAMETER = "cell"
"""The parameter of avocado's by which a variant has a cell: its text (`Cell.text`)."""


@dataclass(frozen=True)
class Cell:
    """The QEMU, hardware and servers of labs, where their tests ask for nothing else."""

    qemu: str = ""
    """A path, a command or a name; without one `ensure_qemu` looks for it."""
    interpose: bool = False
    """Whether there is an interposer before every server that can have one."""
    hardware: HardwareOptions = field(default_factory=HardwareOptions)
    servers: Mapping[str, str] = field(default_factory=dict)
    """Other servers of devices, by the device's name: command lines with {socket}."""
    dialect: str = ""
    """vfio-user's, that our servers speak; without one what they speak by themselves."""
    device: str = "edu"
    """The device that tests of any server try, as `Device.parse` takes it."""
    trace: bool = False
    """Whether an interposer before every server records every message."""
    capture_dma: bool = False
    """Whether that interposer has DMA done by message, before every server whose protocol has such messages."""
    bundle: str = ""
    """Which tests leave a bundle among their results: `auto` those that fail, `always` all, "" none."""
    bundle_size: int = 0
    """MiB of one at most; 0: the usual."""

    @classmethod
    def of_environment(cls) -> Cell:
        """The one that `exported` has left there; one without a word otherwise."""
        return cls.of_text(os.environ.get(CELL_VARIABLE, ""))

    @classmethod
    def of_text(cls, text: str) -> Cell:
        """The one whose `text` that was; one without a word from nothing."""
        return cls(**json.loads(text)) if text else cls()

    @property
    def text(self) -> str:
        """The whole of it, in a line."""
        return json.dumps(dataclasses.asdict(self))

    def exported(self) -> dict[str, str]:
        """The environment by which processes that are started have it too."""
        return {CELL_VARIABLE: self.text}

    def interposed(self, wanted: Interposition | None, family: Family) -> Interposition | None:
        """The interposer before a server in this cell, for which `wanted` was said; None: there is none."""
        if self.capture_dma and family.keeps_sessions:
            return dataclasses.replace(wanted or Interposition(), capture_dma=True)
        return wanted

    def server_of(self, device: Device) -> Device:
        """The device with the server that it has in this cell.

        One with options is left with ours, whose options they are.
        """
        command = self.servers.get(device.served)
        if command is not None and not device.options:
            other = Device.parse(command)
            properties = {**other.properties, **device.properties}
            registers = device.register_names
            return dataclasses.replace(
                device, served="", command=other.command, properties=properties, registers=registers
            )
        if self.dialect and device.served and device.family is VFIO_USER and _DIALECT not in device.options:
            return dataclasses.replace(device, options=(*device.options, _DIALECT, self.dialect))
        return device

    def tried_by(self, device: Device) -> set[str]:
        """Which of the servers that it names a device has: as `device` or `servers` has their text.

        One of ours is what it is whatever its options.
        """
        named = {text: Device.parse(text) for text in (self.device, *self.servers.values())}
        return {text for text, one in named.items() if (one.served, one.command) == (device.served, device.command)}


_DIALECT = "--dialect"


def parse_servers(texts: Iterable[str]) -> dict[str, str]:
    """Commands by device, from DEVICE=COMMAND.

    Raises:
        UserError: there is no such device, or no {socket} in its command.
    """
    servers = {}
    for text in texts:
        name, equals, command = text.partition("=")
        if not equals or SOCKET not in command:
            raise UserError(
                f"{text!r} names no server of a device", hint=f"--server 'edu=./server {SOCKET}': DEVICE=COMMAND"
            )
        if Device.parse(name) != Device(served=name, family=Device.parse(name).family):
            raise UserError(f"{name!r} is no device's name", hint="one of `vfio-user serve`, without options")
        servers[name] = command
    return servers
