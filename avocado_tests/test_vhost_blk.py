"""A disk behind vhost-user, used by the guest's own driver: what was flushed is in the image, whatever happens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest

SIZE = 8 << 20
SEED = 4711


def write_disk(size: int, seed: int, seconds: float) -> str:
    """In the guest: random bytes on the whole of the disk, flushed; their digest."""
    import hashlib
    import os
    import random
    import time
    from pathlib import Path

    end = time.monotonic() + seconds
    while not Path("/dev/vda").exists() and time.monotonic() < end:
        time.sleep(0.01)
    data = random.Random(seed).randbytes(size)
    with open("/dev/vda", "r+b", buffering=0) as disk:
        disk.write(data)
        os.fsync(disk.fileno())
    return hashlib.sha256(data).hexdigest()


def read_disk(size: int, seconds: float) -> str:
    """In the guest: the digest of what the disk has, read from there and not from the page cache."""
    import hashlib
    import os
    import time
    from pathlib import Path

    end = time.monotonic() + seconds
    while not Path("/dev/vda").exists() and time.monotonic() < end:
        time.sleep(0.01)
    with open("/dev/vda", "rb", buffering=0) as disk:
        os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = b""
        while piece := disk.read(1 << 20):
            found += piece
    assert len(found) == size
    return hashlib.sha256(found).hexdigest()


class DiskBehindVhostUser(GuestTest):
    """
    :avocado: tags=vhost-user,blk
    """

    def test_what_the_guest_writes_is_in_the_image(self) -> None:
        with self.disk() as guest:
            digest = self.write(guest)
            self.assertEqual(self.read(guest), digest)
            self.assertEqual(self.image_digest(), digest)

    def test_it_works_again_after_a_pause_a_reboot_and_a_reset(self) -> None:
        with self.disk() as guest:
            digest = self.write(guest)
            guest.qmp.command("stop")
            guest.qmp.command("cont")
            self.assertEqual(self.read(guest), digest)
            guest.reboot()
            self.assertEqual(self.read(guest), digest)
            digest = self.write(guest, SEED + 1)
            guest.reset()
            self.assertEqual(self.read(guest), digest)

    def test_two_processors_have_two_queues(self) -> None:
        with self.disk(cpus=2) as guest:
            digest = self.write(guest)
            self.assertEqual(self.read(guest), digest)
            self.assertEqual(guest.succeed("ls /sys/block/vda/mq | wc -l").strip(), "2")

    @contextmanager
    def disk(self, cpus: int = 1) -> Iterator[BootedGuest]:
        """A guest with a disk of ours as /dev/vda."""
        self.image = Path(self.workdir) / "image"
        with self.lab() as lab:
            device = f"vhost-user-blk --image {self.image}:{SIZE}"
            yield lab.boot(device=device, cpus=cpus, modules=("virtio_blk",))

    def write(self, guest: BootedGuest, seed: int = SEED) -> str:
        digest: str = guest.call(write_disk, SIZE, seed, 20 * guest.patience, timeout=60)
        return digest

    def read(self, guest: BootedGuest) -> str:
        digest: str = guest.call(read_disk, SIZE, 20 * guest.patience, timeout=60)
        return digest

    def image_digest(self) -> str:
        return hashlib.sha256(self.image.read_bytes()).hexdigest()
