"""`vfio-user boot`: a guest with devices, and a person's shell in it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._command import CommandLine
from vfio_user.cli._hardware import guest_hardware, image_option
from vfio_user.cli._progress import Waiting
from vfio_user.cli._served import devices_option
from vfio_user.harness.accelerator import probe_accelerator
from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.command_line import (
    HardwareOptions,
    MachineConfig,
    Start,
    Wiring,
    command_line,
    machine_type,
    root_address,
)
from vfio_user.harness.device import Device, server_command
from vfio_user.harness.family import inside_qemu
from vfio_user.harness.image import ensure_image
from vfio_user.harness.interruption import interruptible
from vfio_user.harness.lab import Lab
from vfio_user.harness.qemu import ensure_qemu
from vfio_user.harness.rules_used import untried_faults
from vfio_user.harness.terminal import attach


@click.command(cls=CommandLine)
@devices_option()
@image_option(default="minimal", show_default=True, help="The guest image.")
@guest_hardware()
@click.option("--interpose", is_flag=True, help="Put an interposer before every server.")
@click.option(
    "--faults", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Have it do what this scenario says."
)
@click.option("--fresh", is_flag=True, help="Boot from the beginning, not from a checkpoint.")
@click.option("--trace", is_flag=True, help="Log QEMU's side of every message; record what passes an interposer.")
@click.option("--print-command", is_flag=True, help="Print the commands that do the same by hand, and end.")
def command(
    devices: tuple[str, ...],
    image: str,
    qemu: str | None,
    hardware: HardwareOptions,
    root_bus: bool,
    interpose: bool,
    faults: Path | None,
    fresh: bool,
    trace: bool,
    print_command: bool,
) -> None:
    """Boot a guest with a device and open a shell in it.

    Ctrl-] ends guest, QEMU and servers; where the input is no terminal its end does, once what was typed is done.
    """
    wanted = [Device.parse(text) for text in devices]
    if print_command:
        refuse_beside("--print-command prints QEMU and servers", "interpose", "faults", "fresh", "trace")
        _print_command(wanted, image, qemu, hardware, root_bus=root_bus)
        return
    waiting = Waiting()
    with interruptible(), Lab("boot", qemu=qemu, interpose=faults or interpose, progress=waiting.tell) as lab:
        lab.timeline.begun = waiting.step
        with waiting:
            guest = lab.boot(
                devices=wanted, image=image, fresh=fresh, trace=trace, monitor=True, root_bus=root_bus, **hardware
            )
        _say(_directions(lab, guest))
        if not attach(guest):
            _say("\nthe machine has ended")
        for rule in untried_faults(lab.servers) if faults else ():
            _say(f"{faults}: the rule {rule}")


def _directions(lab: Lab, guest: BootedGuest) -> str:
    devices = [f"{item.address} [{item.vendor:04x}:{item.device:04x}]" for item in guest.devices]
    rows = {
        "devices": ", ".join(devices) or "none",
        "QMP": str(lab.monitor_path(guest)),
        "console": str(guest.machine.console.log),
        "SSH": shlex.join(guest.ssh_command(lab.folder)),
        "logs": str(lab.folder),
        "to end": "Ctrl-]" if sys.stdin.isatty() else "the end of the input, or Ctrl-C",
    }
    return "\n".join(f"{name:8} {value}" for name, value in rows.items())


def _print_command(
    devices: list[Device], image: str, qemu: str | None, hardware: HardwareOptions, *, root_bus: bool
) -> None:
    program = ensure_qemu(qemu, progress=_say)
    source = ensure_image(image, progress=_say)
    lines = []
    attached = []
    for index, device in enumerate(devices):
        name, path, place = f"dev{index}", Path(f"dev{index}.sock"), root_address(index) if root_bus else index
        if device.driver:
            attached.append(inside_qemu(device.driver, name, place, device.properties))
            continue
        lines.append(f"{shlex.join(server_command(device, path))} &")
        attached.append(device.family.attach(device.served, name, path, place, device.properties))
    config = MachineConfig(machine_type(program.version), probe_accelerator(program), **hardware)
    wiring = Wiring(qmp=None, console="stdio", monitor=Path("qmp.sock"))
    start = Start(source.kernel, source.initramfs, attached=tuple(attached))
    lines.append(shlex.join(command_line(program.argv, config, wiring, start)))
    click.echo("\n".join(lines))


def _say(message: str) -> None:
    click.echo(message, err=True)
