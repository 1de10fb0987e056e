"""Migrates the guest of a lab: the other side is started, the guest looked at before and after, its old side ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import Protocol

from userdev.errors import UserError
from vfio_user.harness.attachment import Attachment
from vfio_user.harness.booted_guest import BootedGuest, Plugged, attachment_of
from vfio_user.harness.device import Device
from vfio_user.harness.guest_spec import GuestSpec
from vfio_user.harness.hosts.host import Host, HostFailure, lost_host
from vfio_user.harness.interposition import Interpose
from vfio_user.harness.machine import Machine
from vfio_user.harness.migration.coordinator import FAILURES, Coordinator, MovedByQemu
from vfio_user.harness.migration.guest_view import compare, look
from vfio_user.harness.migration.link import DeviceLink
from vfio_user.harness.migration.plan import Conductor, Plan
from vfio_user.harness.migration.qemu_side import blocked_reasons
from vfio_user.harness.migration.report import Mode, Phase, Report, Verdict
from vfio_user.harness.qemu import Qemu
from vfio_user.harness.qmp import QmpLost, QmpTimeout
from vfio_user.harness.server import DeviceServer


class Launcher(Protocol):
    """Starts and ends machines and servers, and keeps what is evidence of them: `Lab`."""

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


def move(
    lab: Launcher, guest: BootedGuest, to: Host, mode: Mode, plan: Plan, conductor: Conductor, qemu: Qemu | None
) -> Report:
    """Carry out `Lab.migrate`.

    Raises:
        UserError: what cannot even begin.
    """
    servers = [_server_of(guest, plugged) for plugged in guest.devices]
    mode = choose_mode(mode, servers)
    if mode is not Mode.DIRECT:
        require_migratable(guest)
    report = Report(
        mode,
        guest.host.name,
        to.name,
        [server.device.name for server in servers],
        [server.device.name for server in servers if not _is_ours_to_move(server)],
    )
    here, source, running = guest.host, guest.machine, guest.machine.qmp.command("query-status")["running"]
    before = look(guest) if running else None
    source.qmp.events.forget("RESET")
    arriving = _Arriving(lab, guest, to, qemu)
    report.machine = arriving.spec.name
    with ExitStack() as at_last:  # each of these also where the other fails
        at_last.callback(arriving.end_unless_it_stays)
        at_last.callback(report.write, source.console.log.parent)
        try:
            with report.phase(Phase.START):
                conductor.watch(Phase.START)
                machine = arriving.start(servers)
        except FAILURES as error:
            report.reason = f"in phase {Phase.START}: {error}"
            report.hinder(str(error) if isinstance(error, HostFailure) else lost_host(lab, here, to))
            return report
        with ExitStack() as moving:
            links = [moving.enter_context(closing(link)) for link in arriving.links(guest.devices, servers)]
            by_qemu = arriving.by_qemu(guest.devices, servers)
            coordinator = Coordinator(
                source, machine, links, report, by_qemu=by_qemu, address=to.address, plan=plan, conductor=conductor
            )
            coordinator.run()
            if not report.ok:
                report.hinder(lost_host(lab, here, to))
        rebooted = was_reset(source)
        if report.verdict is Verdict.MIGRATED:
            arriving.stays = True  # the guest runs there, whatever fails of what is still to do here
            guest.continue_on(machine, arriving.spec, arriving.devices(guest.devices))
    if rebooted:
        report.notes.append("the guest was reset meanwhile")
        before = None
    if report.verdict is Verdict.MIGRATED:
        with ThreadPoolExecutor(max_workers=1) as beside:
            ended = beside.submit(lab.end, source, servers)
            if before is not None:
                compare(report, before, guest)  # whose QEMU has to translate all of it anew, while the other one ends
            ended.result()
        if not report.ok:
            report.hinder(lost_host(lab, here, to))
        report.write(source.console.log.parent)
    return report


def require_migratable(guest: BootedGuest) -> None:
    """Ask the servers of a guest's devices, and QEMU.

    Raises:
        UserError: one cannot migrate, or not as it is interposed; it has its name.
    """
    for plugged in guest.devices:
        require_movable(guest, plugged)


def require_movable(guest: BootedGuest, plugged: Plugged) -> None:
    """Ask the server of one device, and QEMU.

    Raises:
        UserError: it cannot migrate, or not as it is interposed; or QEMU refuses for no device of the guest's alone.
    """
    server = _server_of(guest, plugged)
    if server.captures_dma:
        raise UserError(
            f"{server.device.name} cannot be migrated while its DMA is captured: what it writes is in no dirty log",
            hint="capture DMA (--capture-dma) where nothing migrates; a trace without it has all other messages",
        )
    if _is_ours_to_move(server) and "STOP_COPY" not in server.control.call("migration_support")["supports"]:
        raise UserError(
            f"{server.device.name} cannot be migrated: its server knows neither form of migration",
            hint="`vfio-user probe` shows what a server can; mode direct moves a guest, and not its device",
        )
    for refusal in blocked_reasons(guest.machine):
        blamed = [other for other in guest.devices if _is_named(other, refusal)]
        if plugged in blamed or not blamed:
            raise UserError(
                f"{server.device.name} cannot be migrated: QEMU says {refusal!r}",
                hint="no server changes that, and no mode: move the guest without it",
            )


def was_reset(machine: Machine) -> bool:
    """Whether QEMU has told of a reset since its events were forgotten last."""
    with suppress(QmpTimeout, QmpLost):
        machine.qmp.wait_event("RESET", 0)
        return True
    return False


def choose_mode(mode: Mode, servers: list[DeviceServer]) -> Mode:
    """Choose the mode that AUTO means for these servers.

    Raises:
        UserError: native migration is demanded from a client that has none.
    """
    if mode not in (Mode.AUTO, Mode.NATIVE):
        return mode
    native = bool(servers) and all(
        not _is_ours_to_move(server) or server.control.call("session")["client_migrates"] for server in servers
    )
    if mode is Mode.NATIVE and not native:
        raise UserError(
            "this QEMU does not migrate vfio-user devices: it never asked the server for DEVICE_FEATURE MIGRATION",
            hint="mode coordinated does it for any QEMU, auto takes what there is",
        )
    return Mode.NATIVE if native else Mode.COORDINATED


class _Arriving:
    """The side that the guest comes to: servers, then a machine that waits, with the devices where they were."""

    def __init__(self, lab: Launcher, guest: BootedGuest, to: Host, qemu: Qemu | None) -> None:
        self._lab = lab
        self._qemu = qemu
        self._guest = guest
        self.spec = guest.spec.moved(lab.next_name(guest.name), to)
        self.machine: Machine | None = None
        self.stays = False
        self._servers: list[DeviceServer] = []

    def start(self, servers: list[DeviceServer]) -> Machine:
        for plugged, server in zip(self._guest.devices, servers, strict=True):
            name, traced = f"{self.spec.name}-{plugged.identity}", server.trace is not None
            interposed = server.interposed_there or False
            other = self._lab.serve(server.device, name, interposed=interposed, host=self.spec.host, trace=traced)
            self._servers.append(other)
        self.spec = self.spec.moved(self.spec.name, self.spec.host, *self._attachments())
        self.machine = self._lab.machine(self.spec, restore=True, qemu=self._qemu)
        return self.machine

    def _attachments(self) -> Iterator[Attachment]:
        """The devices where they were: a guest that is migrated finds each in its place."""
        for plugged, server in zip(self._guest.devices, self._servers, strict=True):
            yield attachment_of(server.device, plugged.identity, server, plugged.place)

    def links(self, devices: list[Plugged], servers: list[DeviceServer]) -> Iterator[DeviceLink]:
        """Each is to be closed."""
        for plugged, here, there in zip(devices, servers, self._servers, strict=True):
            if _is_ours_to_move(here):
                yield DeviceLink(plugged.identity, plugged.place, here, there)

    def by_qemu(self, devices: list[Plugged], servers: list[DeviceServer]) -> list[MovedByQemu]:
        return [
            MovedByQemu(plugged.identity, here, there)
            for plugged, here, there in zip(devices, servers, self._servers, strict=True)
            if not _is_ours_to_move(here)
        ]

    def devices(self, before: list[Plugged]) -> list[Plugged]:
        return [
            replace(plugged, server=server, attachment=attachment)
            for plugged, server, attachment in zip(before, self._servers, self.spec.attached, strict=True)
        ]

    def end_unless_it_stays(self) -> None:
        if not self.stays:
            self._lab.end(self.machine, self._servers)


def _is_ours_to_move(server: DeviceServer) -> bool:
    """Whether a device's state is moved from here, through interposers; QEMU moves that of any other by itself."""
    return not server.device.family.moved_by_qemu


def _is_named(plugged: Plugged, refusal: str) -> bool:
    """Whether a refusal of QEMU's is about this device: it ends with PATH/MODEL, 0000:00:05.0/vhost-user-rng."""
    model = str(plugged.attachment.device["driver"]).removesuffix("-pci")
    return refusal.rstrip("'").endswith(f"/{model}")


def _server_of(guest: BootedGuest, plugged: Plugged) -> DeviceServer:
    if plugged.server is None:
        raise UserError(
            f"{plugged.identity} of {guest.name!r} cannot be migrated: it is inside QEMU, and no vfio-user device",
            hint="a device that a server serves can be",
        )
    if _is_ours_to_move(plugged.server) and not plugged.server.is_interposed:
        raise UserError(
            f"{plugged.identity} of {guest.name!r} cannot be migrated: there is no interposer before its server",
            hint="boot the guest with migratable=True",
        )
    return plugged.server
