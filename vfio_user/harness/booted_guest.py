"""A guest in a lab: the verbs of a guest, its machine, and the devices plugged into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from userdev.errors import UserError, VerdictError
from vfio_user.harness import hotplug
from vfio_user.harness.agent import AgentGuest
from vfio_user.harness.artifacts import write_text
from vfio_user.harness.attachment import Attachment
from vfio_user.harness.breakpoint import Breakpoint
from vfio_user.harness.command_line import SLOT_MEMORY_64, Place, slot_address
from vfio_user.harness.command_log import SUFFIX, CommandLog
from vfio_user.harness.device import Device
from vfio_user.harness.family import Property, inside_qemu
from vfio_user.harness.guest import Command, Guest, GuestFailure, GuestLost, Job
from vfio_user.harness.guest_spec import GuestSpec
from vfio_user.harness.hosts.host import Host
from vfio_user.harness.interposition import Interpose
from vfio_user.harness.machine import Machine, MachineError
from vfio_user.harness.mishaps import Mishap
from vfio_user.harness.qmp import Qmp, QmpError
from vfio_user.harness.server import DeviceServer, ServerFailure
from vfio_user.harness.timeouts import waited
from vfio_user.harness.troubles import Trouble, first_trouble
from vfio_user.page.names import COLLECTED

if TYPE_CHECKING:
    from vfio_user.harness.image import GuestImage
    from vfio_user.harness.ssh import SshGuest


class ServerStarter(Protocol):
    """Starts a device's server, with an interposer before it where that is wanted: `Lab.serve`."""

    def __call__(self, device: Device, name: str, /, *, interposed: Interpose, host: Host) -> DeviceServer:
        """Start a server whose logs are named by `name`, on `host`.

        Raises:
            ServerError: it does not come up.
        """


MSIX = 0x11
"""The PCI capability's id."""

_BOOT_SECONDS = 30.0  # seconds for the agent's first answer
_PLUG_SECONDS = 15.0
_LAST_EVENTS_SECONDS = 1.0  # for those of a QEMU that has ended
_EJECTED = "; QEMU has it no more: the guest has ejected it, or its server is gone"
_CLASSLESS = "; it has no class, and to such a device Linux gives no addresses: give it one by x-pci-class-code"


@dataclass(frozen=True)
class Plugged:
    """A device in a guest. `address` is its name in the guest's /sys/bus/pci/devices; one inside QEMU has no server.

    `msix`: it has that capability.
    """

    attachment: Attachment
    place: Place
    address: str
    vendor: int
    device: int
    server: DeviceServer | None
    msix: bool = False

    @property
    def identity(self) -> str:
        """QEMU's id of it."""
        return self.attachment.identity

    @property
    def sysfs(self) -> str:
        """Its folder in the guest."""
        return f"/sys/bus/pci/devices/{self.address}"


class BootedGuest(Guest):
    """A running guest whose agent answers. Every verb goes through the agent; `ssh` opens the other way."""

    def __init__(
        self,
        machine: Machine,
        spec: GuestSpec,
        *,
        serve: ServerStarter,
    ) -> None:
        super().__init__(
            patience=machine.patience, console=lambda: self.machine.console.last_lines(), look=self._first_trouble
        )
        self.machine = machine
        self.spec = spec
        self.devices: list[Plugged] = []
        self._commands = CommandLog(_commands_of(machine))
        self.agent = AgentGuest(
            machine.agent_connection,
            patience=machine.patience,
            console=self._console,
            check=self._check,
            look=self._look,
            log=self._commands,
        )
        self._listen()
        self._serve = serve
        self._count = 0
        self._coming: DeviceServer | None = None
        """That of the device that is being plugged in."""
        self._used: dict[int, int] = {}
        """When each slot got its last device, in devices."""
        self._ssh: list[SshGuest] = []

    @property
    def name(self) -> str:
        """The machine's name, which names its logs; another after each migration."""
        return self.machine.name

    @property
    def host(self) -> Host:
        """The host that it runs on now."""
        return self.spec.host

    @property
    def image(self) -> GuestImage:
        """The guest image that it was booted from."""
        return self.spec.image

    @property
    def qmp(self) -> Qmp:
        """The QMP connection to the QEMU that the guest is in now."""
        return self.machine.qmp

    @property
    def device(self) -> Plugged:
        """The first of its devices."""
        if not self.devices:
            raise UserError(f"the guest {self.name!r} has no device", hint="plug one in, or boot it with device=")
        return self.devices[0]

    # -- devices --------------------------------------------------------------------------------------------------

    def plug(
        self,
        device: Device | str,
        *,
        server: DeviceServer | None = None,
        interpose: Interpose = False,
        **properties: Property,
    ) -> Plugged:
        """Plug in a device and wait until the guest can use it.

        `device` is what `Device.parse` takes. A server that runs already can be given as `server`; before one that is
        started here `interpose` puts an interposer: True, a scenario of faults, or an `Interposition`. `properties` are
        those of the QEMU device, with underscores for dashes (`x_msg_timeout=1000`).

        Raises:
            ServerFailure: the server died, or QEMU refuses what it serves.
            ServerError: it does not come up.
            QmpError: QEMU refuses what was asked for.
            GuestFailure: the guest does not see the device, or has no room for it.
        """
        wanted = device if isinstance(device, Device) else Device.parse(device)
        slot = self._free_slot()
        identity = f"{self.name}-dev{self._count}"
        self._count += 1
        if not wanted.driver and server is None:
            server = self._serve(wanted, f"{identity}-{wanted.name}", interposed=interpose, host=self.host)
        attachment = attachment_of(wanted, identity, server, slot, properties)
        try:
            self.machine.attach(attachment, unless=server.check if server is not None else None)
        except UserError as error:
            if server is not None:
                server.check(wait=1.0)  # the cause, if it is one
                if isinstance(error, QmpError) and attachment.blames_server(error.description):
                    raise server.refused(error.description) from error
                if server.last_words():  # as where it is the interposer that starts the server, again and again
                    error.add_note(f"{server.child.name}, last lines:\n{server.last_words()}")
            raise
        return self._plugged(attachment, wanted, slot, f"{slot_address(slot)}/????:??:??.?", server)

    def adopt(self, attachment: Attachment, device: Device, address: str, server: DeviceServer | None) -> Plugged:
        """Take a device for one of this guest's that was at an address of the root bus from the start."""
        self._count += 1
        return self._plugged(attachment, device, address, address, server)

    def _plugged(
        self, attachment: Attachment, device: Device, place: Place, pattern: str, server: DeviceServer | None
    ) -> Plugged:
        self._coming = server
        try:
            seen = self.call(hotplug.wait_for_device, pattern, _PLUG_SECONDS * self.patience, timeout=_PLUG_SECONDS + 5)
        finally:
            self._coming = None
        if "missing" in seen:
            raise GuestFailure(
                f"the guest does not see {device.name!r} at {place} after {waited(_PLUG_SECONDS, self.patience)}:"
                f" {seen['missing']}{self._why_unseen(attachment.identity)}",
                evidence=self.evidence(),
            )
        if seen["homeless"]:
            raise GuestFailure(
                f"the guest has no address for {', '.join(seen['homeless'])} of {device.name!r} at {place};"
                f" {self._room(place)}",
                evidence=self.evidence(),
            )
        plugged = Plugged(
            attachment, place, seen["address"], seen["vendor"], seen["device"], server, MSIX in seen["capabilities"]
        )
        self.devices.append(plugged)
        return plugged

    def _room(self, place: Place) -> str:
        """What there is for BARs at a place."""
        if isinstance(place, str):
            return "a machine of QEMU's has about 1 GiB for BARs that are not of 64 bits"
        slot = self.machine.config.slot_memory
        return (
            f"each of {self.machine.config.slots} slots has {SLOT_MEMORY_64} MiB for prefetchable BARs of 64 bits and"
            f" {slot} MiB for all others, where one of half that size surely fits"
        )

    def _why_unseen(self, identity: str) -> str:
        """What QEMU's view of a device has to say about that."""
        buses = self.qmp.command("query-pci")
        devices = [device for bus in buses for device in bus["devices"]]
        devices += [below for device in devices for below in device.get("pci_bridge", {}).get("devices", ())]
        classes = [device["class_info"]["class"] for device in devices if device["qdev_id"] == identity]
        if not classes:
            return _EJECTED
        return "" if classes[0] else _CLASSLESS

    def unplug(self, plugged: Plugged, *, keep_server: bool = False) -> None:
        """Take a device out, wait until the guest has let it go, and end its server if it is not kept.

        Raises:
            UserError: QEMU would not survive it (`harness.qemu_guards`).
        """
        if plugged.server is not None:
            family = plugged.server.device.family
            family.check_unplug(self.qmp.version, plugged.identity, msix=plugged.msix)
        self.machine.detach(plugged.attachment, _PLUG_SECONDS * self.patience)
        self.devices.remove(plugged)
        if plugged.server is not None and not keep_server:
            plugged.server.stop()

    def plug_memory(self, size: int) -> None:
        """Plug in a memory module of `size` MiB, as servers of devices can map it; wait until the guest uses it.

        For a machine with so much `spare_memory`.

        Raises:
            QmpError: QEMU refuses; it has its reason.
        """
        self.succeed("echo online > /sys/devices/system/memory/auto_online_blocks")
        before = self.call(hotplug.memory_size)
        memory = {"qom-type": "memory-backend-memfd", "id": "spare-memory", "size": size << 20, "share": True}
        self.qmp.execute("object-add", memory)
        self.qmp.execute("device_add", {"driver": "pc-dimm", "id": "spare-module", "memdev": "spare-memory"})
        self.call(hotplug.wait_for_memory, before + (size << 20) * 3 // 4, _PLUG_SECONDS * self.patience)

    def _free_slot(self) -> int:
        """The free slot that has been left alone for longest.

        Where another device came or went while the last one was going, the guest may still eject what comes next: the
        known issue eject-twice.
        """
        taken = {plugged.place for plugged in self.devices}
        free = [slot for slot in range(self.machine.config.slots) if slot not in taken]
        if not free:
            raise UserError(
                f"all {len(taken)} slots of the guest {self.name!r} are taken", hint="boot it with more slots="
            )
        slot = min(free, key=lambda slot: self._used.get(slot, -1))
        self._used[slot] = self._count
        return slot

    # -- its life -------------------------------------------------------------------------------------------------

    def hello(self, limit: float = _BOOT_SECONDS) -> None:
        """Wait until the agent answers.

        Raises:
            GuestLost: it does not in time.
            MachineError: QEMU is gone.
        """
        try:
            self.agent.hello(limit)
        except GuestLost:
            self.machine.check()
            raise

    def reboot(self) -> None:
        """Reboot from inside, and wait until it is up again with its devices."""
        self._come_up_after(lambda: self.agent.start("reboot -f"))

    def reset(self) -> None:
        """Reset the machine from outside, and wait until the guest is up again with its devices."""
        self._come_up_after(lambda: self.qmp.command("system_reset"))

    def expect_reset(self) -> None:
        """The guest is about to be reset, on purpose and by somebody else: it is no mishap, until `come_up`."""
        self.machine.mishaps.expect_reset()

    def _come_up_after(self, reset: Callable[[], object]) -> None:
        began = self.machine.console.position
        self.expect_reset()
        reset()
        self.come_up(began)

    def come_up(self, since: int) -> None:
        """Wait until it is up after a reboot: what its console has after byte `since` says so."""
        self.machine.wait_ready(since=since)
        self.agent.renew()
        self.hello()

    def continue_on(self, machine: Machine, spec: GuestSpec, devices: Sequence[Plugged]) -> None:
        """Go on in another machine, to which the guest was migrated: what runs in the guest is still this object's."""
        for connection in self._ssh:
            connection.close()
        self._ssh.clear()
        machine.mishaps.inherit(self.machine.mishaps)
        self.machine, self.spec, self.devices = machine, spec, list(devices)
        self._listen()
        self.agent.attach(machine.agent_connection)
        self._commands.go_on(_commands_of(machine))

    def ssh(self) -> SshGuest:
        """A new SSH connection to it."""
        from vfio_user.harness.ssh import SshGuest  # paramiko is slow to import, and few guests are reached so

        guest = SshGuest(
            self.machine.ssh_port(),
            self.image.ssh_key,
            self.image.host_key,
            patience=self.patience,
            console=self._console,
            check=self._check,
            look=self._look,
        )
        self._ssh.append(guest)
        return guest

    def ssh_command(self, folder: Path) -> list[str]:
        """The command with which a person logs in; the guest's host key is written into `folder` for it."""
        port = self.machine.ssh_port()
        known = folder / f"{self.name}.known_hosts"
        write_text(known, f"[127.0.0.1]:{port} {self.image.host_key}\n")
        options = (f"UserKnownHostsFile={known}", "IdentitiesOnly=yes")
        pairs = [word for option in options for word in ("-o", option)]
        return ["ssh", "-i", str(self.image.ssh_key), "-p", str(port), *pairs, "root@127.0.0.1"]

    def collect(self, folder: Path) -> None:
        """Write what is worth having of a guest that failed: its kernel's log and its PCI devices."""
        with suppress(UserError, VerdictError):
            mark = f"echo '{COLLECTED} {time.time():.6f}' > /dev/kmsg"
            write_text(folder / f"{self.name}.dmesg.log", self.run(f"{mark}; dmesg", 5).stdout)
        with suppress(UserError):
            write_text(folder / f"{self.name}.pci.log", self.qmp.human("info pci", 5))

    def close(self) -> None:
        """End it: guest, machine and the servers of its devices."""
        for connection in self._ssh:
            connection.close()
        self._ssh.clear()
        self.agent.close()
        self.machine.stop()
        for plugged in self.devices:
            if plugged.server is not None:
                plugged.server.stop()

    def _check(self, seconds: float) -> None:
        """Raise the reason why the guest does not answer, where there is one or shows within so many seconds."""
        self.machine.mishaps.check()
        try:
            self.machine.check(wait=seconds)
        except (MachineError, ServerFailure):
            self.qmp.events.await_end(_LAST_EVENTS_SECONDS)
            self.machine.mishaps.check()  # that may be why
            raise

    def _first_trouble(self) -> Trouble | None:
        """What has gone wrong with the servers of its devices, as they are now."""
        servers = (*(plugged.server for plugged in self.devices), self._coming)
        return first_trouble(child for server in servers if server is not None for child in server.children)

    def _listen(self) -> None:
        machine = self.machine

        def tell(mishap: Mishap) -> None:
            if machine is self.machine:
                self.agent.give_up(f"the guest {mishap.kind}", mishap.moment)

        machine.mishaps.listen(tell)

    # -- Guest, by the agent --------------------------------------------------------------------------------------

    def start(self, command: Command, timeout: float = 60.0) -> Job:
        """Start a command through the agent and do not wait for it.

        Raises:
            GuestLost: the agent cannot be reached.
        """
        return self.agent.start(command, timeout)

    def put(self, source: Path | bytes, target: str, mode: int = 0o644) -> None:
        """Write a file of the guest through the agent.

        Raises:
            GuestFailure: the guest refuses.
            GuestLost: the agent does not answer.
        """
        self.agent.put(source, target, mode)

    def get(self, source: str) -> bytes:
        """Read a file of the guest through the agent.

        Raises:
            GuestFailure: the guest refuses.
            GuestLost: the agent does not answer.
        """
        return self.agent.get(source)

    def invoke(self, request: Mapping[str, object], timeout: float) -> dict[str, Any]:
        """Do one `call` through the agent and return its outcome.

        Raises:
            GuestFailure: the function's process ended without a result.
            GuestLost: the agent does not answer.
        """
        return self.agent.invoke(request, timeout)


def attachment_of(
    device: Device,
    identity: str,
    server: DeviceServer | None,
    place: Place,
    properties: Mapping[str, object] = MappingProxyType({}),
) -> Attachment:
    """The attachment of a device at a place; `properties` are further ones, with underscores for dashes."""
    wanted = {**device.properties, **properties}
    if server is not None and device.family.keeps_sessions and (breakpoint := Breakpoint.of_environment()) is not None:
        wanted |= breakpoint.properties
    if server is None:
        return inside_qemu(device.driver, identity, place, wanted)
    return device.family.attach(device.served, identity, server.path, place, wanted)


def _commands_of(machine: Machine) -> Path:
    """The file of what is run in a guest while it is in this machine."""
    return machine.console.log.with_name(machine.name + SUFFIX)
