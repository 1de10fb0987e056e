"""A guest with its devices moves to another host and back, and cannot tell.

A cell of the matrix is what a device does and which interrupts it has enabled meanwhile; one guest has a device for
each cell. What a device did wrong, in any of its rounds, is in the report of its program in the guest.
"""

from __future__ import annotations

from collections.abc import Iterable

from avocado_tests.guest_test import GuestTest
from vfio_user.errors import UserError
from vfio_user.harness.booted import BootedGuest
from vfio_user.harness.lab import Lab
from vfio_user.harness.migration import Mode, Report, Verdict
from vfio_user.harness.migration.workload import Workload

Cell = tuple[str, str]
"""A workload and the interrupts that are enabled."""

WORK = ("interrupts", "idle", "dma", "registers")
"""In the order in which they are ended: where devices share a line, uio counts the interrupts of the others as its own
when it has one itself, and in the end each raises some."""


class MigrationTest(GuestTest):
    def matrix(self, lab: Lab, cells: Iterable[Cell], *, hosts: str = "auto", hops: int = 1, **options: object) -> None:
        """Boot a guest with a device for each cell, have all of them work, and migrate back and forth."""
        pair = lab.hosts(hosts)
        cells = list(cells)
        guest = lab.boot(devices=["edu"] * len(cells), migratable=True, host=pair.a, **options)
        running = start(guest, cells)
        for _ in range(hops):
            self.whole(lab.migrate(guest, to=pair.other(guest.host)))
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
        with self.lab() as lab:
            cells = [("interrupts", "msix"), ("dma", "msi"), ("interrupts", "intx")]
            self.matrix(lab, cells, iommu=True, root_bus=True)

    def test_hosts_without_root(self) -> None:
        """Two loopback addresses."""
        with self.lab() as lab:
            self.matrix(lab, [("dma", "")], hosts="local", hops=2)

    def test_client_alone(self) -> None:
        """Plain `migrate` ends with "completed", and without the device: see known issues."""
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot(devices=["edu"] * 2, migratable=True, host=pair.a)
            running = start(guest, [("registers", ""), ("dma", "")])
            report = lab.migrate(guest, to=pair.b, mode=Mode.DIRECT)
            wrong = [workload.end().wrong for workload in running]
            self.log.info("%s %s", report.as_dict(), wrong)
            self.assertEqual(report.verdict, Verdict.LOST)
            self.assertEqual([bool(found) for found in wrong], [True, True])

    def test_client_that_cannot_migrate_devices(self) -> None:
        """Mode native is refused, and nothing has happened to the guest."""
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot("edu", migratable=True, host=pair.a)
            with self.assertRaises(UserError) as refused:
                lab.migrate(guest, to=pair.b, mode=Mode.NATIVE)
            self.assertIn("DEVICE_FEATURE MIGRATION", str(refused.exception))
            self.edu(guest, "irq")


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

    def every_host(self, interrupts: str, **options: object) -> None:
        for hosts in ("namespaces", "local"):
            for root_bus in (False, True):
                with self.lab() as lab:
                    self.log.info("hosts %s, root bus %s", hosts, root_bus)
                    cells = [(work, interrupts) for work in WORK]
                    self.matrix(lab, cells, hosts=hosts, root_bus=root_bus, hops=2, **options)


def start(guest: BootedGuest, cells: Iterable[Cell]) -> list[Workload]:
    return [
        Workload(guest, kind, *(("--interrupts", interrupts) if interrupts else ()), device=device)
        for (kind, interrupts), device in zip(cells, guest.devices, strict=True)
    ]
