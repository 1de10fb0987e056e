"""What of the doctor's findings is mended without root: a remedy gets what is missing into the cache, or makes room."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from userdev.counted import counted
from userdev.errors import UserError
from vfio_user.harness.cache import cache_dir, locked
from vfio_user.harness.checkpoint import checkpoints
from vfio_user.harness.debian import Progress, quiet
from vfio_user.harness.doctor import CHECKS, DEFAULT_IMAGE, Finding, Readiness, examine
from vfio_user.harness.image import build_image
from vfio_user.harness.qemu import install_qemu
from vfio_user.harness.toolchain import debugger


@dataclass(frozen=True)
class Treated:
    """A finding, what was done about it, and what it is since. `done` is "" where nothing could be done from here."""

    finding: Finding
    done: str = ""
    failure: str = ""
    seconds: float = 0.0

    @property
    def is_left(self) -> bool:
        """Whether it is for a person to mend: not good, and with something to do about it."""
        return self.finding.state is not Readiness.GOOD and bool(self.finding.hint)


def _install_qemu(progress: Progress) -> str:
    return f"installed {install_qemu(progress=progress).version_text}"


def _build_image(progress: Progress) -> str:
    return f"built the guest image {build_image(DEFAULT_IMAGE, progress=progress).name}"


def _fetch_debugger(progress: Progress) -> str:
    return f"fetched gdb into {debugger(progress=progress).root}"


def _make_room(_progress: Progress) -> str:
    """Checkpoints are made again by whoever needs one, within seconds."""
    before = shutil.disk_usage(cache_dir()).free
    found = checkpoints()
    for checkpoint in found:
        with locked(f"checkpoint-{checkpoint.name}"):
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
    freed = shutil.disk_usage(cache_dir()).free - before
    removed = counted(len(found), "checkpoint")
    return f"removed {removed} of guests, {max(0, freed) / 1e9:.1f} GB" if found else ""


REMEDIES: Mapping[str, Callable[[Progress], str]] = {
    "disk": _make_room,
    "QEMU": _install_qemu,
    "guest image": _build_image,
    "debugger": _fetch_debugger,
}
"""By the name of a check: does what there is to do, and says what it has done; nothing where that came to nothing."""


def treat(progress: Progress = quiet) -> Iterator[Treated]:
    """Ask every question of the doctor's, and do what can be done where something is missing; each is asked again.

    What fails is the finding's, with its reason: the others are treated all the same.
    """
    for name in CHECKS:
        finding = examine(name)
        remedy = REMEDIES.get(name)
        if finding.state is Readiness.GOOD or remedy is None:
            yield Treated(finding)
            continue
        began = time.monotonic()
        try:
            done = remedy(progress)
        except (UserError, OSError) as error:
            yield Treated(finding, failure=str(error))
            continue
        yield Treated(examine(name), done, seconds=time.monotonic() - began)
