"""Migrates the guest of a lab: the other side is started, the guest looked at before and after, its old side ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress

from userdev.errors import UserError
from vfio_user.harness.booted_guest import BootedGuest, Plugged
from vfio_user.harness.hosts.host import Host, HostFailure, lost_host
from vfio_user.harness.machine import Machine
from vfio_user.harness.migration.coordinator import FAILURES, Coordinator
from vfio_user.harness.migration.destination import Destination, Launcher, is_ours_to_move, server_of
from vfio_user.harness.migration.guest_view import compare, look
from vfio_user.harness.migration.plan import Conductor, Plan
from vfio_user.harness.migration.qemu_side import blocked_reasons
from vfio_user.harness.migration.report import Mode, Phase, Report, Verdict
from vfio_user.harness.qemu import Qemu
from vfio_user.harness.qmp import QmpLost, QmpTimeout
from vfio_user.harness.server import DeviceServer


def move(
    lab: Launcher,
    guest: BootedGuest,
    to: Host,
    mode: Mode,
    plan: Plan,
    conductor: Conductor,
    qemu: Qemu | None,
    then: Host | None = None,
) -> Report:
    """Carry out `Lab.migrate`.

    Raises:
        UserError: what cannot even begin.
    """
    servers = [server_of(guest, plugged) for plugged in guest.devices]
    mode = choose_mode(mode, servers)
    if mode is not Mode.DIRECT:
        require_migratable(guest)
    report = Report(
        mode,
        guest.host.name,
        to.name,
        [server.device.name for server in servers],
        [server.device.name for server in servers if not is_ours_to_move(server)],
    )
    here, source, running = guest.host, guest.machine, guest.machine.qmp.command("query-status")["running"]
    arriving = _arriving(lab, guest, to, qemu)
    before = (arriving.seen or look(guest)) if running else None
    source.qmp.events.forget("RESET")
    report.machine = arriving.spec.name
    with ExitStack() as at_last:  # each of these also where the other fails
        at_last.callback(arriving.end_unless_it_stays)
        at_last.callback(report.write, source.console.log.parent)
        try:
            with report.phase(Phase.START):
                conductor.watch(Phase.START)
                machine = arriving.start()
        except FAILURES as error:
            report.reason = f"in phase {Phase.START}: {error}"
            report.hinder(str(error) if isinstance(error, HostFailure) else lost_host(lab, here, to))
            return report
        with ExitStack() as moving:
            links = [moving.enter_context(closing(link)) for link in arriving.links()]
            by_qemu = arriving.by_qemu()
            coordinator = Coordinator(
                source, machine, links, report, by_qemu=by_qemu, address=to.address, plan=plan, conductor=conductor
            )
            coordinator.run()
            if not report.ok:
                report.hinder(lost_host(lab, here, to))
        rebooted = was_reset(source)
        if report.verdict is Verdict.MIGRATED:
            arriving.stays = True  # the guest runs there, whatever fails of what is still to do here
            guest.continue_on(machine, arriving.spec, arriving.devices())
    if rebooted:
        report.notes.append("the guest was reset meanwhile")
        before = None
    if report.verdict is Verdict.MIGRATED:
        with ThreadPoolExecutor(max_workers=2) as beside:  # behind it nothing is under way
            following = lab.awaiting = Destination(lab, guest, then, qemu) if then is not None else None
            if following is not None:
                following.start_ahead(beside)
            ended = beside.submit(lab.end, source, servers)
            if before is not None:
                seen = compare(report, before, guest)  # whose QEMU has to translate all of it anew
                if following is not None:
                    following.seen = seen
            ended.result()
        if not report.ok:
            report.hinder(lost_host(lab, here, to))
        report.write(source.console.log.parent)
    return report


def _arriving(lab: Launcher, guest: BootedGuest, to: Host, qemu: Qemu | None) -> Destination:
    """The side that awaits the guest already, where it was started for this; another one is ended."""
    awaiting, lab.awaiting = lab.awaiting, None
    if awaiting is not None:
        if awaiting.fits(guest, to, qemu):
            return awaiting
        awaiting.end()
    return Destination(lab, guest, to, qemu)


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
    server = server_of(guest, plugged)
    if server.captures_dma:
        raise UserError(
            f"{server.device.name} cannot be migrated while its DMA is captured: what it writes is in no dirty log",
            hint="capture DMA (--capture-dma) where nothing migrates; a trace without it has all other messages",
        )
    if is_ours_to_move(server) and "STOP_COPY" not in server.control.call("migration_support")["supports"]:
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
        not is_ours_to_move(server) or server.control.call("session")["client_migrates"] for server in servers
    )
    if mode is Mode.NATIVE and not native:
        raise UserError(
            "this QEMU does not migrate vfio-user devices: it never asked the server for DEVICE_FEATURE MIGRATION",
            hint="mode coordinated does it for any QEMU, auto takes what there is",
        )
    return Mode.NATIVE if native else Mode.COORDINATED


def _is_named(plugged: Plugged, refusal: str) -> bool:
    """Whether a refusal of QEMU's is about this device: it ends with PATH/MODEL, 0000:00:05.0/vhost-user-rng."""
    model = str(plugged.attachment.device["driver"]).removesuffix("-pci")
    return refusal.rstrip("'").endswith(f"/{model}")
