"""Work for a disk, of NVMe or of virtio: the kinds `fio`, `blocks` and `files` of workload.py.

The kernel's own driver has the disk. Whatever it has to say of it meanwhile, at level warning or worse, is wrong: it
tries again what failed, and nobody else would notice.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from guest_pci import PAGE, DeviceError, PciFunction, load_modules
from work import Work

APPEARING = 30.0  # seconds for the driver to find the namespace
WARNING = 4  # of syslog(2)
MIB = 1 << 20
LARGEST = 1 << 16  # bytes of a file
MOST_FILES = 48
FILES_LEAST = MIB // 2  # bytes of a disk for a file system with some files
_UEVENTS = 15  # NETLINK_KOBJECT_UEVENT


class DiskWork(Work):
    """`disk` is the device's first one. All of it is overwritten, by fio and blocks its first `room` bytes."""

    disk: Path
    size: int
    room: int
    least = PAGE
    """Bytes of a disk on which this can be done at all."""

    def begin(self) -> None:
        slot = self.options.slot if self.options.slot.count(":") == 2 else f"0000:{self.options.slot}"
        kind = driver_of(slot)
        self.disk, self.size = find_disk(slot)
        if self.size < self.least:
            name = type(self).__name__.lower()
            raise DeviceError(f"{self.disk} has {self.size} bytes, too small for {name}: that takes {self.least}")
        self.room = min(self.size, self.options.bytes or self.size)
        self.names = (kind.controller(self.disk), self.disk.name)
        self.state = kind.state(self.disk)
        self.device = {"slot": slot, "disk": str(self.disk), "bytes": self.size}
        self.messages = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        self.opened.callback(os.close, self.messages)
        os.lseek(self.messages, 0, os.SEEK_END)

    def expect(self, what: str, value: object, expected: object) -> None:
        if value != expected:
            self.wrong.append(f"{what} is {value}, not {expected}")

    def check(self) -> None:
        if self.state is not None:
            self.expect(f"the state of {self.names[0]}", self.state.read_text().strip(), "live")
        self.wrong += [f"the kernel says: {said}" for said in self.complaints()]

    def complaints(self) -> list[str]:
        """What the kernel has said of the disk since it was asked last (ABI/testing/dev-kmsg)."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    record = os.read(self.messages, 8192).decode(errors="replace")
                except BrokenPipeError:  # messages were overwritten before they were read
                    continue
                facts, _, text = record.partition(";")
                if int(facts.split(",")[0]) & 7 <= WARNING and any(name in text for name in self.names):
                    found.append(text.splitlines()[0])
        return found


class Fio(DiskWork):
    """16 commands at a time write up to 8 MiB in random order; then fio reads and verifies them."""

    done = -1
    least = 16 << 10

    def begin(self) -> None:
        super().begin()
        self.seen |= {"writes": 0, "reads": 0}

    def round(self, number: int) -> None:
        self.fio(number)
        self.done = number

    def check(self) -> None:
        """What the last round wrote, once more."""
        super().check()
        if self.done >= 0 and not self.wrong:
            self.fio(self.done, "--verify_only")

    def fio(self, seed: int, *more: str) -> None:
        command = ["fio", "--name=round", f"--filename={self.disk}", "--rw=randwrite", "--bs=16k", "--iodepth=16"]
        command += [f"--size={min(self.room, 8 * MIB)}", "--direct=1", "--ioengine=libaio", "--thread"]
        command += ["--verify=crc32c", "--verify_fatal=1", f"--randseed={seed}", "--output-format=json", *more]
        # In a group of its own: what this program is told is not for fio, which would end in the middle.
        ran = subprocess.run(command, capture_output=True, text=True, check=False, process_group=0)
        try:
            [job] = json.loads(ran.stdout[ran.stdout.index("{") :])["jobs"]
        except (ValueError, KeyError) as error:
            raise DeviceError(f"fio gave no report: {ran.stderr.strip()[-400:]}") from error
        self.seen["writes"] += 0 if more else job["write"]["total_ios"]
        self.seen["reads"] += job["read"]["total_ios"]
        if ran.returncode or job["error"]:
            said = (ran.stderr or ran.stdout).strip().splitlines()[0]
            self.wrong.append(f"fio with seed {seed}: error {job['error']}: {said}")


class Blocks(DiskWork):
    """Single blocks of 4 KiB, each with a content of its own, past the page cache; what was written stays."""

    def begin(self) -> None:
        super().begin()
        self.file = os.open(self.disk, os.O_RDWR | os.O_DIRECT)
        self.opened.callback(os.close, self.file)
        self.block = mmap.mmap(-1, PAGE)
        count = min(self.room // PAGE, 1024)
        self.written: dict[int, int] = {}  # block: the round that wrote it
        self.places = [index * (self.room // PAGE // count) for index in range(count)]
        self.chance = random.Random(count)

    def round(self, number: int) -> None:
        index = self.chance.choice(self.places)
        self.block[:] = self.content(number)
        os.pwritev(self.file, [self.block], index * PAGE)
        self.written[index] = number
        if number % 64 == 63:
            os.fdatasync(self.file)
        self.compare(index)
        self.compare(self.chance.choice(list(self.written)))

    def content(self, number: int) -> bytes:
        return number.to_bytes(8, "little") + random.Random(number).randbytes(PAGE - 8)

    def compare(self, index: int) -> None:
        os.preadv(self.file, [self.block], index * PAGE)
        number = self.written[index]
        if self.block[:] != self.content(number):
            other = int.from_bytes(self.block[:8], "little")
            was = f"that of round {other}" if self.block[:] == self.content(other) else "none ever written"
            self.wrong.append(f"block {index} has not the content of round {number}, but {was}")

    def check(self) -> None:
        super().check()
        for index in self.written:
            self.compare(index)
        self.seen["blocks"] = len(self.written)


class Files(DiskWork):
    """As many files as there is room for, on ext4, synced one by one; all are read again, from the disk."""

    least = FILES_LEAST

    def begin(self) -> None:
        super().begin()
        run("mkfs.ext4", "-q", "-F", str(self.disk))
        load_modules("ext4")
        self.folder = Path("/run", f"workload-{self.disk.name}")
        self.folder.mkdir(exist_ok=True)
        run("mount", "-t", "ext4", str(self.disk), str(self.folder))
        self.opened.callback(self.unmount)
        self.mounted = True
        self.written: dict[str, int] = {}
        free = os.statvfs(self.folder)
        self.count = count_of_files(free.f_bavail * free.f_frsize)

    def round(self, number: int) -> None:
        name = f"file{number % self.count}"
        with (self.folder / name).open("wb") as file:
            file.write(self.content(number))
            file.flush()
            os.fsync(file.fileno())
        self.written[name] = number

    def content(self, number: int) -> bytes:
        chance = random.Random(number)
        return chance.randbytes(chance.randrange(1, LARGEST))

    def check(self) -> None:
        super().check()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        for name, number in self.written.items():
            there, wanted = (
                sha256(each).hexdigest() for each in ((self.folder / name).read_bytes(), self.content(number))
            )
            self.expect(f"the digest of {name}, written in round {number},", there, wanted)
        self.seen["files"] = len(self.written)

    def finish(self) -> None:
        self.check()
        self.unmount()
        ran = subprocess.run(["e2fsck", "-f", "-n", str(self.disk)], capture_output=True, text=True, check=False)
        if ran.returncode:
            self.wrong.append(f"e2fsck: {ran.stdout.strip()[-400:]}")

    def unmount(self) -> None:
        if self.mounted:
            self.mounted = False
            run("umount", str(self.folder))


def count_of_files(free: int) -> int:
    """How many files of up to `LARGEST` bytes so many bytes have room for, each with one that is not yet away."""
    return max(1, min(MOST_FILES, free // (2 * LARGEST)))


@dataclass(frozen=True)
class Driver:
    """How a driver's disks are found, and what the kernel calls them.

    `find` gives the disk of a PCI function, None as long as there is none; `controller` the name of what has it, and
    `state` the file that says "live" as long as that works, where there is one.
    """

    module: str
    find: Callable[[str], Path | None]
    controller: Callable[[Path], str]
    state: Callable[[Path], Path | None]


def namespace(slot: str, nsid: int = 1, size: int | None = None, seconds: float = APPEARING) -> Path:
    """The device of a controller's namespace, when the driver has found it (and so many bytes). Raises DeviceError."""
    return appearing(f"namespace {nsid} of {slot}", lambda: find_namespace(slot, nsid, size), seconds)


def appearing(what: str, find: Callable[[], Path | None], seconds: float) -> Path:
    """What `find` finds, when it does. Raises DeviceError.

    The kernel announces a disk that is there, and one that has another size: uevents.
    """
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _UEVENTS) as news:
        news.bind((0, 1))
        while (disk := find()) is None:
            if (left := end - time.monotonic()) <= 0:
                raise DeviceError(f"the kernel has found no {what}, or of another size")
            news.settimeout(left)
            with contextlib.suppress(OSError):  # in vain, or more news than the socket holds: look again
                news.recv(8192)
    return disk


def find_namespace(slot: str, nsid: int = 1, size: int | None = None) -> Path | None:
    for found in Path("/sys/bus/pci/devices", slot).glob("nvme/nvme*/nvme*n*/nsid"):
        disk = Path("/dev", found.parent.name)
        with contextlib.suppress(FileNotFoundError):  # it goes away
            has = int((found.parent / "size").read_text()) * 512
            if int(found.read_text()) == nsid and disk.is_block_device() and (has if size is None else has == size):
                return disk
    return None


def find_virtio_disk(slot: str, size: int | None = None) -> Path | None:
    """The disk of a virtio PCI function, with so many bytes if that matters."""
    for found in Path("/sys/bus/pci/devices", slot).glob("virtio*/block/vd*/size"):
        disk = Path("/dev", found.parent.name)
        with contextlib.suppress(FileNotFoundError):  # it goes away
            has = int(found.read_text()) * 512
            if disk.is_block_device() and (has if size is None else has == size):
                return disk
    return None


def _nvme_controller(disk: Path) -> str:
    return disk.name.rpartition("n")[0]


BY_CLASS: dict[int, Driver] = {
    # By the PCI class of what has the disk.
    0x0108: Driver(
        "nvme", find_namespace, _nvme_controller, lambda disk: Path("/sys/class/nvme", _nvme_controller(disk), "state")
    ),
    0x0100: Driver(
        "virtio_blk",
        find_virtio_disk,
        lambda disk: Path("/sys/block", disk.name, "device").resolve().name,
        lambda _: None,
    ),
}


def driver_of(slot: str) -> Driver:
    """That of the disk of a PCI function. Raises DeviceError."""
    function = PciFunction(slot)
    kind = BY_CLASS.get(function.number("class") >> 8)
    if kind is None:
        raise DeviceError(f"the device at {slot} is {function.ids}, and no disk that is known here")
    return kind


def find_disk(slot: str) -> tuple[Path, int]:
    """The first disk of a PCI function and its bytes, once the driver has found it. Raises DeviceError."""
    kind = driver_of(slot)
    load_modules(kind.module)
    disk = appearing(f"disk of {slot}", lambda: kind.find(slot), APPEARING)
    return disk, int(Path("/sys/block", disk.name, "size").read_text()) * 512


def run(*command: str) -> Any:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise DeviceError(f"{' '.join(command)}: {ran.stderr.strip() or ran.returncode}")
