"""Where the cells of a night run: the seam between what is run and on which machines.

A `Place` makes itself ready, gives avocado the settings of its spawner, and says afterwards where a test ran.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from userdev.errors import UserError
from vfio_user.harness.accelerator import probe_accelerator
from vfio_user.harness.debian import Progress
from vfio_user.harness.image import ensure_image
from vfio_user.harness.qemu import Qemu, ensure_qemu
from vfio_user.nightly.summary import Machine, Slot

_RELEASE = b"Linux version "


class Place(Protocol):
    """Where cells run."""

    def make_ready(self, qemus: Mapping[str, str], images: Sequence[str], say: Progress) -> Readiness:
        """Have what cells need, and say what of it cannot be had. `qemus` are those of the plan, by their names.

        Raises:
            UserError: nothing can be run here.
        """

    def settings(self) -> Mapping[str, Any]:
        """Those of avocado's that say where and how tests are started."""

    def ran(self, test: Mapping[str, Any]) -> Ran:
        """Where a test of avocado's result ran. What it left is in avocado's folder for it."""

    def close(self) -> None:
        """Leave nothing running."""


@dataclass(frozen=True)
class Ran:
    """Which slot ran a test last, and how often it was begun."""

    slot: str
    attempts: int


@dataclass(frozen=True)
class Readiness:
    """What a place has: the versions of QEMUs by their names in the plan, and why some cannot be had."""

    slots: tuple[Slot, ...]
    qemus: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)
    kernel: str = ""
    """The release of the guests' kernel."""
    remarks: tuple[str, ...] = ()
    """What a reader of the summary has to know of it."""


@dataclass(frozen=True)
class Here:
    """This machine, `parallel` cases at once."""

    parallel: int

    def make_ready(self, qemus: Mapping[str, str], images: Sequence[str], say: Progress) -> Readiness:
        """Fetch QEMUs and images."""
        found: dict[str, Qemu] = {}
        missing = {}
        for name, wanted in qemus.items():
            try:
                found[name] = ensure_qemu(wanted or None, progress=say)
            except UserError as error:
                missing[name] = f"{error} ({error.hint})" if error.hint else str(error)
                say(f"QEMU {name} is not to be had: {missing[name]}")
        kernels = [ensure_image(image, progress=say).kernel for image in images]
        machine = this_machine(found.values())
        return Readiness(
            (Slot(name="here", machine=machine, parallel=self.parallel),),
            {name: str(qemu.version) for name, qemu in found.items()},
            missing,
            kernel_release(kernels[0]) if kernels else "",
        )

    def settings(self) -> Mapping[str, Any]:
        """Processes of this machine's."""
        return {"run.max_parallel_tasks": self.parallel}

    def ran(self, test: Mapping[str, Any]) -> Ran:
        """There is one slot, and one attempt."""
        return Ran("here", 1)

    def close(self) -> None:
        """Nothing runs on."""


def this_machine(qemus: Iterable[Qemu]) -> Machine:
    """The machine that this runs on."""
    first = next(iter(qemus), None)
    return Machine(
        name=platform.node(),
        kernel=platform.release(),
        processors=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total >> 20,
        python=".".join(map(str, sys.version_info[:3])),
        accelerator=probe_accelerator(first) if first else "tcg",
    )


def kernel_release(kernel: Path) -> str:
    """The release of a kernel as it says it itself: 6.12.117+deb13-amd64."""
    content = kernel.read_bytes()
    at = content.find(_RELEASE)
    return content[at + len(_RELEASE) : at + 200].split()[0].decode(errors="replace") if at >= 0 else ""
