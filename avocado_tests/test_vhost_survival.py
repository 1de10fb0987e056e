"""A disk whose server is killed, stopped and replaced while a guest uses it: no error, and nothing lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avocado_tests.vhost_test import MIB, ODD, Bench, DiskTest
from vfio_user.harness import Deadline, Job, Workload

BLOCK = 4096
KEPT_BACK, OTHERS = b"\xa1" * BLOCK, [bytes([number]) * BLOCK for number in (0xB2, 0xC3, 0xD4)]
HUNG = "is not a head"
"""What the guest's driver says of a request that is given back twice (drivers/virtio/virtio_ring.c): it stops then."""


class KillTest(DiskTest):
    def fio_through_kills(self, times: int) -> None:
        """Each kill is after as many writes as about a second has, which end in any order."""
        options = "[driver=vhost-user-blk-pci]"
        with self.bench(served=f"{ODD}:Unordered", options=options, size=64 * MIB, image="storage") as bench:
            workload = Workload(bench.guest, "fio")
            for _ in range(times):
                self.await_writes(bench, 200)
                bench.server.kill()
                bench.server.restart()
            done = workload.end()
            self.log.info("%s", dict(done.seen))
            self.assertTrue(done.ok, done.verdict)

    def kill_again_and_again(self, bench: Bench, times: int) -> None:
        """Each time after a flush that was acknowledged."""
        for _ in range(times):
            bench.await_flush()
            bench.server.kill()
            bench.server.restart()

    def await_writes(self, bench: Bench, count: int) -> None:
        """Until the guest has had so many more acknowledged."""
        written = f"$(awk '{{print $5}}' /sys/block/{Path(bench.path()).name}/stat)"
        goal = int(bench.guest.succeed(f"echo {written}")) + count
        bench.guest.wait_until_succeeds(f"test {written} -gt {goal}", interval=0.02)


class Kills(KillTest):
    """
    :avocado: tags=vhost-user,blk,kill
    """

    def test_writers_lose_nothing_when_the_server_is_killed_again_and_again(self) -> None:
        """Of requests that end in their order: what others have is more.

        :avocado: tags=nightly
        """
        with self.bench() as bench:
            job = bench.begin_writing()
            self.kill_again_and_again(bench, 5)
            self.assert_all_is_there(bench.end_writing(job))

    def test_writers_lose_nothing_of_requests_that_end_in_any_order(self) -> None:
        with self.bench(served=f"{ODD}:Unordered", options="[driver=vhost-user-blk-pci]") as bench:
            job = bench.begin_writing()
            self.kill_again_and_again(bench, 5)
            self.assert_all_is_there(bench.end_writing(job))

    def test_two_queues_lose_nothing(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.bench(served=f"{ODD}:Unordered", options="[driver=vhost-user-blk-pci]", cpus=2) as bench:
            job = bench.begin_writing()
            self.kill_again_and_again(bench, 3)
            self.assert_all_is_there(bench.end_writing(job))

    def test_packed_rings_lose_nothing(self) -> None:
        with self.bench(served=f"{ODD}:Unordered", options="[driver=vhost-user-blk-pci,packed=on]") as bench:
            job = bench.begin_writing()
            self.kill_again_and_again(bench, 3)
            self.assert_all_is_there(bench.end_writing(job))

    def test_fio_verifies_while_the_server_is_killed(self) -> None:
        self.fio_through_kills(3)


class ManyKills(KillTest):
    """
    :avocado: tags=vhost-user,blk,kill,nightly
    """

    timeout = 4 * KillTest.timeout

    def test_fio_verifies_while_the_server_is_killed_every_second(self) -> None:
        self.fio_through_kills(60)


class OutOfOrder(DiskTest):
    """
    A request is held back, those behind it end, and the server is killed: what no used index can tell of.

    :avocado: tags=vhost-user,blk,kill
    """

    def test_a_request_that_was_held_back_is_done_by_the_next_server(self) -> None:
        with self.killed_with_a_request_held_back() as (bench, job):
            done = job.wait(Deadline(30.0 * bench.guest.patience))
            self.assertTrue(done.ok, done.describe())
            self.assertEqual(self.blocks(bench), [KEPT_BACK, *OTHERS])
            self.assertNotIn(HUNG, bench.guest.succeed("dmesg"))

    def test_without_the_in_flight_region_it_is_lost(self) -> None:
        """The negative control: another request is done a second time in its place.

        Without indirect descriptors, of which that request has none any more: it is still in the ring's own.
        """
        with self.killed_with_a_request_held_back("--without INFLIGHT_SHMFD,INDIRECT_DESC") as (bench, _):
            bench.guest.wait_until_succeeds(f"dmesg | grep '{HUNG}'", interval=0.02)
            self.assertEqual(self.blocks(bench)[0], bytes(BLOCK))

    @contextmanager
    def killed_with_a_request_held_back(self, options: str = "") -> Iterator[tuple[Bench, Job]]:
        """The next server runs; the job is the guest's that waits for the request."""
        hold = Path(self.workdir) / "hold"
        os.mkfifo(hold)
        served, driver = f"{ODD}:Holding --hold {hold}", "[driver=vhost-user-blk-pci]"
        with self.bench(served=served, options=f"{options} {driver}") as bench:
            for at, block in enumerate((KEPT_BACK, *OTHERS)):
                bench.guest.put(block, f"/tmp/block{at}")
            write = f"dd of={bench.path()} bs={BLOCK} count=1 oflag=direct conv=notrunc"
            job = bench.guest.start(f"{write} if=/tmp/block0 seek=0", 60.0)
            with hold.open("wb"):  # which waits until the request is held back
                bench.guest.succeed(*(f"{write} if=/tmp/block{at} seek={at}" for at in (1, 2, 3)))
                hold.unlink()
                bench.server.kill()
            bench.server.restart()
            yield bench, job

    def blocks(self, bench: Bench) -> list[bytes]:
        image = bench.image.read_bytes()
        return [image[at : at + BLOCK] for at in range(0, 4 * BLOCK, BLOCK)]


class Pauses(DiskTest):
    """
    :avocado: tags=vhost-user,blk,kill
    """

    def test_a_server_that_is_stopped_and_goes_on_is_waited_for(self) -> None:
        """The guest's requests stand still, and so does nothing else: QEMU answers, and so does the guest."""
        with self.bench() as bench:
            job = bench.begin_writing()
            for _ in range(3):
                bench.await_flush()
                bench.server.child.pause()
                self.assertTrue(bench.guest.qmp.command("query-status")["running"])
                bench.guest.succeed("true")
                bench.server.child.signal(signal.SIGCONT)
            self.assert_all_is_there(bench.end_writing(job))
