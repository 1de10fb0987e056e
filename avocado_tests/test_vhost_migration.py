"""QEMU moves a guest with a disk behind vhost-user by itself: nothing is lost on the way, or the guest stays.

What the disk writes into the guest's memory meanwhile is in the dirty log, or it is lost: the negative control.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from avocado_tests.vhost_test import MIB, ODD, Bench, DiskTest
from userdev.errors import UserError
from vfio_user.harness import Conductor, Deadline, Mode, Phase, Plan, Report, Result, Tuning, Verdict, Workload

DRIVER = "[driver=vhost-user-blk-pci]"
SLOWLY = Plan(Tuning(bandwidth=64 * MIB))
"""Seconds of pre-copy, for what is to happen meanwhile."""


class MigrationTest(DiskTest):
    def assert_moved(self, report: Report, mode: Mode = Mode.NATIVE) -> None:
        self.log.info("%s", report.as_dict())
        self.assertEqual((report.verdict, report.mode), (Verdict.MIGRATED, mode), report.reason)

    def assert_stayed(self, bench: Bench, report: Report, says: str) -> None:
        """It runs on where it was, and nowhere else; the reason is told."""
        self.log.info("%s", report.as_dict())
        self.assertEqual(report.verdict, Verdict.STAYED, report.reason)
        self.assertIn(says, report.reason)
        self.assert_still_there(bench)

    def assert_still_there(self, bench: Bench) -> None:
        self.assertEqual(bench.guest.host.name, bench.pair.a.name)
        self.assertEqual([machine for machine in bench.lab.machines if machine.child.running], [bench.guest.machine])
        self.assertTrue(bench.guest.qmp.command("query-status")["running"])

    def assert_read(self, done: Result) -> None:
        self.assertEqual((done.exit_code, done.stdout), (0, "no wrong buffer\n"), done.stderr)

    def meanwhile(self, bench: Bench, act: Callable[[], None]) -> Conductor:
        """`act` is done once QEMU copies the guest's memory."""
        begins = bench.guest.qmp.events.branch()  # the coordinator takes the others

        def wait_and_act() -> None:
            begins.take("MIGRATION", {"status": "active"}, Deadline(120.0))
            act()

        def watch(phase: Phase) -> None:
            if phase is Phase.PRE_COPY:
                threading.Thread(target=wait_and_act, daemon=True).start()

        return Conductor(watch)


class Migration(MigrationTest):
    """
    :avocado: tags=vhost-user,blk,migration
    """

    def test_it_goes_to_another_host_and_back_while_it_is_read(self) -> None:
        """Each buffer is read into once: one that is used again would hide a write that the dirty log has lost.

        :avocado: tags=nightly
        """
        with self.bench(migratable=True) as bench:
            digest = bench.write()
            for _ in range(2):
                job = bench.begin_reading()
                self.assert_moved(bench.hop())
                self.assert_read(bench.end_reading(job))
                self.assertEqual(bench.read(), digest)

    def test_a_disk_that_logs_nothing_loses_what_was_read(self) -> None:
        """The negative control: to QEMU this is a migration as any other."""
        with self.bench(served=f"{ODD}:Unlogged", options=DRIVER, migratable=True) as bench:
            bench.write()
            job = bench.begin_reading()
            self.assert_moved(bench.hop(SLOWLY))
            self.assertIn("wrong: ", bench.end_reading(job).stdout)

    def test_fio_goes_on_there_and_back(self) -> None:
        self.fio_over_hops(2)

    def test_fio_goes_on_over_twenty_hops(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.fio_over_hops(20)

    def fio_over_hops(self, hops: int) -> None:
        with self.bench(size=64 * MIB, image="storage", migratable=True) as bench:
            workload = Workload(bench.guest, "fio")
            for _ in range(hops):
                self.assert_moved(bench.hop())
            done = workload.end()
            self.log.info("%s", dict(done.seen))
            self.assertTrue(done.ok, done.verdict)

    def test_two_queues_and_packed_rings_move_while_they_are_written(self) -> None:
        with self.bench(options="[packed=on]", cpus=2, migratable=True) as bench:
            job = bench.begin_writing()
            self.assert_moved(bench.hop())
            self.assert_all_is_there(bench.end_writing(job))

    def test_it_moves_beside_a_device_that_is_moved_from_here(self) -> None:
        """QEMU moves the one, the coordinator the other; there is one report of both."""
        with self.bench(beside="edu", migratable=True) as bench:
            digest = bench.write()
            job = bench.begin_reading()
            report = bench.hop()
            self.assert_moved(report, Mode.COORDINATED)
            self.assertEqual((report.devices, report.by_qemu), (["vhost-user-blk", "edu"], ["vhost-user-blk"]))
            self.assert_read(bench.end_reading(job))
            self.assertEqual(bench.read(), digest)
            self.edu(bench.guest, "registers", device=bench.guest.devices[1])

    def test_a_guest_that_is_stopped_arrives_stopped(self) -> None:
        with self.bench(migratable=True) as bench:
            digest = bench.write()
            bench.guest.qmp.command("stop")
            self.assert_moved(bench.hop())
            self.assertFalse(bench.guest.qmp.command("query-status")["running"])
            bench.guest.qmp.command("cont")
            self.assertEqual(bench.read(), digest)


class Trouble(MigrationTest):
    """
    :avocado: tags=vhost-user,blk,migration
    """

    def test_the_source_s_server_is_killed_and_replaced_meanwhile(self) -> None:
        """The next one logs as well; what its predecessor read is not lost.

        :avocado: tags=nightly
        """
        with self.bench(migratable=True) as bench:
            bench.write()
            server = bench.server

            def replace() -> None:
                server.kill()
                server.restart()

            job = bench.begin_reading()
            self.assert_moved(bench.hop(SLOWLY, self.meanwhile(bench, replace)))
            self.assert_read(bench.end_reading(job))

    def test_the_destination_s_server_dies_meanwhile(self) -> None:
        with self.bench(migratable=True) as bench:
            digest = bench.write()
            job = bench.begin_reading()
            died = self.meanwhile(bench, lambda: bench.lab.servers[-1].kill())
            self.assert_stayed(bench, bench.hop(SLOWLY, died), "was killed by SIGKILL")
            self.assert_read(bench.end_reading(job))
            self.assertEqual(bench.read(), digest)

    def test_the_source_s_server_dies_meanwhile_and_none_follows(self) -> None:
        """The guest stays, and waits for the next one."""
        with self.bench(migratable=True) as bench:
            digest = bench.write()
            job = bench.begin_reading()
            report = bench.hop(SLOWLY, self.meanwhile(bench, bench.server.kill))
            self.assert_stayed(bench, report, "was killed by SIGKILL")
            bench.server.restart()
            self.assert_read(bench.end_reading(job))
            self.assertEqual(bench.read(), digest)

    def test_it_is_called_off_meanwhile(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.bench(migratable=True) as bench:
            digest = bench.write()
            job = bench.begin_reading()
            conductor = self.meanwhile(bench, lambda: conductor.cancel())
            self.assert_stayed(bench, bench.hop(SLOWLY, conductor), "cancelled")
            self.assert_read(bench.end_reading(job))
            self.assertEqual(bench.read(), digest)
            self.assert_moved(bench.hop())
            self.assertEqual(bench.read(), digest)

    def test_a_destination_that_lacks_a_feature_is_not_gone_to(self) -> None:
        """QEMU's source says `completed` all the same; who asks the destination as well is not deceived."""
        lacking = f"{ODD}:Lacking --on b --host {{host}}"
        with self.bench(served=lacking, options=DRIVER, migratable=True) as bench:
            digest = bench.write()
            self.assert_stayed(bench, bench.hop(), "Features")
            self.assertEqual(bench.read(), digest)

    def test_a_disk_without_a_dirty_log_is_refused(self) -> None:
        for feature in ("LOG_ALL", "LOG_SHMFD"):
            with self.bench(options=f"--without {feature}", migratable=True) as bench:
                digest = bench.write()
                with self.assertRaisesRegex(UserError, f"cannot be migrated: QEMU says .*{feature}"):
                    bench.hop()
                self.assert_still_there(bench)
                self.assertEqual(bench.read(), digest)
