"""The guest that a command boots: options that every such command has, in the same words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])

MEMORY = 512
"""MiB."""


def guest_hardware(*, iommu: bool = False, of_tests: bool = False) -> Callable[[F], F]:
    """Give a command --qemu, --memory, --cpus and --iommu: its arguments `qemu` and `hardware` (`HardwareOptions`).

    `iommu` is the default; with `of_tests` there are none, and `hardware` has what was said: tests know theirs.
    """
    memory, cpus, usual = (None, None, None) if of_tests else (MEMORY, 1, iommu)
    options = (
        click.option("--qemu", help="A path, a command or a name from `vfio-user qemu list`."),
        click.option("--memory", type=click.IntRange(min=128), default=memory, show_default=True, help="MiB."),
        click.option("--cpus", type=click.IntRange(min=1), default=cpus, show_default=True),
        click.option(
            "--iommu/--no-iommu",
            default=usual,
            show_default=not of_tests,
            help="An IOMMU before the devices: MSI and MSI-X for drivers in user space, and a map for each page.",
        ),
    )

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_hardware(*arguments: Any, **given: Any) -> Any:
            said = {name: given.pop(name) for name in ("memory", "cpus", "iommu")}
            hardware = {name: value for name, value in said.items() if value is not None}
            return command(*arguments, hardware=hardware, **given)

        return cast(F, functools.reduce(lambda made, option: option(made), reversed(options), with_hardware))

    return decorate
