"""The guest that a command boots: options that every such command has, in the same words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import click

from userdev.errors import UserError
from vfio_user.cli._completion import complete_devices, complete_images, complete_qemus

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]

MEMORY = 512
"""MiB."""

DEVICE = (
    "A device of `serve` with its options, as 'edu --msix 0' or vhost-user-blk; MODULE:CLASS or vhost-user:MODULE:CLASS"
    " of yours; qemu:NAME; or a server's command line with {socket} in it. Behind it may be properties of the QEMU"
    " device that has it, as [x-pci-class-code=0x088000]."
)
"""How a device is said, wherever one is."""


def device_option(name: str = "device", **attributes: Any) -> Callable[[F], F]:
    """The option --device as the argument `name`."""
    wanted = {"metavar": "DEVICE", "help": DEVICE, "shell_complete": complete_devices, **attributes}
    return click.option("--device", name, **wanted)


def image_option(**attributes: Any) -> Callable[[F], F]:
    """The option --image."""
    return click.option("--image", metavar="IMAGE", shell_complete=complete_images, **attributes)


def qemu_option(flag: str = "--qemu", **attributes: Any) -> Callable[[F], F]:
    """The option --qemu, or another one that names a QEMU in the same way."""
    wanted = {"help": "A path, a command or a name from `vfio-user qemu list`.", **attributes}
    return click.option(flag, metavar="QEMU", shell_complete=complete_qemus, **wanted)


def capture_dma_option() -> Callable[[F], F]:
    """The option --capture-dma."""
    return click.option(
        "--capture-dma", is_flag=True, help="And DMA: servers of vfio-user do theirs by message (docs/interposer.md)."
    )


def check_capture_dma(devices: Sequence[str]) -> None:
    """Refuse to capture DMA where no device of these does any that an interposer could see.

    Raises:
        UserError: that is so.
    """
    from vfio_user.harness.device import Device  # who captures nothing need not wait for it

    parsed = map(Device.parse, devices)
    if not any(each.family.keeps_sessions and not each.driver for each in parsed):
        hint = "what a device of vhost-user or QEMU's own reads and writes is shared memory: leave --capture-dma out"
        raise UserError(f"no DMA of {', '.join(devices)} goes by message", hint=hint)


def guest_hardware(*, iommu: bool = False, of_tests: bool = False, root_bus: bool = True) -> Callable[[F], F]:
    """Give a command --qemu, --memory, --cpus, --iommu, --modules, and --root-bus unless that is False.

    Its arguments are `qemu`, `root_bus` and, of all others, `hardware` (`HardwareOptions`). `iommu` is the default;
    with `of_tests` there are none, and `hardware` has what was said: tests know theirs, and their places too.
    """
    memory, cpus, usual = (None, None, None) if of_tests else (MEMORY, 1, iommu)
    hardware = {
        "memory": click.option(
            "--memory", type=click.IntRange(min=128), default=memory, show_default=True, help="MiB of the guest."
        ),
        "cpus": click.option(
            "--cpus", type=click.IntRange(min=1), default=cpus, show_default=True, help="Processors of the guest."
        ),
        "iommu": click.option(
            "--iommu/--no-iommu",
            default=usual,
            show_default=not of_tests,
            help="An IOMMU before the devices: MSI and MSI-X for drivers in user space, and a map for each page.",
        ),
    }
    if not of_tests:
        hardware["modules"] = click.option(
            "--modules",
            metavar="NAME,...",
            multiple=True,
            callback=_names,
            help="Kernel modules of the image that the guest loads when it boots; may be repeated.",
        )
    options = [qemu_option(), *hardware.values()]
    if root_bus and not of_tests:
        options.append(
            click.option(
                "--root-bus",
                is_flag=True,
                help="Devices on the root bus itself; the guest boots with them, in seconds.",
            )
        )

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_hardware(*arguments: Any, **given: Any) -> Any:
            said = {name: given.pop(name) for name in hardware}
            return command(
                *arguments, hardware={name: it for name, it in said.items() if it not in (None, ())}, **given
            )

        return cast(F, functools.reduce(lambda made, option: option(made), reversed(options), with_hardware))

    return decorate


def _names(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """The names in NAME,NAME of every time that an option was given."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())
