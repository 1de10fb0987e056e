"""What the tests of disks behind vhost-user share: a guest whose own driver has one, and who writes and reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Unpack

from avocado_tests.guest_programs import command_of, put_program
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import (
    BootedGuest,
    BootOptions,
    Conductor,
    Deadline,
    DeviceServer,
    Job,
    Lab,
    Pair,
    Plan,
    Plugged,
    Report,
    Result,
)

MIB = 1 << 20
SIZE = 8 * MIB
SEED = 4711

ODD = f"{Path(__file__).parent / 'odd_blk.py'}"
"""Disks that are odd in one way each, as `device` takes them: f"{ODD}:Unlogged"."""


@dataclass
class Bench:
    """A guest with a disk of ours; `device` is how a server of the same image is asked for."""

    lab: Lab
    image: Path
    device: str
    guest: BootedGuest = field(init=False)

    @cached_property
    def pair(self) -> Pair:
        """Two hosts to migrate between."""
        return self.lab.hosts()

    def hop(self, plan: Plan | None = None, conductor: Conductor | None = None) -> Report:
        """Migrate the guest to the other host."""
        other = self.pair.other(self.guest.host)
        return self.lab.migrate(self.guest, to=other, plan=plan or Plan(), conductor=conductor)

    @property
    def server(self) -> DeviceServer:
        """That of the guest's first disk."""
        server = self.guest.device.server
        assert server is not None
        return server

    def path(self, plugged: Plugged | None = None, *, size: int | None = None) -> str:
        """The guest's name for a disk, /dev/vda, once it is there (and has so many bytes)."""
        return virtio_disk(self.guest, plugged or self.guest.device, size)

    def write(self, plugged: Plugged | None = None, *, seed: int = SEED, size: int = SIZE) -> str:
        """Random bytes on the whole of the disk, flushed; their digest."""
        digest: str = self.guest.call(_write_disk, self.path(plugged), size, seed, timeout=60)
        return digest

    def read(self, plugged: Plugged | None = None, *, size: int = SIZE) -> str:
        """The digest of what the disk has, read from there and not from the page cache."""
        digest: str = self.guest.call(_read_disk, self.path(plugged), size, timeout=60)
        return digest

    def image_digest(self) -> str:
        """That of what the image has."""
        return hashlib.sha256(self.image.read_bytes()).hexdigest()

    def start(self, program: str, under_way: str, timeout: float = 240.0) -> Job:
        """Begin a program of `programs/` with the disk; it is under way on return, when this file is there."""
        put_program(self.guest, program)
        self.guest.succeed(f"rm -f {under_way}")
        job = self.guest.start([command_of(program), self.path()], timeout)
        self.guest.wait_until_succeeds(f"test -e {under_way}", interval=0.01)
        return job

    def begin_writing(self) -> Job:
        """Four threads write and flush."""
        self.guest.succeed("rm -f /tmp/enough")
        return self.start("writing", "/tmp/writing")

    def await_flush(self) -> None:
        """Until the writers have had a flush acknowledged, from now on."""
        self.guest.succeed("rm -f /tmp/writing")
        self.guest.wait_until_succeeds("test -e /tmp/writing", interval=0.01)

    def end_writing(self, job: Job) -> Result:
        """What the writers have to say of all that they wrote, after one more flush."""
        self.await_flush()
        self.guest.succeed("touch /tmp/enough")
        return job.wait(Deadline(120.0 * self.guest.patience))

    def begin_reading(self) -> Job:
        """Reads into buffers that are used once."""
        return self.start("reading_once", "/tmp/busy", 120.0)

    def end_reading(self, job: Job) -> Result:
        """What the reader has to say of all its buffers."""
        self.guest.succeed("rm -f /tmp/busy")
        return job.wait(Deadline(60.0 * self.guest.patience))


class DiskTest(GuestTest):
    """A test of a disk behind vhost-user with the driver of the guest's kernel."""

    @contextmanager
    def bench(
        self,
        *,
        size: int = SIZE,
        served: str = "vhost-user-blk",
        options: str = "",
        image: str = "minimal",
        beside: str = "",
        **boot: Unpack[BootOptions],
    ) -> Iterator[Bench]:
        """A guest of `image` with a disk of so many bytes; `boot` is for `Lab.boot`.

        `served` is another device to serve, `options` are more of its own, or properties of QEMU's in brackets;
        `beside` is a device that the guest has, too. One that is `migratable` is on the first of two hosts.
        """
        with self.lab() as lab:
            disk = Path(self.workdir) / "disk.img"
            device = f"{served} --image {disk}:{size} {options}"
            boot.setdefault("modules", ("virtio_blk",))
            bench = Bench(lab, disk, device)
            if boot.get("migratable"):
                boot["host"] = bench.pair.a
            bench.guest = lab.boot(devices=[device, *filter(None, [beside])], image=image, **boot)
            yield bench

    def assert_all_is_there(self, done: Result) -> None:
        """The writers have seen no error, and read what they wrote."""
        self.assertEqual((done.stdout, done.stderr), ("all is there\n", ""))


def virtio_disk(guest: BootedGuest, plugged: Plugged, size: int | None = None) -> str:
    """The guest's name for a disk, /dev/vda, once it is there (and has so many bytes)."""
    found: str = guest.call(_wait_for_disk, plugged.address, size, 10 * guest.patience, timeout=15)
    return found


def _wait_for_disk(address: str, size: int | None, seconds: float) -> str:
    import sys

    sys.path.append("/opt/vfio-user")
    from disk_work import appearing, find_virtio_disk

    return str(appearing(f"disk of {address}", lambda: find_virtio_disk(address, size), seconds))


def _write_disk(path: str, size: int, seed: int) -> str:
    import hashlib
    import os
    import random

    data = random.Random(seed).randbytes(size)
    with open(path, "r+b", buffering=0) as disk:
        disk.write(data)
        os.fsync(disk.fileno())
    return hashlib.sha256(data).hexdigest()


def _read_disk(path: str, size: int) -> str:
    import hashlib
    import os

    with open(path, "rb", buffering=0) as disk:
        os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = b""
        while piece := disk.read(1 << 20):
            found += piece
    assert len(found) == size
    return hashlib.sha256(found).hexdigest()
