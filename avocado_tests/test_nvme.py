"""The NVMe controller under the kernel's own driver: file systems, fio, nvme-cli, and what else may happen to it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avocado_tests.nvme_test import IO_TIMEOUT, MIB, NvmeTest, character_device
from avocado_tests.programs.files import read_tree, write_tree
from vfio_user.harness import BootedGuest, Device, QmpError

RELIABILITY = 1 << 2
"""Bit of SMART's critical warnings: something was lost."""


class Storage(NvmeTest):
    """
    :avocado: tags=nvme,storage
    """

    def test_a_file_system_keeps_a_tree_of_files(self) -> None:
        """mkfs, a tree with checksums, out and in again, and a check of the file system."""
        with self.bench() as bench:
            guest, disk = bench.guest, bench.block()
            guest.succeed(f"mkfs.ext4 -q {disk}", "mkdir -p /mnt", f"mount -t ext4 {disk} /mnt")
            written = guest.call(write_tree, "/mnt/tree", 80, 7)
            guest.succeed("umount /mnt", f"e2fsck -fn {disk}", f"mount -t ext4 {disk} /mnt")
            self.assertEqual(guest.call(read_tree, "/mnt/tree"), written)
            guest.succeed("umount /mnt")

    def test_what_the_guest_writes_is_in_the_image(self) -> None:
        """Byte for byte, wherever it was written."""
        with self.bench() as bench:
            guest, disk = bench.guest, bench.block()
            for offset in (0, 4096, 33 * MIB + 512, 64 * MIB - 1024):
                guest.call(_write_at, disk, offset, b"at %08x" % offset + bytes(range(256)) * 2)
                with bench.image.open("rb") as image:
                    image.seek(offset)
                    self.assertEqual(image.read(523), b"at %08x" % offset + bytes(range(256)) * 2)

    def test_random_blocks_of_many_sizes_are_verified(self) -> None:
        """4 KiB to 1 MiB, four jobs, few and many commands at a time."""
        self.verify((1, 64), size="3m")

    def test_fio_verifies_all_night(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.verify((1, 2, 4, 8, 16, 32, 64), size="64m", cpus=4, disk="512M", timeout=600)

    def verify(
        self, depths: tuple[int, ...], *, size: str, cpus: int = 1, disk: str = "64M", timeout: float = 60
    ) -> None:
        with self.bench(disk, cpus=cpus) as bench:
            for depth in depths:
                figures = self.fio(
                    bench.guest,
                    bench.block(),
                    rw="randwrite",
                    bsrange="4k-1m",
                    iodepth=depth,
                    numjobs=4,
                    size=size,
                    offset_increment=size,
                    verify="crc32c",
                    verify_fatal=1,
                    timeout=timeout,
                )
                self.assertGreater(figures["read"]["total_ios"], 0)


class Namespaces(NvmeTest):
    """
    :avocado: tags=nvme,namespaces
    """

    def test_namespaces_do_not_mix(self) -> None:
        with self.bench("64M", "8M", "16M") as bench:
            guest = bench.guest
            for nsid in (1, 2, 3):
                guest.call(_write_at, bench.block(nsid), 4096, b"namespace %d" % nsid)
            for nsid in (1, 2, 3):
                image = (bench.folder / f"disk{nsid - 1}.img").read_bytes()[4096:]
                self.assertEqual(image.rstrip(b"\0"), b"namespace %d" % nsid)

    def test_a_read_only_namespace_is_read_and_not_written(self) -> None:
        with self.bench("64M", "8M:ro") as bench:
            guest, disk = bench.guest, bench.block(2)
            before = (bench.folder / "disk1.img").read_bytes()
            self.assertEqual(guest.succeed(f"blockdev --getro {disk}").strip(), "1")
            guest.succeed(f"cmp -n 8 {disk} /dev/zero")
            guest.fail(f"dd if=/dev/zero of={disk} bs=4k count=1 oflag=direct")
            # Past the driver, which knows that it is read-only.
            done = guest.run(f"nvme write {disk} -s 0 -c 7 -z 4096 -d /bin/busybox")
            self.assertFalse(done.ok)
            self.assertIn("Write Protected", done.stdout + done.stderr)
            self.assertEqual((bench.folder / "disk1.img").read_bytes(), before)

    def test_a_namespace_grows_and_shrinks_in_use(self) -> None:
        """The driver hears of it by an event; a mounted file system grows with it."""
        with self.bench("16M") as bench:
            guest, disk = bench.guest, bench.block()
            guest.succeed(f"dd if=/dev/urandom of={disk} bs=1M count=16 oflag=direct", f"md5sum {disk} > /tmp/before")
            with bench.control as control:
                control.call("resize", nsid=1, size="48M")
                bench.block(size=48 * MIB)
                guest.succeed(f"head -c {16 * MIB} {disk} | md5sum | cut -c-32 | grep -qf - /tmp/before")
                guest.succeed(f"dd if=/bin/busybox of={disk} bs=64k seek=760 count=8 oflag=direct")
                control.call("resize", nsid=1, size="8M")
                bench.block(size=8 * MIB)
                behind = guest.run(f"nvme read {disk} -s {8 * MIB // 512} -c 0 -z 512")
                self.assertIn("LBA Out of Range", behind.stdout + behind.stderr)

    def test_namespaces_come_and_go(self) -> None:
        """Detach, attach, delete and create with nvme-cli; the image keeps what was written but for a deleted one."""
        with self.bench("16M", "8M") as bench:
            guest, controller = bench.guest, character_device(bench.guest)
            guest.call(_write_at, bench.block(2), 0, b"kept")
            guest.succeed(f"nvme detach-ns {controller} -n 2 -c 0")
            guest.wait_until_succeeds(f"nvme list-ns {controller} | grep -c . | grep -qx 2", interval=0.02)
            guest.succeed(f"nvme attach-ns {controller} -n 2 -c 0", f"nvme ns-rescan {controller}")
            self.assertEqual(guest.succeed(f"dd if={bench.block(2)} bs=4 count=1 iflag=fullblock"), "kept")
            guest.succeed(f"nvme delete-ns {controller} -n 2")
            guest.succeed(f"nvme create-ns {controller} -s 1024 -c 1024 -f 1", f"nvme attach-ns {controller} -n 2 -c 0")
            guest.succeed(f"nvme ns-rescan {controller}")
            disk = bench.block(2, size=4 * MIB)
            self.assertEqual(guest.succeed(f"blockdev --getss {disk}").strip(), "4096")
            guest.succeed(f"cmp -n {4 * MIB} {disk} /dev/zero")

    def test_a_namespace_is_removed_by_the_host_under_use_and_comes_back(self) -> None:
        """Hot removal: Linux hears of it by an event, takes the disk away from who uses it, and finds it again."""
        with self.bench("16M", "8M") as bench, bench.control as control:
            guest, disk = bench.guest, bench.block(2)
            guest.call(_write_at, disk, 0, b"kept")
            work = f"--filename={disk} --rw=randwrite --bs=4k --offset=1M --direct=1 --iodepth=8 --ioengine=libaio"
            writer = guest.start(f"fio --name=work {work} --time_based --runtime=60")
            guest.wait_until_succeeds(
                f"set $(cat /sys/block/{disk[5:]}/stat); [ $5 -gt 0 ]", interval=0.02
            )  # it writes
            control.call("detach", nsid=2)
            ended = writer.wait()
            self.assertFalse(ended.ok, "whoever used it is told")
            self.assertLess(ended.seconds, 30, "and at once")
            guest.wait_until_succeeds(f"! [ -e /sys/block/{disk[5:]} ]", interval=0.02)
            active = ask(guest, f"nvme list-ns {character_device(guest)}")["nsid_list"]
            self.assertEqual([each["nsid"] for each in active], [1])
            guest.call(_write_at, bench.block(1), 0, b"the other works on")
            control.call("attach", nsid=2)
            self.assertEqual(guest.succeed(f"dd if={bench.block(2)} bs=4 count=1 iflag=fullblock"), "kept")


class Administration(NvmeTest):
    """
    :avocado: tags=nvme,admin
    """

    def test_nvme_cli_reads_what_the_controller_is(self) -> None:
        with self.bench("64M") as bench:
            guest, disk, controller = bench.guest, bench.block(), character_device(bench.guest)
            about = ask(guest, f"nvme id-ctrl {controller}")
            self.assertEqual((about["vid"], about["mn"].strip(), about["nn"]), (0x4E58, "vfio-user NVMe", 1))
            self.assertEqual(ask(guest, f"nvme id-ns {disk}")["nsze"], 64 * MIB // 512)
            self.assertEqual(int(guest.succeed(f"blockdev --getsize64 {disk}")), 64 * MIB)
            before = ask(guest, f"nvme smart-log {controller}")
            guest.succeed(f"dd if=/dev/zero of={disk} bs=64k count=32 oflag=direct")
            after = ask(guest, f"nvme smart-log {controller}")
            self.assertEqual(after["host_write_commands"] - before["host_write_commands"], 32)
            self.assertEqual(after["critical_warning"], 0)
            for log in ("fw-log", "effects-log --csi=0", "changed-ns-list-log"):  # without --csi it maps BAR 0, in use
                guest.succeed(f"nvme {log} {controller}")
            for feature in ("1", "2", "4", "6", "7", "8", "0xa", "0xb"):
                guest.succeed(f"nvme get-feature {controller} -f {feature}")

    def test_a_refused_command_is_in_the_error_log(self) -> None:
        with self.bench("8M") as bench:
            guest, controller = bench.guest, character_device(bench.guest)
            guest.fail(f"nvme read {bench.block()} -s 99999999 -c 0 -z 512")
            count = ask(guest, f"nvme smart-log {controller}")["num_err_log_entries"]
            newest = ask(guest, f"nvme error-log {controller} -e 1")["errors"][0]
            self.assertEqual((newest["error_count"], newest["lba"], newest["nsid"]), (count, 99999999, 1))

    def test_format_empties_a_namespace_and_changes_its_blocks(self) -> None:
        with self.bench("8M") as bench:
            guest, disk = bench.guest, bench.block()
            for place, size in ((1, 4096), (0, 512)):
                guest.succeed(f"dd if=/dev/urandom of={disk} bs=1M count=8 oflag=direct")
                guest.succeed(f"nvme format -f -l {place} {disk}")
                disk = bench.block(size=8 * MIB)
                self.assertEqual(int(guest.succeed(f"blockdev --getss {disk}")), size)
                guest.succeed(f"cmp -n {8 * MIB} {disk} /dev/zero")

    def test_discarded_and_zeroed_blocks_are_zeros(self) -> None:
        with self.bench("8M") as bench:
            guest, disk = bench.guest, bench.block()
            for name, request in (("BLKDISCARD", 0x1277), ("BLKZEROOUT", 0x127F)):
                guest.succeed(f"dd if=/dev/urandom of={disk} bs=1M count=8 oflag=direct")
                whole = bench.image.read_bytes()
                guest.call(_block_request, disk, request, MIB, 4 * MIB)
                expected = whole[:MIB] + bytes(4 * MIB) + whole[5 * MIB :]
                self.assertTrue(bench.image.read_bytes() == expected, name)

    def test_the_driver_leaves_and_comes_back(self) -> None:
        with self.bench("8M") as bench:
            guest = bench.guest
            guest.succeed(f"dd if=/dev/urandom of={bench.block()} bs=1M count=8 oflag=direct")
            image = bench.image.read_bytes()
            for _ in range(2):
                guest.succeed(
                    f"echo {guest.device.address} > /sys/bus/pci/drivers/nvme/unbind",
                    "test ! -e /sys/class/nvme/nvme0",
                    f"echo {guest.device.address} > /sys/bus/pci/drivers/nvme/bind",
                )
                guest.succeed(f"dd if={bench.block()} of=/tmp/copy bs=1M iflag=direct")
                self.assertTrue(guest.get("/tmp/copy") == image)

    def test_a_device_without_msix_works_and_can_be_unplugged(self) -> None:
        with self.bench("16M", options="--msix=no") as bench:
            guest = bench.guest
            self.fio(guest, bench.block(), rw="randwrite", bs="4k", iodepth=8, size="1m", verify="crc32c")
            self.assertIn("IO-APIC", guest.succeed("grep nvme /proc/interrupts"))
            guest.unplug(guest.device)

    def test_without_shadow_doorbells(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.bench("16M", options="--shadow-doorbells=no") as bench:
            self.fio(bench.guest, bench.block(), rw="randwrite", bs="4k", iodepth=32, size="2m", verify="crc32c")


class Trouble(NvmeTest):
    """What goes wrong below, and how the guest is told.

    :avocado: tags=nvme,errors
    """

    def test_a_full_disk_is_no_space(self) -> None:
        """The host lets the server's files grow no more, in the middle of the guest's work."""
        with self.bench("16M", io_timeout=10) as bench:
            guest, disk = bench.guest, bench.block()
            guest.succeed(f"dd if=/dev/zero of={disk} bs=64k count=4 oflag=direct")
            server = guest.device.server
            assert server is not None
            with limited(server.child.pid, 4 * MIB):
                full = guest.run(f"dd if=/dev/zero of={disk} bs=64k seek=128 count=1 oflag=direct")
                self.assertIn("No space left", full.stderr)
                refused = guest.run(f"nvme write {disk} -s 16384 -c 7 -z 4096 -d /bin/busybox")
                self.assertIn("Capacity Exceeded", refused.stdout + refused.stderr)
                self.assertEqual(newest_error(guest), (16384, 0x081))
                guest.succeed(f"dd if={disk} of=/dev/null bs=64k count=256 iflag=direct")
            guest.succeed(f"dd if=/dev/zero of={disk} bs=64k seek=128 count=1 oflag=direct")
            smart = ask(guest, f"nvme smart-log {character_device(guest)}")
            self.assertEqual(smart["media_errors"], 0)

    def test_a_disk_that_cannot_be_read_is_a_media_error(self) -> None:
        """The image is cut under the server; what is left of it is still read."""
        with self.bench("16M", io_timeout=10) as bench:
            guest, disk, controller = bench.guest, bench.block(), character_device(bench.guest)
            os.truncate(bench.image, 8 * MIB)
            guest.succeed(f"dd if={disk} of=/dev/null bs=64k count=128 iflag=direct")
            guest.fail(f"dd if={disk} of=/dev/null bs=64k skip=128 count=1 iflag=direct")
            told = guest.run(f"nvme read {disk} -s 20000 -c 0 -z 512")
            self.assertIn("Unrecovered Read Error", told.stdout + told.stderr)
            self.assertGreater(ask(guest, f"nvme smart-log {controller}")["media_errors"], 0)
            self.assertEqual(newest_error(guest), (20000, 0x281))
            os.truncate(bench.image, 16 * MIB)
            guest.fail(f"dd if={disk} of=/dev/null bs=64k skip=128 count=1 iflag=direct")
            guest.fail(f"dd if=/dev/zero of={disk} bs=4k count=1 oflag=direct")
            self.assertEqual(ask(guest, f"nvme smart-log {controller}")["critical_warning"] & RELIABILITY, RELIABILITY)

    def test_a_disk_that_cannot_be_written_is_a_write_fault(self) -> None:
        """Bad blocks, then a disk that takes writes and cannot keep them: seen by who asks for them to be kept."""
        with self.bench("16M", io_timeout=10) as bench, bench.control as control:
            guest, disk, controller = bench.guest, bench.block(), character_device(bench.guest)
            control.call("break", nsid=1, operation="write", first=20000, blocks=8)
            write = f"nvme write {disk} -c 7 -z 4096 -d /bin/busybox"
            guest.succeed(f"{write} -s 19992")
            told = guest.run(f"{write} -s 20000")
            self.assertIn("Write Fault", told.stdout + told.stderr)
            self.assertEqual(newest_error(guest), (20000, 0x280))
            self.assertEqual(ask(guest, f"nvme smart-log {controller}")["media_errors"], 1)
            failed = guest.run(f"dd if=/dev/zero of={disk} bs=4k seek=2500 count=1 oflag=direct")
            self.assertIn("No data available", failed.stderr)  # what Linux makes of an error of the medium
            control.call("mend", nsid=1)
            control.call("break", nsid=1, operation="sync")
            guest.succeed(f"{write} -s 20000")
            self.assertFalse(guest.run(f"{write} -s 20000 --force-unit-access").ok)
            guest.fail(f"dd if=/dev/zero of={disk} bs=4k count=1 conv=fsync")
            control.call("mend", nsid=1)
            guest.fail(f"dd if=/dev/zero of={disk} bs=4k count=1 conv=fsync")
            self.assertEqual(ask(guest, f"nvme smart-log {controller}")["critical_warning"] & RELIABILITY, RELIABILITY)

    def test_a_thin_volume_that_has_lost_something_fails_every_fsync(self) -> None:
        """The page cache tells one fdatasync of it, and the next that all is well; the guest is told by both."""
        with self.bench("16M", io_timeout=10) as bench, bench.control as control:
            guest, disk = bench.guest, bench.block()
            guest.succeed(f"dd if=/dev/urandom of={disk} bs=64k count=16 conv=fsync")
            control.call("break", nsid=1, operation="sync", error="ENOSPC")
            told = guest.run(f"dd if=/dev/urandom of={disk} bs=64k count=16 conv=fsync")
            self.assertIn("No space left", told.stderr)
            control.call("mend", nsid=1)
            for _ in range(3):
                guest.fail(f"dd if=/dev/urandom of={disk} bs=64k count=1 conv=fsync")

    def test_qemu_does_not_write_what_is_served_here_nor_the_other_way_round(self) -> None:
        """Each refuses the other's image, and ours says which process has it."""
        with self.bench("8M") as bench, tempfile.TemporaryDirectory(prefix="vfu-") as scratch:
            guest, theirs = bench.guest, Path(scratch, "theirs.img")
            for node, image in (("ours", bench.image), ("theirs", theirs)):
                with image.open("ab") as file:
                    file.truncate(8 * MIB)
                guest.qmp.command("blockdev-add", **{"driver": "file", "filename": str(image), "node-name": node})
            with self.assertRaisesRegex(QmpError, "lock"):
                guest.plug(Device(driver="nvme", properties={"drive": "ours", "serial": "ours"}))
            guest.plug(Device(driver="nvme", properties={"drive": "theirs", "serial": "theirs"}))
            for shown in (str(theirs), f"{theirs}:ro"):
                serve = ["vfio_user", "serve", "nvme", "--socket-path", f"{scratch}/socket", "--image", shown]
                refused = subprocess.run(
                    [sys.executable, "-m", *serve], capture_output=True, text=True, timeout=60, check=False
                )
                self.assertEqual(refused.returncode, 2)
                self.assertRegex(refused.stderr, r"in use by process \d+ \(.*qemu")

    def test_resets_under_load_lose_nothing(self) -> None:
        """Controller resets by nvme-cli and function level resets, while fio writes and verifies."""
        with self.bench("64M", io_timeout=5) as bench:
            guest, controller = bench.guest, character_device(bench.guest)
            load = self.start_load(bench, rw="randwrite", bsrange="4k-64k", iodepth=16, size="8m", runtime=2)
            for _ in range(4):
                guest.wait_until_succeeds(f"nvme reset {controller}", interval=0.05)
            guest.succeed(f"echo 1 > {guest.device.sysfs}/reset")
            result = load.wait()
            self.assertTrue(result.ok, result.describe())

    def test_a_subsystem_reset_is_recovered_from(self) -> None:
        """The driver does not notice by itself; its next reset finds a controller that works."""
        with self.bench("8M", options="--subsystem-reset=yes", io_timeout=IO_TIMEOUT) as bench:
            guest, controller = bench.guest, character_device(bench.guest)
            guest.succeed(f"dd if=/dev/urandom of={bench.block()} bs=1M count=8 oflag=direct")
            image = bench.image.read_bytes()
            guest.succeed(f"nvme subsystem-reset {controller}")
            guest.wait_until_succeeds(f"nvme reset {controller}", interval=0.05)
            guest.succeed(f"dd if={bench.block()} of=/tmp/copy bs=1M iflag=direct")
            self.assertTrue(guest.get("/tmp/copy") == image)


def ask(guest: BootedGuest, command: str) -> Mapping[str, Any]:
    """What nvme-cli says, from its JSON."""
    found: Mapping[str, Any] = json.loads(guest.succeed(f"{command} -o json"))
    return found


def newest_error(guest: BootedGuest) -> tuple[int, int]:
    """The newest entry of the error log: block, status code type and status code."""
    newest = ask(guest, f"nvme error-log {character_device(guest)} -e 1")["errors"][0]
    return newest["lba"], newest["status_field"] & 0x7FF


@contextmanager
def limited(process: int, size: int) -> Iterator[None]:
    """The process can make no file larger than so many bytes: its disk is full."""
    before = resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)


def _write_at(path: str, offset: int, data: bytes) -> None:
    """Through the page cache, and synchronously."""
    import os

    file = os.open(path, os.O_RDWR | os.O_SYNC)
    try:
        os.pwrite(file, data, offset)
        os.fsync(file)
    finally:
        os.close(file)


def _block_request(path: str, request: int, offset: int, size: int) -> None:
    """An ioctl on a range of a block device (linux/fs.h)."""
    import fcntl
    import os
    import struct

    file = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(file, request, struct.pack("QQ", offset, size))
        os.fsync(file)
    finally:
        os.close(file)
