"""A guest with its devices moves to another host and back, and cannot tell.

A cell of the matrix is what a device does and which interrupts it has enabled meanwhile; one guest has a device for
each cell. What a device did wrong, in any of its rounds, is in the report of its program in the guest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

from avocado_tests.migration_faults import (
    AT_EVERY_PHASE,
    BY_FILE,
    BY_THE_GUEST,
    IN_SPITE_OF_IT,
    ON_THE_WAY,
    REPRESENTATIVE,
    WITH_THE_SOURCE,
    Case,
    qemus_on,
)
from userdev.errors import UserError, VerdictError
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import (
    Assignment,
    BootedGuest,
    Conductor,
    HardwareOptions,
    Job,
    Lab,
    Limits,
    Mode,
    Pair,
    Phase,
    Plan,
    Report,
    Tuning,
    Verdict,
    Workload,
    installed_qemu,
    judge,
    manifest,
)

Cell = tuple[str, str]
"""A workload and the interrupts that are enabled."""

WORK = ("interrupts", "idle", "dma", "registers")
"""In the order in which they are ended: where devices share a line, uio counts the interrupts of the others as its own
when it has one itself, and in the end each raises some."""


class MigrationTest(GuestTest):
    def matrix(
        self,
        lab: Lab,
        cells: Iterable[Cell],
        *,
        hosts: str = "auto",
        hops: int = 1,
        plan: Plan | None = None,
        root_bus: bool = False,
        **options: Unpack[HardwareOptions],
    ) -> None:
        """Boot a guest with a device for each cell, have all of them work, and migrate back and forth."""
        pair = lab.hosts(hosts)
        cells = list(cells)
        guest = lab.boot(devices=["edu"] * len(cells), migratable=True, host=pair.a, root_bus=root_bus, **options)
        running = start(guest, cells)
        for _ in range(hops):
            self.whole(lab.migrate(guest, to=pair.other(guest.host), plan=plan or Plan()))
        for workload in running:
            done = workload.end()
            self.log.info("%s: %s", done.command, dict(done.seen))
            self.assertTrue(done.ok, done.verdict)

    def whole(self, report: Report) -> None:
        self.log.info("%s", report.as_dict())
        self.assertEqual(report.verdict, Verdict.MIGRATED, report.reason)


class Migration(MigrationTest):
    """
    :avocado: tags=edu,migration
    """

    def test_wired_interrupts(self) -> None:
        """INTx without an IOMMU; everything else that a device can do, beside it."""
        with self.lab() as lab:
            self.matrix(lab, [("interrupts", "intx"), ("dma", "intx"), ("registers", ""), ("idle", "intx")])

    def test_message_signalled_interrupts(self) -> None:
        """MSI and MSI-X behind an IOMMU, with a map for every page."""
        with self.lab() as lab:
            cells = [("interrupts", "msix"), ("interrupts", "msi"), ("dma", "msix"), ("registers", "msi")]
            self.matrix(lab, cells, iommu=True)

    def test_devices_on_the_root_bus(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.lab() as lab:
            cells = [("interrupts", "msix"), ("dma", "msi"), ("interrupts", "intx")]
            self.matrix(lab, cells, iommu=True, root_bus=True)

    def test_hosts_without_root(self) -> None:
        """Two loopback addresses."""
        with self.lab() as lab:
            self.matrix(lab, [("dma", "")], hosts="local", hops=2)

    def test_stopped_guest(self) -> None:
        """It arrives stopped, and goes on when it is told to."""
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot("edu", migratable=True, host=pair.a)
            [workload] = start(guest, [("registers", "intx")])
            guest.qmp.command("stop")
            report = lab.migrate(guest, to=pair.b)
            self.whole(report)
            self.assertIsNone(report.downtime)
            self.assertFalse(guest.qmp.command("query-status")["running"])
            guest.qmp.command("cont")
            done = workload.end()
            self.assertTrue(done.ok, done.verdict)

    def test_client_alone(self) -> None:
        """Plain `migrate` ends with "completed", and without the device."""
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot(devices=["edu"] * 2, migratable=True, host=pair.a)
            running = start(guest, [("registers", ""), ("dma", "")])
            report = lab.migrate(guest, to=pair.b, mode=Mode.DIRECT)
            for workload in running:
                judge(report, workload.end())
            self.log.info("%s", report.as_dict())
            with self.known_issue("migrate-loses-device", guest):
                if not report.ok:
                    raise VerdictError(f"{report.verdict}: {report.reason}")

    def test_client_that_cannot_migrate_devices(self) -> None:
        """Mode native is refused, and nothing has happened to the guest."""
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot("edu", migratable=True, host=pair.a)
            with self.assertRaises(UserError) as refused:
                lab.migrate(guest, to=pair.b, mode=Mode.NATIVE)
            self.assertIn("DEVICE_FEATURE MIGRATION", str(refused.exception))
            self.edu(guest, "irq")


class FailingWell(MigrationTest):
    """
    Whatever happens before the guest runs on the destination, it runs on at the source with its devices.

    :avocado: tags=edu,migration
    """

    def test_guest_stays_where_it_is(self) -> None:
        """One guest goes through all of it, and works all the time."""
        self.go_through(REPRESENTATIVE)

    def go_through(self, cases: Iterable[Case], hosts: str = "auto") -> None:
        with self.lab() as lab:
            pair = lab.hosts(hosts)
            guest = lab.boot(devices=["edu", "edu"], migratable=True, host=pair.a)
            running = start(guest, [("dma", "intx")])
            self.assert_works(guest)
            before = config_of_the_last(guest)
            for case in cases:
                if not case.possible(pair):
                    self.log.info("%s: %s: left out, as only root can cut a link", case.phase, case.fault)
                    continue
                self.log.info("%s: %s", case.phase, case.fault)
                report = case.migrate(lab, guest, pair)
                if pair.cable is not None:
                    pair.cable.mend()
                self.assert_ended_as(case, report)
                self.assert_runs_once(lab, guest, pair)
                self.assertEqual(config_of_the_last(guest), before, f"{case}: configuration space")
            reset = BY_THE_GUEST[0]
            self.assert_ended_as(reset, reset.migrate(lab, guest, pair))
            self.assert_works(guest)
            for workload in running:
                done = workload.end()
                self.assertTrue(done.ok, done.verdict)

    def go_in_spite_of(self, cases: Iterable[Case], hosts: str = "auto") -> None:
        """To and fro, with a link that does not stay as it was."""
        with self.lab() as lab:
            pair = lab.hosts(hosts)
            if pair.cable is None:
                self.cancel("only root can cut a link")
            assert pair.cable is not None
            guest = lab.boot(devices=["edu", "edu"], migratable=True, host=pair.a)
            running = start(guest, [("dma", "intx")])
            for case in cases:
                self.log.info("%s: %s", case.phase, case.fault)
                report = case.migrate(lab, guest, pair)
                pair.cable.mend()
                self.assert_ended_as(case, report)
                self.assert_runs_once(lab, guest, pair)
            for workload in running:
                done = workload.end()
                self.assertTrue(done.ok, done.verdict)

    def assert_runs_once(self, lab: Lab, guest: BootedGuest, pair: Pair) -> None:
        """On its host, and works there; nothing is left of it on the other."""
        self.assertEqual([machine for machine in lab.machines if machine.child.running], [guest.machine])
        for host in (pair.a, pair.b):
            if (running := qemus_on(host)) is not None:
                self.assertEqual(len(running), host.name == guest.host.name, f"{host.name}: {running}")
        self.assert_works(guest)

    def assert_ended_as(self, case: Case, report: Report) -> None:
        self.log.info("%s", report.as_dict())
        reached = [record.phase for record in report.phases]
        self.assertIn(case.phase, reached, f"{case}: it ended before anything happened: {report.reason}")
        self.assertEqual(report.verdict, case.verdict, f"{case}: {report.reason}")
        self.assertIn(case.says, report.reason)

    def assert_works(self, guest: BootedGuest) -> None:
        """The guest runs, its devices too, and nobody logs or copies any more."""
        self.assertTrue(guest.qmp.command("query-status")["running"])
        self.edu(guest, "irq", device=guest.devices[-1])
        for plugged in guest.devices:
            assert plugged.server is not None
            self.assertEqual(plugged.server.control.call("migration_state"), {"state": "RUNNING"})


class OtherWays(MigrationTest):
    """
    :avocado: tags=edu,migration,nightly
    """

    def test_through_a_file(self) -> None:
        """There and back; the source has ended before the destination, which waits, reads its memory."""
        with self.lab() as lab, TemporaryDirectory(prefix="vfu-") as folder:
            self.matrix(lab, [("interrupts", ""), ("dma", "")], plan=Plan(file=Path(folder) / "guest"), hops=2)

    def test_several_streams(self) -> None:
        """Of multifd."""
        with self.lab() as lab:
            self.matrix(lab, [("interrupts", ""), ("dma", "")], plan=Plan(Tuning(channels=2)))


class Unmapped(MigrationTest):
    """
    Behind a vIOMMU the driver unmaps memory as soon as the device has written it, and the server's log forgets it.

    :avocado: tags=nvme,migration,nightly
    """

    def test_what_was_read_from_a_disk_is_what_arrives(self) -> None:
        size = 128 << 20
        with self.lab() as lab, TemporaryDirectory(prefix="vfu-") as folder:
            image = Path(folder) / "disk.img"
            image.write_bytes(os.urandom(size))
            pair = lab.hosts()
            guest = lab.boot(f"nvme --image {image}", image="storage", migratable=True, host=pair.a, iommu=True)
            guest.succeed("modprobe nvme")
            disk = guest.wait_until_succeeds("ls /dev/nvme0n1").strip()
            holder = guest.start(f"exec 3<{disk}; sleep 1000", 1000)  # the kernel forgets what nobody has open
            reading: list[Job] = []

            def watch(phase: Phase) -> None:
                if phase is Phase.PRE_COPY:
                    reading.append(guest.start(f"dd if={disk} of=/dev/null bs=256k", 200))

            plan = Plan(Tuning(bandwidth=64 << 20), Limits(total=150, pre_copy=100))
            self.whole(lab.migrate(guest, to=pair.b, plan=plan, conductor=Conductor(watch)))
            self.assertEqual(reading[0].wait(200).exit_code, 0)
            self.assertEqual(guest.call(_stale_pages, disk, size, timeout=200), 0)
            holder.kill()


def _stale_pages(disk: str, size: int) -> int:
    """How many pages of what the kernel has of a disk are not what is on it."""
    import mmap
    import os

    piece, page = 1 << 16, 4096
    cached, direct = os.open(disk, os.O_RDONLY), os.open(disk, os.O_RDONLY | os.O_DIRECT)
    room, stale = mmap.mmap(-1, piece), 0
    for place in range(0, size, piece):
        os.preadv(direct, [room], place)
        known = os.pread(cached, piece, place)
        stale += sum(known[at : at + page] != room[at : at + page] for at in range(0, piece, page))
    return stale


class OtherQemu(MigrationTest):
    """
    Between QEMUs of different versions, where several are installed.

    :avocado: tags=edu,migration,nightly
    """

    def test_there_and_back(self) -> None:
        with self.lab() as lab:
            others = [
                name
                for name in manifest()
                if (qemu := installed_qemu(name))
                and qemu.version != lab.qemu.version
                # the machine type is that of the lab's QEMU
                and qemu.version.release[:2] >= lab.qemu.version.release[:2]
            ]
            if not others:
                self.cancel("no second version of QEMU is installed; `vfio-user qemu install` does that")
            pair = lab.hosts()
            guest = lab.boot("edu", migratable=True, host=pair.a)
            [workload] = start(guest, [("dma", "intx")])
            for other in (others[0], None):
                self.whole(lab.migrate(guest, to=pair.other(guest.host), qemu=other))
                self.log.info("now in %s", guest.qmp.command("query-version")["qemu"])
            done = workload.end()
            self.assertTrue(done.ok, done.verdict)


class FailingWellEverywhere(FailingWell):
    """
    :avocado: tags=edu,migration,nightly
    """

    timeout = 3 * GuestTest.timeout

    def test_guest_stays_where_it_is(self) -> None:
        """Every fault at every phase."""
        self.go_through((*AT_EVERY_PHASE, *ON_THE_WAY))

    def test_file_fails(self) -> None:
        self.go_through(BY_FILE)

    def test_guest_moves_in_spite_of_it(self) -> None:
        self.go_in_spite_of(IN_SPITE_OF_IT)

    def test_source_fails(self) -> None:
        """Each of these needs a guest of its own."""
        for case in WITH_THE_SOURCE:
            with self.lab() as lab:
                pair = lab.hosts()
                guest = lab.boot(devices=["edu"], migratable=True, host=pair.a)
                self.log.info("%s: %s", case.phase, case.fault)
                report = case.migrate(lab, guest, pair)
                self.assert_ended_as(case, report)
                if case.verdict is Verdict.MIGRATED:
                    self.assert_works(guest)

    def test_guest_reboots(self) -> None:
        """On one host it goes down, on the other it comes up."""
        reboot = BY_THE_GUEST[1]
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot(devices=["edu"], migratable=True, host=pair.a)
            self.assert_ended_as(reboot, reboot.migrate(lab, guest, pair))
            guest.come_up(0)
            self.assert_works(guest)


class Matrix(MigrationTest):
    """
    Every workload with every kind of interrupt, on every kind of hosts.

    :avocado: tags=edu,migration,nightly
    """

    timeout = 3 * GuestTest.timeout

    def test_intx(self) -> None:
        self.every_host("intx")

    def test_intx_behind_an_iommu(self) -> None:
        self.every_host("intx", iommu=True)

    def test_msi(self) -> None:
        self.every_host("msi", iommu=True)

    def test_msix(self) -> None:
        self.every_host("msix", iommu=True)

    def every_host(self, interrupts: str, **options: Unpack[HardwareOptions]) -> None:
        for hosts in ("auto", "local"):
            for root_bus in (False, True):
                with self.lab() as lab:
                    self.log.info("hosts %s, root bus %s", hosts, root_bus)
                    cells = [(work, interrupts) for work in WORK]
                    self.matrix(lab, cells, hosts=hosts, root_bus=root_bus, hops=2, **options)


def config_of_the_last(guest: BootedGuest) -> bytes:
    """Configuration space of a device that nothing uses meanwhile, as the guest has it."""
    return guest.get(f"/sys/bus/pci/devices/0000:{guest.devices[-1].address[-7:]}/config")


def start(guest: BootedGuest, cells: Iterable[Cell]) -> list[Workload]:
    """Have the guest's first devices work, one for each cell."""
    return [
        Workload(guest, kind, *(("--interrupts", interrupts) if interrupts else ()), device=device)
        for (kind, interrupts), device in zip(cells, guest.devices, strict=False)
    ]


class Disks(MigrationTest):
    """
    What the guest's own driver has to do with a disk that moves, in memory and so with all that is on it.

    :avocado: tags=nvme,migration
    """

    def test_what_is_written_to_a_disk_is_there_on_the_other_host(self) -> None:
        """Block by block, and as files; before, meanwhile and after."""
        with self.lab() as lab:
            pair = lab.hosts()
            work = [Assignment.of("nvme", kind) for kind in ("blocks", "files")]
            guest = lab.boot(devices=[each.device for each in work], image="storage", migratable=True, host=pair.a)
            started = [each.start(guest, plugged) for each, plugged in zip(work, guest.devices, strict=True)]
            self.whole(lab.migrate(guest, to=pair.b))
            for workload in started:
                assert workload is not None
                done = workload.end()
                self.log.info("%s: %s", done.command, dict(done.seen))
                self.assertTrue(done.ok, done.verdict)

    def test_client_alone_loses_it(self) -> None:
        """Plain `migrate`: the controller is not there any more, and what is written fails.

        :avocado: tags=nightly
        """
        with self.lab() as lab:
            pair = lab.hosts()
            work = Assignment.of("nvme", "fio")
            guest = lab.boot(work.device, image="storage", migratable=True, host=pair.a)
            workload = work.start(guest, guest.device)
            assert workload is not None
            report = lab.migrate(guest, to=pair.b, mode=Mode.DIRECT)
            judge(report, workload.end())
            self.assertEqual(report.verdict, Verdict.LOST)
            self.assertIn("workload fio", report.reason)
