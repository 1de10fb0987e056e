"""The side that a guest comes to: servers, then a machine that waits, with the devices where they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Protocol

from userdev.errors import UserError
from vfio_user.harness.attachment import Attachment
from vfio_user.harness.booted_guest import BootedGuest, Plugged, attachment_of
from vfio_user.harness.device import SCRATCH, Device
from vfio_user.harness.guest_spec import GuestSpec
from vfio_user.harness.hosts.host import Host
from vfio_user.harness.interposition import Interpose
from vfio_user.harness.machine import Machine
from vfio_user.harness.migration.coordinator import MovedByQemu
from vfio_user.harness.migration.guest_view import GuestView
from vfio_user.harness.migration.link import DeviceLink
from vfio_user.harness.qemu import Qemu
from vfio_user.harness.server import DeviceServer


class Launcher(Protocol):
    """Starts and ends machines and servers, and keeps what is evidence of them: `Lab`."""

    awaiting: Destination | None
    """One that was started ahead, for the next migration: that takes it, or ends it."""

    def serve(self, device: Device, name: str, *, interposed: Interpose, host: Host, trace: bool) -> DeviceServer:
        """Start a device's server on `host`.

        Raises:
            ServerError: it does not come up.
        """

    def machine(self, spec: GuestSpec, *, restore: bool, qemu: Qemu | None) -> Machine:
        """Start a QEMU on the host of `spec`; with `restore` it waits for a guest.

        Raises:
            MachineError: QEMU does not start.
        """

    @property
    def lost_connection(self) -> str:
        """Why a program on another host is heard of no more, where its connection has ended; else nothing."""

    def next_name(self, name: str) -> str:
        """The name of the next machine that the guest called `name` is to be in: guest, guest.1, guest.2."""

    def end(self, machine: Machine | None, servers: Sequence[DeviceServer]) -> None:
        """End one side of a migration: the machine at once, then its servers."""


class Destination:
    """One such side, for a guest as it is now. It is started by the migration to it, or ahead of that.

    Whoever made it ends it, unless the guest stays there. Until then it is among the machines and servers of its lab,
    which ends with them.
    """

    def __init__(self, lab: Launcher, guest: BootedGuest, to: Host, qemu: Qemu | None) -> None:
        """Nothing is started yet.

        Raises:
            UserError: a device of the guest cannot be moved.
        """
        self._lab, self._guest, self._qemu, self._devices = lab, guest, qemu, list(guest.devices)
        self._sources = [server_of(guest, plugged) for plugged in guest.devices]
        for source in self._sources:
            require_image_there(source.device, guest.host, to)
        self._moved = self.spec = guest.spec.moved(lab.next_name(guest.name), to)
        self._machine: Machine | None = None
        self._servers: list[DeviceServer] = []
        self._ahead: Future[Machine] | None = None
        self.stays = False
        self.seen: GuestView | None = None
        """The guest, as it was when this was started ahead: it is to be that still when it has come."""

    def fits(self, guest: BootedGuest, to: Host, qemu: Qemu | None) -> bool:
        """Whether one that is made now would be the same: guest, devices and servers are as they were."""
        wanted = guest.spec.moved(self.spec.name, to), qemu, guest.devices
        return guest is self._guest and (self._moved, self._qemu, self._devices) == wanted

    def start_ahead(self, beside: Executor) -> None:
        """Have it started while others work; `start` tells what became of that."""
        self._ahead = beside.submit(self._start)

    def start(self) -> Machine:
        """Start servers and machine, where that was not done ahead.

        Raises:
            UserdevError: one of them does not come up.
        """
        return self._ahead.result() if self._ahead is not None else self._start()

    def _start(self) -> Machine:
        for plugged, server in zip(self._devices, self._sources, strict=True):
            name, traced = f"{self.spec.name}-{plugged.identity}", server.trace is not None
            interposed = server.interposed_there or False
            other = self._lab.serve(server.device, name, interposed=interposed, host=self.spec.host, trace=traced)
            self._servers.append(other)
            if is_ours_to_move(other):
                other.control.post("status")  # what loads all that commands take, while server and QEMU start
        self.spec = self.spec.moved(self.spec.name, self.spec.host, *self._attachments())
        self._machine = self._lab.machine(self.spec, restore=True, qemu=self._qemu)
        return self._machine

    def _attachments(self) -> Iterator[Attachment]:
        """The devices where they were: a guest that is migrated finds each in its place."""
        for plugged, server in zip(self._devices, self._servers, strict=True):
            yield attachment_of(server.device, plugged.identity, server, plugged.place)

    def links(self) -> Iterator[DeviceLink]:
        """Those to the devices that are moved from here; each is to be closed."""
        for plugged, here, there in self._pairs():
            if is_ours_to_move(here):
                yield DeviceLink(plugged.identity, plugged.place, here, there)

    def by_qemu(self) -> list[MovedByQemu]:
        """Those that are not."""
        pairs = self._pairs()
        return [
            MovedByQemu(plugged.identity, here, there) for plugged, here, there in pairs if not is_ours_to_move(here)
        ]

    def _pairs(self) -> Iterator[tuple[Plugged, DeviceServer, DeviceServer]]:
        return zip(self._devices, self._sources, self._servers, strict=True)

    def devices(self) -> list[Plugged]:
        """The guest's devices, as they are there."""
        return [
            replace(plugged, server=server, attachment=attachment)
            for plugged, server, attachment in zip(self._devices, self._servers, self.spec.attached, strict=True)
        ]

    def end(self) -> None:
        """End what was started."""
        self._lab.end(self._machine, self._servers)

    def end_unless_it_stays(self) -> None:
        """The end of a migration to it."""
        if not self.stays:
            self.end()


def is_ours_to_move(server: DeviceServer) -> bool:
    """Whether a device's state is moved from here, through interposers; QEMU moves that of any other by itself."""
    return not server.device.family.moved_by_qemu


def server_of(guest: BootedGuest, plugged: Plugged) -> DeviceServer:
    """The server of a device that is to be moved.

    Raises:
        UserError: it has none, or no interposer where one is needed.
    """
    if plugged.server is None:
        raise UserError(
            f"{plugged.identity} of {guest.name!r} cannot be migrated: it is inside QEMU, and no vfio-user device",
            hint="a device that a server serves can be",
        )
    if is_ours_to_move(plugged.server) and not plugged.server.is_interposed:
        raise UserError(
            f"{plugged.identity} of {guest.name!r} cannot be migrated: there is no interposer before its server",
            hint="boot the guest with migratable=True",
        )
    return plugged.server


def require_image_there(device: Device, here: Host, to: Host) -> None:
    """See that a disk's next server has the same image: {scratch} is a folder of each machine's own.

    Raises:
        UserError: it would have another one, as no guest's disk may.
    """
    if device.keeps_image_in_scratch and not (here.shares_memory and to.shares_memory):
        what = f"{device.name} cannot be migrated from {here.name} to {to.name}"
        raise UserError(
            f"{what}: its image is in {SCRATCH}, a folder of each host's own",
            hint="name an --image that both find; nvme's goes along from memory, or by --migrate-image=yes",
        )
