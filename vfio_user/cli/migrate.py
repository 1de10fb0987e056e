"""`vfio-user migrate`: a guest with its device moves to another host, and both say how it was."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click

from userdev.counted import amount, counted
from userdev.errors import UserError, VerdictError
from userdev.writable import require_writable
from vfio_user.bundle import Keeping
from vfio_user.cli._bundling import bundled
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._hardware import guest_hardware, image_option, qemu_option
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.cli._served import devices_option
from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.cell import Cell
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.exercises import Exercise
from vfio_user.harness.hosts import KINDS as HOSTS
from vfio_user.harness.hosts import Pair, two_hosts
from vfio_user.harness.hosts.host import blamed_if_lost, lost_host
from vfio_user.harness.interruption import interruptible
from vfio_user.harness.lab import Lab
from vfio_user.harness.migration import Limits, Mode, Plan, Report, Tuning
from vfio_user.harness.migration.guest_migration import require_migratable
from vfio_user.harness.migration.workload import KINDS as WORKLOADS
from vfio_user.harness.migration.workload import NONE, Assignment, all_kinds, image_for, judge


@click.command(cls=CommandLine)
@devices_option(default=["edu"], show_default=True)
@click.option(
    "--workload",
    "workloads",
    type=Choice(WORKLOADS),
    multiple=True,
    help=f"Of the first device, of the second and so on; by default the first of each device's own. {all_kinds()}.",
)
@click.option("--mode", type=Choice([kind.value for kind in Mode]), default=Mode.AUTO.value, show_default=True)
@click.option(
    "--hosts",
    default="auto",
    show_default=True,
    help=f"{', '.join(HOSTS)}; or two as A,B, each local or ssh://USER@HOST:PORT?OPTION=VALUE (docs/migration.md).",
)
@image_option(help="By default the one that the workloads need.")
@guest_hardware()
@click.option(
    "--interrupts",
    type=Choice(["best", "intx", "msi", "msix"]),
    help="To be enabled; `interrupts` needs no word.",
)
@click.option("--bandwidth", type=click.IntRange(min=1), help="MiB/s that QEMU may use; without limit if not given.")
@click.option("--downtime", type=Finite(LEAST), default=0.05, show_default=True, help="Seconds, aimed at.")
@click.option("--channels", type=click.IntRange(min=0), default=0, help="Streams of multifd; 0: one, without it.")
@click.option("--file", type=click.Path(path_type=Path), help="Let the memory go through this file.")
@qemu_option("--to-qemu", help="Another QEMU for the destination; as --qemu.")
@click.option("--limit", type=Finite(1), default=120.0, show_default=True, help="Seconds, for all of it.")
@click.option("--after", type=Finite(0), default=1.0, show_default=True, help="Seconds to work on there.")
@click.option("--trace", is_flag=True, help="Record every message on both sides.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option("Say nothing but what was lost.")
@bundled("migrate")
def command(
    devices: tuple[str, ...],
    workloads: tuple[str, ...],
    root_bus: bool,
    mode: str,
    hosts: str,
    image: str | None,
    qemu: str | None,
    hardware: HardwareOptions,
    interrupts: str | None,
    bandwidth: int | None,
    downtime: float,
    channels: int,
    file: Path | None,
    to_qemu: str | None,
    limit: float,
    after: float,
    trace: bool,
    as_json: bool,
    quiet: bool,
    kept: Keeping,
) -> None:
    """Migrate a guest with its devices to another host while it works, and verify it from inside.

    QEMU's own client leaves the device behind and says `completed`: mode `direct` shows what is lost by that. Exit
    status 0: the guest is there, whole. 1: it is not. 2: it could not be done, as where a host is not reached any more.
    """
    if file is not None and "ssh://" not in hosts:  # elsewhere it is that machine's
        require_writable(file)
    tuning = Tuning((bandwidth << 20) if bandwidth else 1 << 40, downtime, channels)
    plan = Plan(tuning, Limits(total=limit), file)
    assignments = _assignments(devices, workloads, interrupts)
    cell = Cell(trace=trace or kept.is_wanted)
    waiting = Waiting(quiet=quiet)
    with (
        interruptible(),
        two_hosts(hosts) as pair,
        Lab("migrate", qemu=qemu, cell=cell, progress=waiting.tell) as lab,
        waiting,
    ):
        if pair.ways:
            waiting.tell(f"hosts: {pair.ways}")
        kept.folder = lab.folder
        lab.timeline.begun = waiting.step
        guest = lab.boot(
            devices=[each.device for each in assignments],
            image=image or image_for(assignments),
            migratable=True,
            root_bus=root_bus,
            host=pair.a,
            trace=trace,
            **hardware,
        )
        report, done = _migrated(lab, guest, assignments, pair, mode, plan, to_qemu, after)
        report.write(lab.folder)
        waiting.end()
        if as_json or not quiet:
            _print(report, done, str(lab.folder), as_json=as_json)
        for check in report.checks:
            kept.looked_at(check.what, ok=check.ok, seen="" if check.ok else check.detail)
        if not report.ok:
            kind = UserError if report.hindered else VerdictError
            lab.failure = kind(report.sentence, evidence=f"evidence: {lab.folder}")
    if lab.failure is not None:
        raise lab.failure


def _assignments(devices: Sequence[str], workloads: Sequence[str], interrupts: str | None) -> list[Assignment]:
    """What works on each device: of those behind the last that is named nothing, where one is named at all.

    Raises:
        UserError: there are more workloads than devices.
    """
    if len(workloads) > len(devices):
        raise UserError(f"{counted(len(workloads), 'workload')} for {counted(len(devices), 'device')}")
    kinds = [*workloads, *(len(devices) - len(workloads)) * [NONE]] if workloads else len(devices) * [None]
    return [Assignment.of(device, kind, interrupts) for device, kind in zip(devices, kinds, strict=True)]


def _migrated(
    lab: Lab,
    guest: BootedGuest,
    assignments: Sequence[Assignment],
    pair: Pair,
    mode: str,
    plan: Plan,
    to_qemu: str | None,
    after: float,
) -> tuple[Report, list[Exercise]]:
    """Migrate the guest while it works, and `after` seconds longer; how that was, and what the work has seen.

    Raises:
        HostFailure: a host has gone, and what failed says nothing of the guest.
    """
    with blamed_if_lost(lab, pair.a, pair.b):
        if mode != Mode.DIRECT:
            require_migratable(guest)
        started = [each.start(guest, plugged) for each, plugged in zip(assignments, guest.devices, strict=True)]
        running = [workload for workload in started if workload is not None]
        report = lab.migrate(guest, to=pair.b, mode=mode, plan=plan, qemu=to_qemu)
        if pair.note:
            report.notes.append(pair.note)
        if running:
            time.sleep(after)
        done = [workload.end() for workload in running]
    for work in done:
        judge(report, work)
    if not report.ok and not report.hindered:
        report.hinder(lost_host(lab, pair.a, pair.b))
    return report, done


def _print(report: Report, done: list[Exercise], folder: str, *, as_json: bool) -> None:
    if as_json:
        work = [{"command": one.command, "ok": one.ok, "seen": one.seen, "wrong": one.wrong} for one in done]
        click.echo(json.dumps({**report.as_dict(), "workloads": work, "evidence": folder}))
        return
    by_qemu = f", {', '.join(report.by_qemu)} by QEMU" if report.by_qemu and report.mode is not Mode.NATIVE else ""
    click.echo(f"{', '.join(report.devices)} from {report.source} to {report.destination}, mode {report.mode}{by_qemu}")
    for phase in report.phases:
        moved = amount(phase.bytes) if phase.bytes else ""
        click.echo(f"  {phase.phase:<14}{phase.seconds * 1000:>10.1f} ms {moved:>12}")
    for check in report.checks:
        click.echo(f"  {'ok   ' if check.ok else 'WRONG'}  {check.what}{': ' if check.detail else ''}{check.detail}")
    for note in report.notes:
        click.echo(f"  note: {note}")
    pause = f", downtime {report.downtime * 1000:.1f} ms" if report.downtime is not None else ""
    click.echo(f"{report.verdict}: {report.seconds:.2f} s{pause}")
