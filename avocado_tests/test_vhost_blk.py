"""A disk behind vhost-user, used by the guest's own driver: what was flushed is in the image, whatever happens."""

from __future__ import annotations

import sys
from dataclasses import replace

from avocado_tests.vhost_test import DiskTest
from vfio_user.harness import EXERCISES, Device, QmpError, ServerError, ServerFailure, exercise


class DiskBehindVhostUser(DiskTest):
    """
    :avocado: tags=vhost-user,blk,kind:blk
    """

    def test_what_the_guest_writes_is_in_the_image_and_there_after_a_pause(self) -> None:
        with self.bench() as bench:
            digest = bench.write()
            self.assertEqual(bench.read(), digest)
            self.assertEqual(bench.image_digest(), digest)
            bench.guest.qmp.command("stop")
            bench.guest.qmp.command("cont")
            self.assertEqual(bench.read(), digest)

    def test_blocks_fio_and_a_file_system_find_everything_right(self) -> None:
        """What `vfio-user run` does with it: mkfs and e2fsck, fio's checksums, blocks past the page cache."""
        with self.bench(size=64 << 20, image="storage") as bench:
            for part in EXERCISES["vhost-user-blk"].parts:
                done = exercise(bench.guest, "workload", "--slot", bench.guest.device.address, *part.arguments)
                self.log.info("%s: %s", part.proves, dict(done.seen))
                self.assertTrue(done.ok, done.verdict)

    def test_two_processors_have_two_queues(self) -> None:
        """Both are used: each has interrupted.

        :avocado: tags=nightly
        """
        with self.bench(cpus=2) as bench:
            digest = bench.write()
            self.assertEqual(bench.read(), digest)
            self.assertEqual(bench.guest.succeed("ls /sys/block/vda/mq | wc -l").strip(), "2")
            for processor in (0, 1):
                bench.guest.succeed(
                    f"taskset {1 << processor} dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct"
                )
            rows = bench.guest.succeed("grep 'virtio.-req' /proc/interrupts").splitlines()
            self.assertEqual([any(map(int, row.split()[1:3])) for row in rows], [True, True], rows)

    def test_a_server_that_ends_at_its_start_is_told_at_once(self) -> None:
        """Before QEMU is told of the device at all."""
        with self.lab() as lab:
            guest = lab.boot()
            with self.assertRaises(ServerError) as told:
                guest.plug("vhost-user-blk --image /proc/there/is/none")
            self.assertIn("/proc/there", f"{told.exception} {told.exception.hint}")

    def test_a_server_whose_device_qemu_refuses_has_failed(self) -> None:
        """One that is no disk, where QEMU is to have one. What is asked of QEMU wrongly is no server's failure."""
        no_disk = Device(command=f"{sys.executable} -m vhost_user serve rng --socket-path {{socket}}")
        with self.lab() as lab:
            guest = lab.boot()
            with self.assertRaises(ServerFailure):
                guest.plug(replace(no_disk, properties={"driver": "vhost-user-blk-pci"}))
            with self.assertRaises(QmpError):
                guest.plug("vhost-user-rng [x-none-such=1]")
            guest.succeed("true")
