"""A disk that a PC's firmware boots from: boot sector, GRUB, kernel and initramfs, one behind the other.

GRUB is told of files by their sectors ("Block Lists" in its manual), so that the disk needs no file system.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from userdev.errors import about
from vfio_user.harness.command_line import MachineConfig, kernel_options
from vfio_user.harness.debian import Progress, quiet
from vfio_user.harness.toolchain import boot_loader

if TYPE_CHECKING:
    from vfio_user.harness.image import GuestImage

SECTOR = 512
_KERNEL_AT = 2048  # sectors, as a first partition is; GRUB has 270


def write_boot_disk(path: Path, image: GuestImage, hardware: MachineConfig, *, progress: Progress = quiet) -> None:
    """Make the file `path` a disk of which firmware boots `image`, in a machine with this `hardware`.

    Raises:
        UserError: the boot loader cannot be fetched.
    """
    loader = boot_loader(progress=progress)
    initramfs_at = _KERNEL_AT + _sectors(image.bzimage)
    words = (word.replace('"', "") for word in kernel_options(hardware))  # GRUB puts them around what has spaces
    script = (
        f"linux {_KERNEL_AT}+{_sectors(image.bzimage)} {shlex.join(words)}\n"
        f"initrd {initramfs_at}+{_sectors(image.initramfs)}\n"
        "boot\n"
    )
    with about(path), path.open("wb") as disk:
        disk.write(loader.build(script, path.parent))
        for place, source in ((_KERNEL_AT, image.bzimage), (initramfs_at, image.initramfs)):
            disk.seek(place * SECTOR)
            with source.open("rb") as content:
                shutil.copyfileobj(content, disk, 1 << 20)
        disk.truncate((initramfs_at + _sectors(image.initramfs)) * SECTOR)


def _sectors(path: Path) -> int:
    return -(-path.stat().st_size // SECTOR)
