"""`vfio-user soak`: a guest with its device goes back and forth between two hosts, as often as wanted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from userdev.errors import VerdictError
from vfio_user.cli._hardware import guest_hardware
from vfio_user.harness.artifacts import results_folder
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.hosts import KINDS as HOSTS
from vfio_user.harness.interruption import interruptible
from vfio_user.harness.lab import Lab
from vfio_user.harness.migration.journal import Journal
from vfio_user.harness.migration.soak import WATCHED, Soak, trends
from vfio_user.harness.migration.workload import KINDS as WORKLOADS


@click.command()
@click.option(
    "--hops", type=click.IntRange(min=1), default=10, show_default=True, help="In all, with those done before."
)
@click.option("--device", default="edu", show_default=True, help="As `boot` takes it; any server that migrates.")
@click.option("--workload", type=click.Choice(WORKLOADS), help="What the guest does meanwhile: see migrate.")
@click.option("--interrupts", type=click.Choice(["best", "intx", "msi", "msix"]), help="Enabled beside the work.")
@click.option("--hosts", default="auto", show_default=True, help=f"{', '.join(HOSTS)}, or two as A,B: see migrate.")
@click.option("--image", help="By default the one that the workload needs.")
@guest_hardware()
@click.option("--journal", type=click.Path(path_type=Path), help="JSON lines; by default soak.jsonl among the results.")
@click.option("--quiet", is_flag=True, help="Say only how it ended.")
@click.option("--json", "as_json", is_flag=True, help="Print each hop's line of the journal.")
def command(
    hops: int,
    device: str,
    workload: str | None,
    interrupts: str | None,
    hosts: str,
    image: str | None,
    qemu: str | None,
    hardware: HardwareOptions,
    journal: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Migrate a guest back and forth while it works, and verify it from inside after every hop.

    It ends after so many hops, or at the first that lost something, whose whole evidence stays. Interrupted, the same
    command goes on with the hops that are left. Exit status 0: nothing was lost, and nothing grew.
    """
    machine = (hardware["memory"], hardware["iommu"], hardware["cpus"])
    soak = Soak(device, workload or "", interrupts or "", hosts, image or "", *machine)
    folder = results_folder("soak")
    kept = Journal(journal or folder.parent / "soak.jsonl", soak.as_dict(), WATCHED)
    before = len(kept.hops)
    if kept.resumed and not quiet:
        click.echo(f"going on after {before} hops: {kept.path}", err=True)
    wrong = ""
    began = time.monotonic()
    with (
        interruptible(),
        Lab("soak", folder=folder, qemu=qemu, progress=lambda text: click.echo(text, err=True)) as lab,
    ):
        for report in soak.run(lab, kept, hops):
            wrong = "" if report.ok else f"{report.verdict}: {report.reason}"
            if as_json:
                click.echo(json.dumps(kept.last, default=str))
            elif not quiet:
                click.echo(_line(kept.last))
        if wrong:
            lab.failure = VerdictError(wrong)
            for guest in lab.guests:
                guest.collect(lab.folder)
    seconds = time.monotonic() - began
    grown = trends(kept.hops)
    verdict = wrong or "; ".join(grown) or "nothing was lost"
    kept.write({"kind": "end", "hops": len(kept.hops), "verdict": verdict, "evidence": str(folder)})
    done = len(kept.hops) - before
    if not as_json:
        click.echo(f"{len(kept.hops)} hops, {done / seconds * 60:.1f} a minute, {_downtime(kept.hops)}: {verdict}")
    if wrong or grown:
        raise VerdictError(verdict, evidence=f"journal: {kept.path}\nevidence: {folder}")


def _line(hop: dict[str, object]) -> str:
    downtime = hop["downtime"]
    pause = f"{downtime * 1000:6.1f} ms" if isinstance(downtime, float) else "none"
    return f"{hop['hop']:>5}  {hop['from']} to {hop['to']}  {hop['seconds']:6.2f} s, downtime {pause}  {hop['verdict']}"


def _downtime(hops: list[dict[str, object]]) -> str:
    known = sorted(found for hop in hops if isinstance(found := hop["downtime"], float))
    if not known:
        return "no downtime"
    return f"downtime {known[len(known) // 2] * 1000:.1f} ms (median), {known[-1] * 1000:.1f} ms (longest)"
