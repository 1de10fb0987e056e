"""What an NVMe controller's guest keeps when servers are killed, replaced, slowed down and moved."""

from __future__ import annotations

import struct
import tempfile
from contextlib import closing
from hashlib import md5
from pathlib import Path

from avocado_tests.guest_programs import command_of, put_program
from avocado_tests.nvme_test import IO_TIMEOUT, MIB, Bench, NvmeTest, block_device
from avocado_tests.programs.durable import PLACES, SIZE
from userdev.control import ControlClient
from vfio_user.harness import Job, two_hosts
from vfio_user.interposer.control.client import InterposerControl

KEPT_ALIVE = (
    "vfio-user interpose --listen {socket} --server-command 'vfio-user serve {nvme} --fd {fd}' --keep-alive"
    " --control {folder}/interposer"
)
FAULTY = (
    "vfio-user interpose --listen {socket} --server-command 'vfio-user serve {nvme} --fd {fd}' --faults {folder}/faults"
    " --control {folder}/interposer"
)


class Kills(NvmeTest):
    """
    :avocado: tags=nvme,kill
    """

    def test_what_was_acknowledged_is_there_after_a_fresh_boot(self) -> None:
        """FUA writes; the server dies, its guest with it, and another guest reads the image.

        :avocado: tags=nightly
        """
        with self.bench("16M", io_timeout=IO_TIMEOUT) as bench:
            self.begin_writing(bench, "fua")
            self.wait_for(bench, 100)
            acknowledged = self.acknowledged(bench)
            self.kill_server(bench)
            self.check(acknowledged, bench.image.read_bytes())
            following = bench.lab.boot(image="storage")
            self.load_driver(following)
            following.plug(bench.device)
            following.succeed(f"dd if={block_device(following)} of=/tmp/copy bs={SIZE} count={PLACES} iflag=direct")
            self.check(acknowledged, following.get("/tmp/copy"))

    def test_a_server_is_killed_and_replaced_under_fua_writes(self) -> None:
        self.kill_again_and_again("fua", 1)

    def test_many_kills_under_fua_writes(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.kill_again_and_again("fua", 12)

    def test_many_kills_under_flushes(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.kill_again_and_again("flush", 12)

    def test_kills_of_servers_with_mapped_doorbells(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.kill_again_and_again("fua", 4, options="--map-doorbells {folder}/doorbells")

    def test_fio_verifies_while_its_servers_are_killed(self) -> None:
        """Every few thousand writes; no error, and nothing read back that was not written.

        :avocado: tags=nightly
        """
        with self.bench("64M", server=KEPT_ALIVE, io_timeout=IO_TIMEOUT) as bench:
            load = self.start_load(bench, rw="randwrite", bsrange="4k-64k", iodepth=16, size="8m", runtime=30)
            written = f"$(awk '{{print $7}}' /sys/block/{Path(bench.block()).name}/stat)"
            with closing(InterposerControl(bench.folder / "interposer")) as interposer:
                for _ in range(6):
                    goal = int(bench.guest.succeed(f"echo {written}")) + 5000
                    bench.guest.wait_until_succeeds(f"test {written} -gt {goal}", interval=0.05)
                    interposer.call("signal", signal="SIGKILL")
                result = load.wait()
                self.assertTrue(result.ok, result.describe())
                self.assertEqual(interposer.survival()["crashes"], 6)

    def kill_again_and_again(self, way: str, times: int, options: str = "") -> None:
        """The guest's driver resets the controller, and its writer goes on as if nothing had been."""
        with self.bench("16M", server=KEPT_ALIVE, options=options, io_timeout=IO_TIMEOUT) as bench:
            self.begin_writing(bench, way)
            with closing(InterposerControl(bench.folder / "interposer")) as interposer:
                for time in range(times):
                    self.wait_for(bench, self.acknowledged(bench) + 37 + 11 * time)
                    interposer.call("signal", signal="SIGKILL")
                    acknowledged = self.acknowledged(bench)
                    self.check(acknowledged, bench.image.read_bytes())
                self.wait_for(bench, self.acknowledged(bench) + 50)
                self.assertEqual(interposer.survival()["crashes"], times)
            bench.guest.succeed("touch /tmp/enough", "test ! -e /tmp/failed")
            self.check(self.acknowledged(bench), bench.image.read_bytes())

    def test_a_file_system_survives_the_server(self) -> None:
        """ext4, remounted in another guest: its journal is replayed, and every file that was synced is whole."""
        with self.bench("64M", io_timeout=IO_TIMEOUT) as bench:
            guest, disk = bench.guest, bench.block()
            guest.succeed(f"mkfs.ext4 -q {disk}", "mkdir -p /mnt", f"mount -t ext4 {disk} /mnt")
            guest.start(["python3", "-c", SYNC_FILES])
            guest.wait_until_succeeds("test $(wc -l < /tmp/synced) -ge 30", interval=0.02)
            lines = guest.get("/tmp/synced").decode().splitlines(keepends=True)
            synced = dict(line.split() for line in lines if line.endswith("\n"))
            self.kill_server(bench)
            following = bench.lab.boot(image="storage")
            self.load_driver(following)
            following.plug(bench.device)
            disk = block_device(following)
            following.succeed("mkdir -p /mnt", f"mount -t ext4 {disk} /mnt")
            sums = (line.split() for line in following.succeed("cd /mnt; md5sum f*").splitlines())
            found = {name: checksum for checksum, name in sums}
            self.assertEqual({name: found.get(name) for name in synced}, synced)
            following.succeed("umount /mnt", f"e2fsck -fn {disk}")

    def kill_server(self, bench: Bench) -> None:
        """Under its work, and its guest with it: QEMU stands still meanwhile, and never knows."""
        server, machine = bench.guest.device.server, bench.guest.machine
        assert server is not None
        machine.child.pause()
        server.kill()
        machine.kill()
        machine.stop()

    # -- what they share --------------------------------------------------------------------------------------------

    def begin_writing(self, bench: Bench, way: str) -> None:
        put_program(bench.guest, "durable")
        bench.guest.start([command_of("durable"), bench.block(), way], 300)
        self.wait_for(bench, 0)

    def acknowledged(self, bench: Bench) -> int:
        return int(bench.guest.get("/tmp/acknowledged"))

    def wait_for(self, bench: Bench, number: int) -> None:
        """Until the guest's writer has had so many blocks acknowledged."""
        command = f'test -e /tmp/failed || test "$(cat /tmp/acknowledged)" -ge {number}'
        bench.guest.wait_until_succeeds(command, interval=0.01)
        bench.guest.succeed("test ! -e /tmp/failed || { cat /tmp/failed; false; }")

    def check(self, acknowledged: int, image: bytes) -> None:
        """Every place has the block that was acknowledged last there, or one that was written later; whole."""
        self.assertGreater(acknowledged, 0)
        for place in range(min(PLACES, acknowledged + 1)):
            block = image[place * SIZE : (place + 1) * SIZE]
            (number,) = struct.unpack_from("<Q", block)
            last = acknowledged - (acknowledged - place) % PLACES
            self.assertIn(number, range(last, last + 100 * PLACES, PLACES), f"place {place}")
            self.assertEqual(block, struct.pack("<Q", number) * (SIZE // 8), f"place {place}")


class Moves(NvmeTest):
    """
    :avocado: tags=nvme,move
    """

    def test_a_server_is_upgraded_under_load(self) -> None:
        """Restarts on purpose: queues, features and commands in flight are handed to the next server, at once."""
        with self.bench("64M", server=KEPT_ALIVE) as bench:
            load = self.load(bench)
            with closing(InterposerControl(bench.folder / "interposer")) as interposer:
                for _ in range(3):
                    done = interposer.call("restart", hand_over=True)
                    self.assertTrue(done["handed_over"])
            self.finish(bench, load)

    def test_doorbells_that_the_guest_has_mapped_are_there_for_the_next_server(self) -> None:
        """What is rung while there is none is found; and no command costs a message.

        :avocado: tags=nightly
        """
        with self.bench("64M", server=KEPT_ALIVE, options="--map-doorbells {folder}/doorbells") as bench:
            load = self.load(bench)
            with closing(InterposerControl(bench.folder / "interposer")) as interposer:
                for _ in range(3):
                    self.assertTrue(interposer.call("restart", hand_over=True)["handed_over"])
            self.finish(bench, load)
            with bench.control as control:
                before = control.call("doorbells")["messages"]
                done = self.fio(
                    bench.guest, bench.block(), rw="randwrite", bs="4k", iodepth=8, size="8m", verify="crc32c"
                )
                self.assertGreaterEqual(done["write"]["total_ios"], 2048)
                self.assertEqual(control.call("doorbells")["messages"], before)

    def test_a_guest_migrates_under_load(self) -> None:
        """The image is shared; commands under way are done on one side or the other."""
        with two_hosts() as hosts, self.bench("64M", migratable=True, host=hosts.a) as bench:
            load = self.load(bench)
            report = bench.lab.migrate(bench.guest, to=hosts.b)
            self.assertTrue(report.ok, f"{report.verdict}: {report.reason}")
            self.finish(bench, load)

    def test_a_guest_whose_disk_has_lost_something_stays_where_it_is_told(self) -> None:
        """The source does not stop if it cannot say that everything is where the other host finds it.

        :avocado: tags=nightly
        """
        with two_hosts() as hosts, tempfile.TemporaryDirectory(prefix="vfu-") as sockets:
            options = f"--control {sockets}/{{host}}"
            with self.bench("16M", options=options, migratable=True, host=hosts.a) as bench:
                with ControlClient(Path(sockets, hosts.a.name)) as control:
                    control.call("break", nsid=1, operation="sync")
                report = bench.lab.migrate(bench.guest, to=hosts.b)
                self.assertEqual(report.verdict, "stayed", report.reason)
                bench.guest.succeed(f"dd if=/dev/zero of={bench.block()} bs=4k count=1 oflag=direct")
                bench.guest.fail(f"dd if=/dev/zero of={bench.block()} bs=4k count=1 conv=fsync")

    def test_a_guest_with_mapped_doorbells_migrates_there_and_back(self) -> None:
        """Each host has a page of its own, and the first one's is still what it was when the guest comes back.

        :avocado: tags=nightly
        """
        with two_hosts() as hosts, tempfile.TemporaryDirectory(prefix="vfu-") as pages:
            options = f"--map-doorbells {pages}/{{host}}"
            with self.bench("64M", options=options, migratable=True, host=hosts.a) as bench:
                for to in (hosts.b, hosts.a):
                    load = self.load(bench)
                    report = bench.lab.migrate(bench.guest, to=to)
                    self.assertTrue(report.ok, f"{report.verdict}: {report.reason}")
                    self.finish(bench, load)

    def test_an_image_goes_along_to_a_host_that_does_not_share_it(self) -> None:
        """There and back under load: each host's image has in the end what the guest wrote to it, and read before."""
        with two_hosts() as hosts, tempfile.TemporaryDirectory(prefix="vfu-") as scratch, self.lab() as lab:
            images = {host.name: Path(scratch, host.name, "disk.img") for host in (hosts.a, hosts.b)}
            for image in images.values():
                image.parent.mkdir()
            device = f"nvme --image {scratch}/{{host}}/disk.img:64M --migrate-image=yes"
            guest = lab.boot(device, image="storage", migratable=True, host=hosts.a)
            self.load_driver(guest)
            bench = Bench(lab, guest, Path(scratch), device)
            disk = bench.block()
            guest.succeed(f"dd if=/dev/urandom of={disk} bs=1M seek=32 count=8 oflag=direct")
            for to in (hosts.b, hosts.a):
                load = self.load(bench)
                report = lab.migrate(guest, to=to)
                self.assertTrue(report.ok, f"{report.verdict}: {report.reason}")
                self.finish(bench, load)
            inside = guest.succeed(f"md5sum {disk}").split()[0]
            self.assertEqual(md5(images["a"].read_bytes()).hexdigest(), inside)
            kept = [image.read_bytes()[32 * MIB : 40 * MIB] for image in images.values()]
            self.assertTrue(kept[0] == kept[1] != bytes(8 * MIB))

    def test_doorbells_come_late(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.under_faults(
            """
            - match: {direction: to-server, command: REGION_WRITE, region: BAR0, offset: 0x1000-0x10ff,
                      probability: 0.2}
              act: {delay: {seconds: 0.005, jitter: 0.01}}
            """
        )

    def test_doorbells_come_twice(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.under_faults(
            """
            - match: {direction: to-server, command: REGION_WRITE, region: BAR0, offset: 0x1008-0x10ff}
              act: {duplicate: 1}
            """
        )

    def test_doorbells_get_lost(self) -> None:
        """A command of which the controller never hears is given up, or found with the next doorbell.

        :avocado: tags=nightly
        """
        self.under_faults(
            """
            - match: {direction: to-server, command: REGION_WRITE, region: BAR0, offset: 0x1008-0x10ff,
                      nth: {every: 400, from: 400, until: 1200}}
              act: drop
            """
        )

    def under_faults(self, rules: str) -> None:
        """Without shadow doorbells, so that there are many."""
        scenario = "seed: 6\nrules:\n" + rules
        with self.bench(
            "64M", server=FAULTY, faults=scenario, options="--shadow-doorbells=no", io_timeout=IO_TIMEOUT
        ) as bench:
            load = self.load(bench, depth=4)
            self.finish(bench, load)

    def load(self, bench: Bench, *, depth: int = 16) -> Job:
        return self.start_load(bench, rw="randwrite", bsrange="4k-64k", iodepth=depth, size="8m", runtime=2)

    def finish(self, bench: Bench, load: Job) -> None:
        result = load.wait()
        self.assertTrue(result.ok, result.describe())


SYNC_FILES = """
import hashlib, os
with open("/tmp/synced", "w") as synced:
    for number in range(100000):
        data = os.urandom(1000 + number * 37 % 30000)
        with open(f"/mnt/f{number}", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open("/mnt", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        print(f"f{number}", hashlib.md5(data).hexdigest(), file=synced, flush=True)
"""
