"""What the processes of a job find: programs, packages, deadlines, the cell; QEMU and the images."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vfio_user.harness.cell import Cell
from vfio_user.harness.debian import Progress
from vfio_user.harness.image import ensure_image
from vfio_user.harness.qemu import ensure_qemu
from vfio_user.harness.timeouts import SCALE_VARIABLE

IMAGES = ("minimal", "storage")
"""What the project's own tests boot."""


def provision(qemu: str, say: Progress) -> None:
    """Have QEMU and the images before a test's time runs, and say what takes long."""
    ensure_qemu(qemu or None, progress=say)
    for image in IMAGES:
        ensure_image(image, progress=say)


def prepare_environment(
    root: Path,
    timeout_factor: float | None = None,
    cell: Cell = Cell(),  # noqa: B008  # nothing of it changes
    packages: Sequence[Path] = (),
) -> None:
    """For the processes of avocado's runner: its programs, our package, the factor for every deadline, the cell.

    `packages` are the folders in which tests' packages are, for what these import of theirs. Without a factor it stays
    what VFIO_USER_TIMEOUT_SCALE says.
    """
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    sys.path.insert(0, str(root))  # where avocado looks for the classes that tests derive from
    sys.path += map(str, packages)
    paths = (str(root), os.environ.get("PYTHONPATH", ""), *map(str, packages))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if timeout_factor is not None:
        os.environ[SCALE_VARIABLE] = str(timeout_factor)
    os.environ.update(cell.exported())
