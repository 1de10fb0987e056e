"""What a guest can ask of any server, whoever wrote it: the cases that a plan's cells have for servers of others.

The device is the cell's (`Cell.device`), edu of ours where a run says nothing. Tags say what a test is for: `protocol`
and `kind` of the device, `needs` what the server has to be able to do (vfio_user/nightly/servers.py).
"""

from __future__ import annotations

from avocado_tests.entropy import read_hwrng
from avocado_tests.test_vhost_net import join, neighbour
from avocado_tests.vhost_test import virtio_disk
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest, succeed

SIZE = 4096
ADDRESS, NEIGHBOUR = "192.0.2.15", "192.0.2.1"


def look(address: str) -> dict[str, str]:
    """In the guest: what the kernel has of a device: ids, and the first 64 bytes of its configuration space."""
    from pathlib import Path

    folder = Path(f"/sys/bus/pci/devices/{address}")
    ids = {name: (folder / name).read_text().strip() for name in ("vendor", "device", "class")}
    return {**ids, "header": (folder / "config").read_bytes()[:64].hex()}


def unplaced(address: str) -> list[int]:
    """In the guest: the BARs that a device has and that have got no address."""
    from pathlib import Path

    lines = Path(f"/sys/bus/pci/devices/{address}/resource").read_text().splitlines()[:6]
    found = [[int(word, 16) for word in line.split()] for line in lines]
    return [index for index, (start, end, flags) in enumerate(found) if flags and not (start and end)]


def room_for_files(disk: str) -> tuple[int, int]:
    """In the guest: how many bytes a disk has, and how many the work `files` takes."""
    import sys
    from pathlib import Path

    sys.path.append("/opt/vfio-user")
    from disk_work import FILES_LEAST

    return 512 * int(Path("/sys/block", Path(disk).name, "size").read_text()), FILES_LEAST


class ServerTest(GuestTest):
    """A test of the cell's device, whatever that is."""

    def assert_seen(self, guest: BootedGuest) -> dict[str, str]:
        """The guest has the device that QEMU has."""
        seen: dict[str, str] = guest.call(look, guest.device.address)
        ids = (guest.device.vendor, guest.device.device)
        self.assertEqual((int(seen["vendor"], 16), int(seen["device"], 16)), ids)
        return seen


class AnyServer(ServerTest):
    """
    :avocado: tags=any
    """

    def test_the_guest_finds_it(self) -> None:
        """Its ids are those that QEMU was told, and each of its BARs has an address."""
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device)
            self.assert_seen(guest)
            self.assertEqual(guest.call(unplaced, guest.device.address), [])

    def test_it_is_there_again_after_a_reset_of_the_machine(self) -> None:
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device)
            before = self.assert_seen(guest)
            guest.reset()
            after = self.assert_seen(guest)
            self.assertEqual(after["class"], before["class"])


class AnyDevice(ServerTest):
    """
    :avocado: tags=any,protocol:vfio-user
    """

    def test_the_guest_resets_it(self) -> None:
        """By what the kernel has for it; afterwards the kernel restores what it knows.

        :avocado: tags=needs:reset
        """
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device)
            before = self.assert_seen(guest)
            guest.succeed(f"echo 1 > {guest.device.sysfs}/reset")
            self.assertEqual(self.assert_seen(guest), before)

    def test_it_goes_to_another_host_and_back(self) -> None:
        """
        :avocado: tags=needs:migration,migration
        """
        with self.lab() as lab:
            hosts = lab.hosts()
            guest = lab.boot(device=self.cell.device, migratable=True, host=hosts.a)
            before = self.assert_seen(guest)
            for to in (hosts.b, hosts.a):
                report = lab.migrate(guest, to=to)
                self.assertTrue(report.ok, f"{report.verdict}: {report.reason}")
                self.assertEqual(self.assert_seen(guest), before)


class AnyDisk(GuestTest):
    """
    :avocado: tags=any,protocol:vhost-user,kind:blk
    """

    def test_blocks_that_were_written_are_read(self) -> None:
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device, image="storage", modules=("virtio_blk",))
            virtio_disk(guest, guest.device)
            succeed(guest, "workload", "--slot", guest.device.address, "blocks", "--seconds", "1")

    def test_a_file_system_keeps_its_files(self) -> None:
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device, image="storage", modules=("virtio_blk",))
            size, least = guest.call(room_for_files, virtio_disk(guest, guest.device))
            if size < least:
                self.cancel(f"the disk has {size} bytes, too small for files: that takes {least}")
            succeed(guest, "workload", "--slot", guest.device.address, "files", "--seconds", "1")

    def test_it_has_a_queue_for_each_processor(self) -> None:
        """
        :avocado: tags=needs:multiqueue
        """
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device, cpus=2, modules=("virtio_blk",))
            disk = virtio_disk(guest, guest.device).rpartition("/")[2]
            self.assertEqual(guest.succeed(f"ls /sys/block/{disk}/mq").split(), ["0", "1"])


class AnyNetworkCard(GuestTest):
    """
    :avocado: tags=any,protocol:vhost-user,kind:net
    """

    def test_a_neighbour_answers(self) -> None:
        """A frame goes, and one comes back: the answer to a question for an address."""
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device)
            interface = guest.call(join, guest.device.address, ADDRESS)
            guest.run(f"ping -c 3 -W 2 -I {interface} {NEIGHBOUR}", 30)
            self.assertRegex(guest.call(neighbour, NEIGHBOUR), r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")


class AnyFileSystem(GuestTest):
    """
    :avocado: tags=any,protocol:vhost-user,kind:fs
    """

    def test_a_file_that_was_written_is_read(self) -> None:
        """Also after it was mounted anew, so that the server has it."""
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device, image="shares")
            guest.succeed("modprobe virtiofs", "mkdir -p /tmp/shared", "mount -t virtiofs shared /tmp/shared")
            guest.succeed("dd if=/dev/urandom of=/tmp/file bs=64k count=16", "cp /tmp/file /tmp/shared/file")
            guest.succeed("umount /tmp/shared", "mount -t virtiofs shared /tmp/shared")
            guest.succeed("cmp /tmp/file /tmp/shared/file", "umount /tmp/shared")


class AnyEntropy(GuestTest):
    """
    :avocado: tags=any,protocol:vhost-user,kind:rng
    """

    def test_its_bytes_come(self) -> None:
        with self.lab() as lab:
            guest = lab.boot(device=self.cell.device)
            data = guest.call(read_hwrng, SIZE, 20 * guest.patience, timeout=40)
            self.assertGreater(len(set(data)), 200)
