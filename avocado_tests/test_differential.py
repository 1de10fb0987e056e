"""Our NVMe controller and QEMU's own, side by side in one guest: the same programs, and the same answers.

What differs on purpose is listed here with its reason; a difference that is not listed fails, and so does one that is
listed and is gone. test_same_as_qemu.py has the same for edu. What is said of QEMU is in its hw/nvme/ctrl.c and ns.c
(read in 10.0), what is said of the guest's driver in Linux' drivers/nvme/host/core.c and pci.c (6.12).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from avocado_tests.nvme_test import MIB, NvmeTest, block_device
from avocado_tests.programs.files import read_tree, write_tree
from vfio_user.harness import BootedGuest, Device, HardwareOptions, Plugged, Property, succeed

NOWHERE = (
    "QEMU drops data for unmapped memory, takes zeros from there, and tells nobody but of lists; we tell the guest"
)
ABSENT_CQ = "for Delete I/O Completion Queue the specification has Invalid Queue Identifier; QEMU says that the CQ is"

STATUSES: Mapping[str, tuple[str, str, str]] = {
    # command: ours, QEMU's, reason
    "identify to nowhere": ("0x4", "0x0", NOWHERE),
    "read to nowhere": ("0x4", "0x0", NOWHERE),
    "write from nowhere": ("0x4", "0x0", NOWHERE),
    "read to nowhere in the second page": ("0x4", "0x0", NOWHERE),
    "a list of nowhere": ("0x4", "0x0", NOWHERE),
    "a descriptor of nowhere": ("0x4", "0x0", NOWHERE),
    "ranges from nowhere": ("0x4", "0x0", NOWHERE),
    "unknown log": ("0x109", "0x2", "Invalid Log Page is for that; QEMU says Invalid Field"),
    "set no queues": (
        "0x2",
        "0xc",
        "wrong twice: the value, and that queues exist; QEMU looks at the latter first, and calls it a wrong sequence",
    ),
    "create SQ on the admin CQ": (
        "0x101",
        "0x100",
        "the specification has Invalid Queue Identifier for that and for one that there cannot be",
    ),
    "delete CQ 0": ("0x101", "0x100", ABSENT_CQ),
    "delete CQ that there is not": ("0x101", "0x100", ABSENT_CQ),
    "an unknown descriptor": (
        "0x11",
        "0xd",
        "SGL Descriptor Type Invalid is for that; QEMU says so within segments, not of the first",
    ),
}
IDENTITY: Mapping[str, tuple[int, int, str]] = {
    "namespaces": (1, 256, "QEMU counts those that could be; we have those that have an image"),
    "optional commands": (0x4D, 0x75D, "QEMU has Copy, atomic and fast, and features that can be saved, too"),
    "optional admin commands": (0x10A, 0x12B, "QEMU has Directives and Security, too"),
    "scatter gather lists": (0x10001, 0x80001, "we have bit buckets; QEMU takes a metadata pointer to a list"),
    "transfer size": (8, 7, "1 MiB, that a megabyte is one command; QEMU's default is 512 KiB"),
    "metadata": (0, 3, "QEMU has formats with metadata"),
    "protection": (0, 0x1F, "and with protection information"),
    "features": (0, 0x34, "QEMU can make reads of deallocated blocks errors, and tells preferred sizes"),
}
QUEUE: Mapping[str, tuple[str, str, str]] = {
    "discard_max_bytes": ("2199023255040", "2147483136", "QEMU limits a range (DMRSL) to what its block layer takes"),
    "discard_max_hw_bytes": ("2199023255040", "2147483136", "the same"),
    "max_hw_sectors_kb": ("1024", "512", "the transfer size: see there"),
    "max_sectors_kb": ("1024", "512", "the same"),
    "write_zeroes_max_bytes": ("1048576", "524288", "the same"),
    "max_discard_segments": (
        "256",
        "255",
        "QEMU's own limit (DMRL) is a byte; where there is none the driver takes 256",
    ),
    "max_integrity_segments": ("1", "15", "the driver takes more where a metadata pointer may be a list"),
}


class Differential(NvmeTest):
    """
    :avocado: tags=nvme,reference
    """

    maxDiff = None

    def test_commands_good_and_malformed(self) -> None:
        """Past the driver: statuses, what they say that they are, and what is on the disk in the end."""
        with self.both(iommu=True) as (guest, *controllers):
            ours, theirs = (succeed(guest, "nvme_commands", "--slot", each.address).seen for each in controllers)
            for queue in ("admin", "io"):
                self.compare(ours["statuses"][queue], theirs["statuses"][queue], STATUSES)
            for thing in ("controller", "namespace"):
                self.compare(ours["identity"][thing], theirs["identity"][thing], IDENTITY)
            self.assertEqual(ours["data"], theirs["data"])
            every = {*ours["statuses"]["admin"], *ours["statuses"]["io"]}
            self.assertLessEqual(STATUSES.keys(), every)

    def test_what_the_driver_makes_of_them(self) -> None:
        """The block device's limits, and a file system with the same files on both.

        :avocado: tags=nightly
        """
        with self.both() as (guest, *controllers):
            guest.succeed("modprobe nvme", "modprobe ext4", "mkdir -p /mnt")
            limits: list[dict[str, str]] = []
            trees: list[dict[str, str]] = []
            for each in controllers:
                disk = block_device(guest, plugged=each)
                limits.append(queue_limits(guest, disk))
                guest.succeed(f"mkfs.ext4 -q {disk}", f"mount -t ext4 {disk} /mnt")
                guest.call(write_tree, "/mnt/tree", 60, 11)
                guest.succeed("umount /mnt", f"e2fsck -fn {disk}", f"mount -t ext4 {disk} /mnt")
                trees.append(guest.call(read_tree, "/mnt/tree"))
                guest.succeed("umount /mnt")
                self.fio(guest, disk, rw="randwrite", bsrange="4k-256k", iodepth=16, size="4m", verify="crc32c")
            self.compare(limits[0], limits[1], QUEUE)
            self.assertEqual(trees[0], trees[1])

    # -- what they share --------------------------------------------------------------------------------------------

    @contextmanager
    def both(self, **boot: Unpack[HardwareOptions]) -> Iterator[tuple[BootedGuest, Plugged, Plugged]]:
        """A guest with our controller and QEMU's, each on a new image of 64 MiB."""
        with tempfile.TemporaryDirectory(prefix="vfu-") as scratch, self.lab() as lab:
            guest = lab.boot(image="storage", **boot)
            ours = guest.plug(f"nvme --image {scratch}/ours.img:64M --msix=no")
            yield guest, ours, plug_qemu_nvme(guest, Path(scratch, "qemu.img"), 64 * MIB)

    def compare(
        self, ours: Mapping[str, Any], theirs: Mapping[str, Any], intended: Mapping[str, tuple[Any, Any, str]]
    ) -> None:
        """All that differs is listed, with these values; what is listed differs."""
        self.assertEqual(ours.keys(), theirs.keys())
        differs = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
        listed = {name: (our, their) for name, (our, their, _) in intended.items() if name in ours}
        self.assertEqual(differs, listed)


def plug_qemu_nvme(
    guest: BootedGuest, image: Path, size: int, *, node: str = "image", **properties: Property
) -> Plugged:
    """QEMU's controller, on a new raw image."""
    with image.open("wb") as file:
        file.truncate(size)
    file_node = {"driver": "file", "filename": str(image), "discard": "unmap", "node-name": node}
    guest.qmp.command("blockdev-add", **file_node)
    return guest.plug(Device(driver="nvme", properties={"drive": node, "serial": node, **properties}))


def queue_limits(guest: BootedGuest, disk: str) -> dict[str, str]:
    """/sys/block/NAME/queue."""
    lines = guest.succeed(f"cd /sys/block/{Path(disk).name}/queue && grep -s . *").splitlines()
    return dict(line.split(":", 1) for line in lines)
