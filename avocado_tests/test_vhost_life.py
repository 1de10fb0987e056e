"""A disk behind vhost-user in what befalls a guest: plugging, memory that comes, resets under load, other rings."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from avocado_tests.guest_programs import command_of, put_program
from avocado_tests.vhost_test import MIB, SEED, SIZE, Bench, DiskTest
from userdev.control import ControlClient

RING_PACKED, ACCESS_PLATFORM = 34, 33
"""Feature bits (virtio 1.3, "Reserved Feature Bits")."""


class Life(DiskTest):
    """
    :avocado: tags=vhost-user,blk
    """

    def test_it_goes_and_comes_back_with_what_was_written(self) -> None:
        with self.bench() as bench:
            digest = bench.write()
            for _ in range(3):
                bench.guest.unplug(bench.guest.device)
                self.assertEqual(bench.image_digest(), digest)
                bench.guest.plug(bench.device)
                self.assertEqual(bench.read(), digest)
            self.assertEqual(bench.write(seed=SEED + 1), bench.read())

    def test_it_goes_while_it_is_read_and_another_works(self) -> None:
        """The reader gets no more, as of any disk that is pulled out; nobody else notices."""
        with self.bench() as bench:
            other = bench.guest.plug(f"vhost-user-blk --image {bench.image}.other:{8 * MIB}")
            digest = bench.write(other)
            job = bench.begin_reading()
            bench.guest.unplug(bench.guest.device)
            self.assertNotIn("no wrong buffer", bench.end_reading(job).stdout)
            self.assertEqual(bench.read(other), digest)
            bench.guest.plug(bench.device)
            self.assertEqual(bench.write(), bench.read())

    def test_memory_that_comes_under_running_rings_is_written_to(self) -> None:
        with self.bench(size=2 * SIZE, spare_memory=256) as bench:
            bench.write(size=2 * SIZE)
            job = bench.begin_writing()
            bench.guest.plug_memory(256)
            put_program(bench.guest, "reading_high")
            said = bench.guest.succeed([command_of("reading_high"), bench.path()])
            self.log.info("buffers in it: %s", said.strip())
            right, _, wrong, _ = said.split()
            self.assertGreater(int(right), 1000)
            self.assertEqual(int(wrong), 0)
            self.assert_all_is_there(bench.end_writing(job))

    def test_a_guest_that_is_reset_while_it_writes_comes_up_with_its_disk(self) -> None:
        """What was on another disk before is there, too.

        :avocado: tags=nightly
        """
        with self.bench() as bench:
            other = bench.guest.plug(f"vhost-user-blk --image {bench.image}.other:{SIZE}")
            digest = bench.write(other)
            for reset in (bench.guest.reset, bench.guest.reboot):
                bench.begin_writing()
                bench.await_flush()
                reset()
                self.assertEqual(bench.read(other), digest)
                self.assertEqual(bench.write(), bench.read())
            self.assertEqual(bench.image_digest(), bench.read())

    def test_a_disk_that_grows_while_it_is_written_is_larger_for_the_guest(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.bench(options="--control {scratch}/control") as bench:
            job = bench.begin_writing()
            with closing(ControlClient(bench.server.server_path.parent / "control")) as client:
                client.call("resize", size=2 * SIZE)
            bench.path(size=2 * SIZE)
            self.assert_all_is_there(bench.end_writing(job))
            digest = bench.write(size=2 * SIZE)
            self.assertEqual(bench.read(size=2 * SIZE), digest)
            bench.guest.reset()
            self.assertEqual(bench.read(size=2 * SIZE), digest)

    def test_a_disk_that_has_grown_while_its_server_was_away_is_larger_for_the_guest(self) -> None:
        """
        :avocado: tags=nightly
        """
        disk = Path(self.workdir) / "growing.img"
        disk.write_bytes(bytes(SIZE))
        with self.bench(options=f"--image {disk}") as bench:
            bench.write()
            bench.server.kill()
            os.truncate(disk, 2 * SIZE)
            bench.server.restart()
            bench.path(size=2 * SIZE)
            self.assertEqual(bench.write(size=2 * SIZE), bench.read(size=2 * SIZE))

    def test_packed_rings(self) -> None:
        with self.bench(options="[packed=on]") as bench:
            self.assertTrue(self.has_feature(bench, RING_PACKED))
            digest = bench.write()
            self.assertEqual(bench.read(), digest)
            bench.guest.reboot()
            self.assertEqual(bench.read(), digest)
            self.assert_all_is_there(bench.end_writing(bench.begin_writing()))

    def test_an_iommu_before_it(self) -> None:
        """The guest's addresses are translated, and translations taken back.

        :avocado: tags=nightly
        """
        options = "[iommu_platform=on]"
        with self.bench(options=options, iommu=True, kernel_options=("intel_iommu=on", "iommu.strict=1")) as bench:
            self.assertTrue(self.has_feature(bench, ACCESS_PLATFORM))
            digest = bench.write()
            self.assertEqual(bench.read(), digest)
            self.assert_all_is_there(bench.end_writing(bench.begin_writing()))
            bench.guest.reset()
            self.assert_all_is_there(bench.end_writing(bench.begin_writing()))

    def has_feature(self, bench: Bench, bit: int) -> bool:
        """Whether the guest's driver has agreed on it."""
        return bench.guest.succeed(f"cat {bench.guest.device.sysfs}/virtio*/features").strip()[bit] == "1"
