"""A guest that has nothing but a disk behind vhost-user: it boots from it, and lives on it."""

from __future__ import annotations

from pathlib import Path

from avocado_tests.vhost_test import MIB, DiskTest
from vfio_user.harness import write_boot_disk

FROM_DISK = ("rdinit=/usr/sbin/disk_root", "root=/dev/vda")
FILL = """
set -e
mkfs.ext4 -q DISK
mkdir -p /newroot
mount -t ext4 DISK /newroot
for path in /*; do
    case $path in
        /proc|/sys|/dev|/run|/tmp|/newroot) mkdir /newroot$path ;;
        *) cp -a $path /newroot ;;
    esac
done
echo PROOF > /newroot/proof
umount /newroot
"""


class Boot(DiskTest):
    """
    :avocado: tags=vhost-user,blk
    """

    def test_a_guest_boots_from_it_and_reboots_and_outlives_its_server(self) -> None:
        """Programs, libraries and modules come from there; a killed server is waited for, by all of them."""
        with self.lab() as lab:
            device = f"vhost-user-blk --image {Path(self.workdir) / 'root.img'}:{512 * MIB}"
            filling = lab.boot(device, image="storage", modules=("virtio_blk",))
            filling.succeed("modprobe ext4", FILL.replace("DISK", "/dev/vda"), timeout=120)
            filling.close()
            guest = lab.boot(device, image="storage", root_bus=True, kernel_options=FROM_DISK)
            root = guest.succeed("awk '$2 == \"/\" {print $1, $3}' /proc/mounts").splitlines()[-1]
            self.assertEqual(root, "/dev/vda ext4")
            self.assertEqual(guest.succeed("cat /proof").strip(), "PROOF")
            server = guest.device.server
            assert server is not None
            job = guest.start("sync; echo 3 > /proc/sys/vm/drop_caches; find /usr -type f | xargs md5sum | md5sum", 120)
            server.kill()
            server.restart()
            self.assertTrue(job.wait().ok)
            guest.succeed("echo written > /written; sync")
            guest.reboot()
            self.assertEqual(guest.succeed("cat /written").strip(), "written")
            guest.fail("dmesg | grep -i 'ext4-fs error\\|i/o error'")

    def test_the_firmware_boots_it_and_boots_it_again(self) -> None:
        """SeaBIOS reads the boot sector, GRUB the kernel and its first files: QEMU has been given none of them.

        :avocado: tags=nightly
        """
        with self.lab() as lab:
            disk = Path(self.workdir) / "boot.img"
            write_boot_disk(disk, lab.image("minimal"), lab.hardware(kernel_options=("from_disk=yes",)))
            guest = lab.boot(f"vhost-user-blk --image {disk}", firmware=True)
            self.assertNotIn("-kernel", guest.machine.argv)
            self.assertIn("from_disk=yes", guest.succeed("cat /proc/cmdline"))
            guest.reboot()
            self.assertIn("from_disk=yes", guest.succeed("cat /proc/cmdline"))
