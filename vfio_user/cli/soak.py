"""`vfio-user soak`: what may happen to a guest happens to it in a random order, while it works, and nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from userdev.counted import counted
from userdev.errors import UserError, VerdictError, meant
from userdev.serving.catalogue import Catalogue
from vfio_user.bundle import Keeping
from vfio_user.bundle.keeping import mention
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._bundling import bundled
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._hardware import (
    DEVICE,
    capture_dma_option,
    check_capture_dma,
    guest_hardware,
    image_option,
)
from vfio_user.cli._outputs import Output
from vfio_user.cli._progress import quiet_option
from vfio_user.cli._served import devices_option
from vfio_user.cli._soak_again import Again, keep_soak
from vfio_user.cli._soak_line import Teller, opening
from vfio_user.cli._soak_plan import plan_of
from vfio_user.harness.artifacts import drop_results, results_folder, results_root
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.device import Device
from vfio_user.harness.family import VFIO_USER, VHOST_USER
from vfio_user.harness.hosts import KINDS as HOSTS
from vfio_user.harness.hosts.pair import require_hosts
from vfio_user.harness.interruption import interruptible
from vfio_user.harness.migration.workload import all_kinds
from vfio_user.page.names import COMMANDS, INDEX, SOAK
from vfio_user.server.catalogue import DEVICES as FUNCTIONS
from vfio_user.soak import (
    EVENTS,
    FIRST,
    TRIES,
    USUAL_WEIGHTS,
    Journal,
    Recorded,
    Soak,
    SoakedSpec,
    Until,
    parse_numbers,
    performances,
    weights_of,
)
from vfio_user.soak.failed import Failed
from vfio_user.soak.journal import alone
from vfio_user.soak.page import write_page
from vfio_user.soak.summary import summary_of, write_summary
from vhost_user.backend.catalogue import DEVICES as BACK_ENDS

DEVICES = (
    "edu --msix 0 --flr yes",
    "nvme --msix=no --image {scratch}/nvme.img:64M",
    "vhost-user-blk",
    "vhost-user-net",
)
"""Of both protocols, and so that QEMU survives that they are unplugged."""
_DEVICES_APART = ("edu --msix 0 --flr yes", "nvme --msix=no --image memory:64M", "vhost-user-net")
"""Between machines that have no storage in common: a disk in memory goes along, and QEMU's client takes none."""
_UNTIL = ("100", "first-failure")
_CATALOGUES: Mapping[str, Catalogue[Any]] = {VFIO_USER.name: FUNCTIONS, VHOST_USER.name: BACK_ENDS}


@click.command(cls=CommandLine)
@devices_option(
    help=f"{DEVICE} May be repeated. By default: {'; '.join(DEVICES)}."
    f" Where hosts are reached by SSH: {'; '.join(_DEVICES_APART)}.",
    callback=None,  # `_require_servers` loads their classes, also those of a plan
)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    help=f"Of the first device, of the second and so on; by default the first of each device's own. {all_kinds()}.",
)
@click.option("--interrupts", type=Choice(["best", "intx", "msi", "msix"]), help="Enabled beside the work.")
@click.option(
    "--until",
    "untils",
    multiple=True,
    help="8h, 1h30m, 07:30, 1000 (events) or first-failure; of several whichever comes first."
    f" By default {' and '.join(_UNTIL)}.",
)
@click.option("--weight", "weights", multiple=True, help=f"EVENT=WEIGHT; 0: never. Events: {', '.join(EVENTS)}.")
@click.option("--weights", "weights_file", type=click.Path(path_type=Path), help="YAML with EVENT: WEIGHT.")
@click.option("--only-events", help="No others than these: EVENT,EVENT.")
@click.option("--hops", type=click.IntRange(min=1), help="Short for --only-events hop --until N --until first-failure.")
@click.option("--seed", type=click.IntRange(min=0), help="The same seed gives the same order; drawn if not given.")
@click.option("--only", help="Do the events of these numbers alone, once: N,N.")
@click.option("--tries", type=click.IntRange(min=0), default=TRIES, show_default=True, help="To reduce a failure.")
@click.option("--hosts", default="auto", show_default=True, help=f"{', '.join(HOSTS)}, or two as A,B: see migrate.")
@image_option(help="By default the one that the workloads need.")
@guest_hardware(root_bus=False)
@click.option("--trace", is_flag=True, help="Record every message of every guest; long soaks have large ones.")
@capture_dma_option()
@click.option("--journal", type=Output(makes_folders=True), help="JSON lines; by default soak.jsonl among the results.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be: hosts, devices, the events with weights, the first ones."
)
@quiet_option("Say only what failed, and how it ended.")
@click.option("--json", "as_json", is_flag=True, help="Print each event's line of the journal.")
@bundled("soak")
def command(
    devices: tuple[str, ...],
    workloads: tuple[str, ...],
    interrupts: str | None,
    untils: tuple[str, ...],
    weights: tuple[str, ...],
    weights_file: Path | None,
    only_events: str | None,
    hops: int | None,
    seed: int | None,
    only: str | None,
    tries: int,
    hosts: str,
    image: str | None,
    qemu: str | None,
    hardware: HardwareOptions,
    trace: bool,
    capture_dma: bool,
    journal: Path | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    kept: Keeping,
) -> None:
    """Soak a guest: migration, resets, kills, upgrades, pauses and more in a random order, while it works.

    The guest verifies its work after every event. A failure is reduced: the last events before it are tried again with
    fresh guests, until the shortest sequence that still fails is known. Interrupted, the same command goes on. Exit
    status 0: nothing was lost, and nothing grew.
    """
    if hops is not None:
        refuse_beside("--hops says which events", "only_events")
        only_events, untils = "hop", (*untils, str(hops), "first-failure")
        devices = devices or ("edu",)
    if only:
        refuse_beside("--only does these events once", "untils", "hops", "tries", "journal")
    if dry_run:
        refuse_beside("--dry-run starts nothing", "bundle", "bundle_size", "as_json", "quiet")
    devices = devices or (_DEVICES_APART if "ssh" in hosts else DEVICES)
    spec = SoakedSpec(devices, workloads, interrupts or "", hosts, image or "", hardware, capture_dma)
    if capture_dma:
        check_capture_dma(spec.devices)
    require_hosts(hosts)
    _require_servers(spec.devices, hosts)
    wanted = _weights(weights_file, weights, only_events)
    until = Until.parse(untils or _UNTIL, datetime.now())
    numbers = parse_numbers(only) if only else []
    if numbers and seed is None:
        raise UserError("events are told by their numbers and a seed", hint="say which: --seed N")
    soaked, of_all = {**spec.as_dict(), "weights": wanted}, journal or results_root() / SOAK
    if dry_run:
        planned = Journal(of_all, soaked, seed, begin=False, more=until.goes_beyond)
        for line in plan_of(Again(spec, wanted, planned.seed, qemu), planned, numbers, untils or _UNTIL):
            click.echo(line)
        return
    folder = results_folder("soak")
    path = folder / SOAK if numbers else of_all
    try:
        click.get_current_context().with_resource(alone(path))
        journaled = Journal(path, soaked, seed, more=until.goes_beyond)
    except UserError:
        drop_results(folder)
        raise
    again = Again(spec, wanted, journaled.seed, qemu)
    if numbers:
        kept.recipe, kept.folder = again.recipe(numbers), folder / FIRST
    with Teller(journaled, until, quiet=quiet, as_json=as_json) as teller:
        for line in opening(journaled):
            teller.say(line)
        recorded = Recorded.ALL if trace or capture_dma else Recorded.REPEATED if kept.is_wanted else Recorded.NONE
        begin = performances(spec, journaled.seed, qemu, lambda text: teller.say(text), recorded)
        soak = Soak(begin, journaled, wanted, until, folder, teller, tries)
        told = _Results(journaled, spec, wanted, teller, folder, again)
        failure = told.run(soak, numbers)
    if failure is not None:
        kept.looked_at(failure.check, ok=False, seen=failure.detail)
        raise failure
    summary = told.write("all was done that was to be done")
    journaled.end(summary["verdict"])
    click.echo(told.sentence(summary), err=as_json)
    for place in [] if numbers else keep_soak(kept, journaled.failures, again, journaled.done.events, folder):
        click.echo(mention(place), err=True)
    if not summary["ok"]:
        raise VerdictError(summary["verdict"], evidence=f"page: {told.page}\njournal: {journaled.path}")


class _Results:
    """Page and summary of a soak, written however it ends."""

    def __init__(
        self,
        journal: Journal,
        spec: SoakedSpec,
        weights: dict[str, float],
        teller: Teller,
        folder: Path,
        again: Again,
    ) -> None:
        self.page = folder / INDEX
        self._again, self._done_before = again, journal.done.events
        self._journal, self._spec, self._weights, self._teller = journal, spec, weights, teller

    def run(self, soak: Soak, numbers: Sequence[int]) -> Failed | None:
        """Do it to its end, or the events of these numbers alone: what failed then, where something did.

        However it ends early there is a page, as far as one can be written.
        """
        try:
            with interruptible(at_once_when_repeated=True):
                if numbers:
                    return soak.repeat(numbers)
                soak.run()
                return None
        except KeyboardInterrupt:
            self.write("interrupted; the same command goes on", undone="it was interrupted")
            done = self._journal.done
            failed = f", {counted(done.failures, 'failure')} so far" if done.failures else ""
            after = f"interrupted after {counted(done.events, 'event')}{failed}"
            self._teller.say(f"{after}; the same command goes on. page: {self.page}")
            raise
        except (UserError, VerdictError, OSError) as error:
            began = self._journal.done.events > self._done_before or any(self.page.parent.glob(f"*/{COMMANDS}"))
            if isinstance(error, UserError) and not began:
                self._leave_nothing(error)
                raise
            try:
                summary = self.write("ended by an error", undone=str(error) if isinstance(error, UserError) else "")
            except OSError as unwritten:
                error.add_note(f"there is no page: {unwritten}")
                raise error from None
            if summary["failures"] and isinstance(error, UserError):  # that it was lost stays the worse of both
                raise VerdictError(summary["verdict"], evidence=f"page: {self.page}") from error
            raise

    def _leave_nothing(self, error: UserError) -> None:
        """It was refused before any program was started: there is nothing to look at, as after a lab's refusal."""
        self._journal.take_back()  # first: the folder of all results goes too where it is empty then
        if self._journal.unlike:
            self._teller.say(f"nothing was begun: {self._journal.path} is as it was")
        drop_results(self.page.parent)
        for note in [note for note in getattr(error, "__notes__", ()) if str(self.page.parent) in note]:
            error.__notes__.remove(note)

    def write(self, ended: str, *, undone: str = "") -> dict[str, Any]:
        """Write both; the summary."""
        soaked = {**self._spec.as_dict(), "weights": self._weights}
        summary = summary_of(self._journal, soaked, self._teller.left_out, ended, works=self._spec.works, undone=undone)
        write_summary(self.page.with_name("summary.json"), summary)
        again = {line["number"]: self._again.command(line.get("reduced") or []) for line in self._journal.failures}
        write_page(self.page, summary, self._journal.events, again)
        return summary

    def sentence(self, summary: dict[str, Any]) -> str:
        """How it was, in a line."""
        downtime = summary["downtime"]
        pause = (
            f"downtime {downtime['median'] * 1000:.1f} ms (median), {downtime['longest'] * 1000:.1f} ms (longest)"
            if downtime
            else "no downtime"
        )
        rate = f"{summary['a_minute']:.1f} a minute"
        notes = "".join(f"\nnote: {note}" for note in summary["notes"])
        return f"{counted(summary['events'], 'event')}, {rate}, {pause}: {summary['verdict']}{notes}\npage: {self.page}"


def _weights(file: Path | None, options: tuple[str, ...], only: str | None) -> dict[str, float]:
    """The weights of all events.

    Raises:
        UserError: they are none.
    """
    usual = dict(USUAL_WEIGHTS)
    if only:
        names = [name.strip() for name in only.split(",")]
        for name in names:
            if name not in usual:
                hint = f"{meant(name, usual)}there are: {', '.join(usual)}"
                raise UserError(f"there is no event {name!r}", hint=hint)
        usual = {name: weight if name in names else 0.0 for name, weight in usual.items()}
    return dict(weights_of(usual, file, options))


def _require_servers(devices: Sequence[str], hosts: str) -> None:
    """Look for the servers of a soak before anything is written for it.

    Classes of somebody's own devices are loaded: behind an interposer that keeps sessions nobody sees a server fail,
    and a plan starts none.

    Raises:
        UserError: there is none, as `Catalogue.find` and `Device.require_program` have it.
    """
    for device in map(Device.parse, devices):
        if "ssh" not in hosts:
            device.require_program()
        if ":" in device.served:
            _CATALOGUES[device.family.name].find(device.served)
