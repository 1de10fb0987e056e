"""`vfio-user run`: the main job. A real guest in a real QEMU exercises a device that Python serves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from userdev.counted import counted
from userdev.errors import UserError, VerdictError
from vfio_user.bundle import Keeping
from vfio_user.cli._bundling import bundled
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_exercised
from vfio_user.cli._hardware import device_option, guest_hardware, image_option
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.cli._registers import REGISTERS_HELP
from vfio_user.cli._registers import registers as named_registers
from vfio_user.harness.artifacts import from_here, write_text
from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.device import Device
from vfio_user.harness.exercises import EXERCISES, Exercise, Part, Program, exercise
from vfio_user.harness.family import VFIO_USER
from vfio_user.harness.interposition import Interpose, Interposition
from vfio_user.harness.interruption import interruptible
from vfio_user.harness.lab import Lab
from vfio_user.harness.rules_used import acted_faults, untried_faults
from vfio_user.page.names import INDEX

DEFAULT_DEVICE = "edu"


@click.command(cls=CommandLine)
@device_option(
    default=DEFAULT_DEVICE,
    show_default=True,
    shell_complete=complete_exercised,
    help="A device of `serve` that guests can exercise, with its options: 'edu --msix 0'.",
)
@click.option(
    "--server", metavar="COMMAND", help="Another server of that device: its command line with {socket} in it."
)
@image_option(help="The guest image; by default the one that the device's exercise needs.")
@guest_hardware(iommu=True)
@click.option("--interpose", is_flag=True, help="Put an interposer before every server.")
@click.option(
    "--faults", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Have it do what this scenario says."
)
@click.option("--trace", is_flag=True, help="Record every message and interrupt: put an interposer there that does.")
@click.option(
    "--registers", metavar="MAP", help=f"{REGISTERS_HELP} By default the device's own, where it is one of ours."
)
@click.option("--fresh", is_flag=True, help="Boot from the beginning, not from a checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@quiet_option("Say nothing but what was wrong.")
@click.option("--keep", is_flag=True, help="Keep the guest running afterwards, until Ctrl-C.")
@click.option(
    "--capture-dma/--no-capture-dma",
    default=None,
    help="Record DMA too, by message; by default for --bundle where the server is ours (docs/interposer.md).",
)
@bundled("run")
def command(
    device: str,
    server: str | None,
    image: str | None,
    qemu: str | None,
    hardware: HardwareOptions,
    root_bus: bool,
    interpose: bool,
    faults: Path | None,
    trace: bool,
    registers: str | None,
    fresh: bool,
    as_json: bool,
    quiet: bool,
    keep: bool,
    capture_dma: bool | None,
    kept: Keeping,
) -> None:
    """Boot a guest on our device, let it exercise the device, and report.

    The exit status is 0 only when everything that the guest saw was right.
    """
    program = _program_for(device)
    wanted = _device(device, server, registers, program)
    printer = _Quiet() if as_json or quiet else _Printer()
    if capture_dma is None:
        capture_dma = kept.is_wanted and wanted.served in VFIO_USER.devices()
    interposed: Interpose = faults or interpose or kept.is_wanted
    if capture_dma or trace:
        past = wanted.family.keeps_sessions
        interposed = Interposition(faults, capture_dma=bool(capture_dma), capture_interrupts=trace and past)
    done: list[tuple[Part, Exercise]] = []
    waiting = Waiting(quiet=quiet)
    with interruptible(), Lab("run", qemu=qemu, interpose=interposed, progress=waiting.tell) as lab:
        kept.folder = lab.folder
        lab.timeline.begun = waiting.step
        with waiting:
            guest = lab.boot(
                wanted,
                image=image or program.image,
                trace=True,
                monitor=keep,
                fresh=fresh,
                root_bus=root_bus,
                **hardware,
            )
        printer.machine(lab, guest)
        for part, outcome in _exercised(lab, guest, program):
            done.append((part, outcome))
            printer.part(part, outcome)
            kept.looked_at(part.proves, ok=outcome.ok, seen=outcome.told)
        untried = untried_faults(lab.servers) if faults else []
        acted = acted_faults(lab.servers) if faults else []
        lab.failure = _failure(device, done, len(program.parts) - len(done), acted) or _nothing_tried(faults, untried)
        if isinstance(lab.failure, VerdictError):
            for rule in untried:
                lab.failure.add_note(f"of its faults {rule}")
        kept_for = _keep(lab, guest) if keep else 0.0
    seconds = lab.timeline.now - kept_for
    report = _report(lab, device, done, program.parts[len(done) :], acted, untried, seconds)
    if as_json:
        click.echo(report)
    printer.end(lab, seconds)
    if lab.failure is not None:
        if printer.tells_parts and isinstance(lab.failure, VerdictError):
            lab.failure.evidence = ""  # it was all told as it came
        raise lab.failure


def _device(device: str, server: str | None, registers: str | None, program: Program) -> Device:
    """The device that is meant, with the options that its exercise needs, and the names of its registers."""
    wanted = Device.parse(server or device)
    if registers:
        named_registers(registers)  # also where nothing is traced: a mistake in it is told
    if server or registers:
        wanted = replace(wanted, registers=registers or Device.parse(device).register_names)
    return replace(wanted, options=program.options) if wanted.served and not wanted.options else wanted


def _exercised(lab: Lab, guest: BootedGuest, program: Program) -> Iterator[tuple[Part, Exercise]]:
    """Have the guest do one part after the other; what a part did, once it is done.

    A device with other ids than the parts look for is one failure.
    """
    for part in program.parts:
        with lab.timeline.step(f"the guest: {program.name} {' '.join(part.arguments)}"):
            outcome = exercise(guest, program.name, "--slot", guest.device.address, *part.arguments)
        yield part, outcome
        if not outcome.ok:
            guest.collect(lab.folder)
            if not program.is_for((guest.device.vendor, guest.device.device)):
                return


def _failure(
    device: str, done: Sequence[tuple[Part, Exercise]], left_out: int, acted: Sequence[str] = ()
) -> VerdictError | None:
    """What was wrong, the first of it in a sentence; None where nothing was. So many parts were not tried, and these
    rules of faults have acted.
    """
    wrong = [(part.proves, outcome) for part, outcome in done if not outcome.ok]
    if not wrong:
        return None
    first = f"{wrong[0][0]}: {replace(wrong[0][1], wrong=wrong[0][1].wrong[:1]).verdict}"
    evidence = "\n".join(f"{proves}: {outcome.verdict}" for proves, outcome in wrong)
    seen = f"{device}, behind faults that were put in," if acted else device
    failure = VerdictError(f"the guest saw {seen} do wrong: {first}", evidence=evidence)
    if left_out:
        failure.add_note(_of_another_kind(device, left_out))
    return failure


def _nothing_tried(faults: Path | None, untried: Sequence[str]) -> UserError | None:
    """What is to be said of a guest that saw nothing wrong of faults that did not happen; None where all did."""
    if not untried:
        return None
    others = "".join(f"\nand the rule {one}" for one in untried[1:])
    return UserError(
        f"{faults}: the rule {untried[0]}{others}",
        hint="what the guest saw says nothing of that; `vfio-user trace show` of a run with --trace says what there is"
        " to match",
    )


def _of_another_kind(device: str, left_out: int) -> str:
    """What to do about a device of which so many parts were not tried, since it is not what was said."""
    default = " (the default)" if device == DEFAULT_DEVICE else ""
    return f"exercised as {device}{default}; --device says what it is ({counted(left_out, 'other part')} not tried)"


def _report(
    lab: Lab,
    device: str,
    done: Sequence[tuple[Part, Exercise]],
    left_out: Sequence[Part],
    acted: Sequence[str],
    untried: Sequence[str],
    seconds: float,
) -> str:
    """Write report.json into the run's folder; its text. `seconds` is how long the run took."""
    report = {
        "ok": lab.failure is None,
        "device": device,
        "seconds": round(seconds, 3),
        "logs": str(lab.folder),
        "traces": [str(path) for path in sorted(lab.folder.glob("*.trace"))],
        "parts": [{"proves": part.proves, **asdict(outcome)} for part, outcome in done],
        "left_out": [part.proves for part in left_out],
        "acted": list(acted),
        "untried": list(untried),
        "steps": [asdict(step) for step in lab.timeline.steps],
    }
    text = json.dumps(report, indent=2, default=list)
    write_text(lab.folder / "report.json", text + "\n")
    return text


class _Quiet:
    """Says nothing."""

    tells_parts = False

    def machine(self, lab: Lab, guest: BootedGuest) -> None:
        pass

    def part(self, part: Part, outcome: Exercise) -> None:
        pass

    def end(self, lab: Lab, seconds: float) -> None:
        pass


class _Printer(_Quiet):
    """For a person: one line for each thing that was done, with its time."""

    tells_parts = True

    def machine(self, lab: Lab, guest: BootedGuest) -> None:
        for step in lab.timeline.steps:
            if step.seconds >= 0.01:
                click.echo(f"{step.seconds:7.2f} s  {step.what}")
        plugged = guest.device
        click.echo(
            f"\nLinux {guest.agent.kernel} in {lab.qemu.version_text} under {lab.accelerator.upper()} sees"
            f" {plugged.vendor:04x}:{plugged.device:04x} at {plugged.address}\n"
        )

    def part(self, part: Part, outcome: Exercise) -> None:
        mark = "ok  " if outcome.ok else "FAIL"
        click.echo(f"{outcome.seconds:7.2f} s  {mark}  {part.proves}: {_summary(outcome)}")

    def end(self, lab: Lab, seconds: float) -> None:
        failed = lab.failure
        where = f"Page: {from_here(lab.folder / INDEX)}" if failed else f"Logs: {from_here(lab.folder)}"
        how = "All right" if failed is None else "WRONG" if isinstance(failed, VerdictError) else "NOT TRIED"
        click.echo(f"\n{how}, in {seconds:.1f} s. {where}")
        for path in sorted(lab.folder.glob("*.trace")):
            click.echo(f"trace: {from_here(path)}; `vfio-user trace stats` counts it")


def _program_for(device: str) -> Program:
    name = device.split()[0].removeprefix("qemu:") if device.split() else device
    if name not in EXERCISES:
        Device.parse(device)  # an unknown device is the better thing to say
        raise UserError(
            f"guests have no program to exercise {device!r}",
            hint=f"they have for: {', '.join(EXERCISES)}; `vfio-user boot --device {device}` gives a shell",
        )
    return EXERCISES[name]


def _summary(outcome: Exercise) -> str:
    """What was seen, in the space of a line; what was wrong instead, where something was."""
    if not outcome.ok:
        return outcome.verdict
    how = ", ".join(str(value) for key, value in outcome.device.items() if key in ("access", "interrupts"))
    seen = "; ".join(f"{key} {_brief(value)}" for key, value in outcome.seen.items())
    return f"{seen} ({how})"


def _brief(value: object) -> str:
    match value:
        case dict():
            items = [f"{key}:{item}" for key, item in value.items()]
            return " ".join(items) if len(" ".join(items)) <= 40 else f"x {len(items)}"
        case list():
            return " ".join(map(str, value))
        case _:
            return str(value)


def _keep(lab: Lab, guest: BootedGuest) -> float:
    """Leave the guest to a person, until Ctrl-C or its end; for how many seconds that was."""
    began = lab.timeline.now
    rows: Sequence[str] = (
        f"QMP      {lab.monitor_path(guest)}",
        f"console  {guest.machine.console.log}",
        f"SSH      {' '.join(guest.ssh_command(lab.folder))}",
        "The guest is kept; Ctrl-C ends it.",
    )
    try:
        click.echo("\n".join(("", *rows)), err=True)
        while guest.machine.child.wait(3600.0) is None:
            pass
    except KeyboardInterrupt:
        click.echo("", err=True)
    return lab.timeline.now - began
