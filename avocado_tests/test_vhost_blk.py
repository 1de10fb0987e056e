"""A disk behind vhost-user, used by the guest's own driver: what was flushed is in the image, whatever happens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest, Deadline, Mode, Verdict

SIZE = 8 << 20
SEED = 4711


BUSY = """
import mmap, os, pathlib, time
disk = os.open("/dev/vda", os.O_RDONLY | os.O_DIRECT)
size, count, blocks = 4096, 20000, 256
once = mmap.mmap(-1, count * size)
once.write(bytes([255]) * len(once))
buffers = memoryview(once)
reference = mmap.mmap(-1, blocks * size)
os.preadv(disk, [reference], 0)
busy = pathlib.Path("/tmp/busy")
busy.touch()
done = 0
while busy.exists() and done < count:
    os.preadv(disk, [buffers[done * size :][:size]], done % blocks * size)
    done += 1
    time.sleep(0.0002)
while busy.exists():
    time.sleep(0.01)
expected = [reference[at * size : (at + 1) * size] for at in range(blocks)]
wrong = [at for at in range(done) if buffers[at * size :][:size] != expected[at % blocks]]
print(f"wrong: {len(wrong)} of {done}" if wrong else "no wrong buffer")
"""
"""In the guest: reads into buffers that are used once, until /tmp/busy is gone; then all of them are compared.

They are there before: a page that the guest makes is sent again anyway, with what was read into it.
"""


WRITING = """
import mmap, os, pathlib, random, threading
disk = os.open("/dev/vda", os.O_RDWR | os.O_DIRECT)
size, blocks, writers = 4096, 2048, 4
said, enough, expected = pathlib.Path("/tmp/writing"), pathlib.Path("/tmp/enough"), {}
def write(which):
    page, numbers, turn = mmap.mmap(-1, size), random.Random(which), 0
    while not enough.exists():
        turn += 1
        block = numbers.randrange(blocks // writers) * writers + which
        page[:] = data = (turn * writers + which).to_bytes(8, "little") * (size // 8)
        os.pwritev(disk, [page], block * size)
        expected[block] = data
        if turn % 50 == 0:
            os.fsync(disk)
            said.touch()
threads = [threading.Thread(target=write, args=(which,)) for which in range(writers)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
page, wrong = mmap.mmap(-1, size), 0
for block, data in expected.items():
    os.preadv(disk, [page], block * size)
    wrong += page[:] != data
whole = len(expected) > 100 and all(any(block % writers == which for block in expected) for which in range(writers))
print(f"{wrong} of {len(expected)} are wrong" if wrong or not whole else "all is there")
"""
"""In the guest: four threads write blocks and flush until /tmp/enough is there; then all of them are read.

A thread that is told of an error ends, and says so.
"""


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

    def test_a_server_that_is_killed_again_and_again_loses_nothing(self) -> None:
        """SIGKILL while the guest writes and flushes: it sees no error, and finds what it wrote."""
        with self.disk() as guest:
            self.write(guest)
            server = guest.device.server
            assert server is not None
            job = guest.start(f"python3 -c '{WRITING}'", 240.0)
            for _ in range(5):
                guest.wait_until_succeeds("test -e /tmp/writing", interval=0.01)
                guest.succeed("rm /tmp/writing")
                server.kill()
                server.restart()
            guest.wait_until_succeeds("test -e /tmp/writing", interval=0.01)
            guest.succeed("touch /tmp/enough")
            done = job.wait(Deadline(120.0 * guest.patience))
            self.assertEqual((done.stdout, done.stderr), ("all is there\n", ""))

    def test_qemu_moves_it_to_another_host_and_back_while_it_is_written(self) -> None:
        """Each buffer is read into once: one that is used again would hide a write that the dirty log has lost."""
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot(device=self.wanted, host=pair.a, modules=("virtio_blk",), migratable=True)
            digest = self.write(guest)
            for _ in range(2):
                job = guest.start(f"python3 -c '{BUSY}'", 120.0)
                guest.wait_until_succeeds("test -e /tmp/busy", interval=0.01)
                report = lab.migrate(guest, to=pair.other(guest.host))
                self.log.info("%s", report.as_dict())
                self.assertEqual((report.verdict, report.mode), (Verdict.MIGRATED, Mode.NATIVE), report.reason)
                guest.succeed("rm /tmp/busy")
                done = job.wait(Deadline(60.0 * guest.patience))
                self.assertEqual((done.exit_code, done.stdout), (0, "no wrong buffer\n"), done.stderr)
                self.assertEqual(self.read(guest), digest)

    def test_it_moves_beside_a_device_that_is_moved_from_here(self) -> None:
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot(devices=[self.wanted, "edu"], host=pair.a, modules=("virtio_blk",), migratable=True)
            digest = self.write(guest)
            report = lab.migrate(guest, to=pair.b)
            self.log.info("%s", report.as_dict())
            self.assertEqual(report.verdict, Verdict.MIGRATED, report.reason)
            self.assertEqual(self.read(guest), digest)
            self.edu(guest, "registers", device=guest.devices[1])

    @property
    def wanted(self) -> str:
        self.image = Path(self.workdir) / "image"
        return f"vhost-user-blk --image {self.image}:{SIZE}"

    @contextmanager
    def disk(self, cpus: int = 1) -> Iterator[BootedGuest]:
        """A guest with a disk of ours as /dev/vda."""
        with self.lab() as lab:
            yield lab.boot(device=self.wanted, cpus=cpus, modules=("virtio_blk",))

    def write(self, guest: BootedGuest, seed: int = SEED) -> str:
        digest: str = guest.call(write_disk, SIZE, seed, 20 * guest.patience, timeout=60)
        return digest

    def read(self, guest: BootedGuest) -> str:
        digest: str = guest.call(read_disk, SIZE, 20 * guest.patience, timeout=60)
        return digest

    def image_digest(self) -> str:
        return hashlib.sha256(self.image.read_bytes()).hexdigest()
