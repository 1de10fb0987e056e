"""What our disk behind vhost-user is worth, beside QEMU's, without a guest and in one.

    python -m benchmarks.vhost_blk [--turns N] [--seconds S] [--only alone|guest|migration] [--json FILE]

alone: one front-end in C (libblkio, `vhost_load.c`) drives our server and qemu-storage-daemon, each on a file of the
same size in the same folder, which the page cache has; and how long each takes to answer a message. The column `floor`
is what a server of one thread comes to that is in C: the sample in QEMU's own sources (`vhost_blk_floor.py`). The last
line is how often one thread that does nothing else copies 128 KiB out of the page cache: no server of one does more.
guest: one guest has our disk and QEMU's own virtio-blk on such files, and fio does its workloads on both.
migration: a guest with our disk and one without are moved by QEMU in turn.

Both sides take turns in one run, the ratio of each turn is taken by itself and the median is printed, with the CPU time
and the system calls of our server for a request, and the CPU time of qemu-storage-daemon's (system calls by perf, where
there is one). On a busy machine the ratio says who gets more of it: QEMU's daemon has a thread for each of several
requests, ours one for all. Then the CPU time is the figure.

Goals: alone >= 1.0 with 32 outstanding and at 128 KiB, >= 0.8 one at a time; in a guest >= 1.0 and >= 0.95; a downtime
of at most 1.2 times that without, plus 10 ms.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import click
import psutil

from avocado_tests.vhost_test import virtio_disk
from benchmarks.build import of_servers
from benchmarks.migration import without_device
from benchmarks.nvme import Workload, counting_syscalls, cpu_us, fio
from benchmarks.vhost_blk_floor import one_thread, one_thread_program
from userdev.process import await_listening
from vfio_user.harness import (
    BootedGuest,
    Child,
    DebianArchive,
    Device,
    Lab,
    Mode,
    Plan,
    Plugged,
    Tuning,
    c_compiler,
    install_peer,
)
from vhost_user.frontend import FrontEnd
from vhost_user.wire import FrontEndRequest

SIZE_MIB = 16
"""Of an image: all of it is dirty after a moment of writing, as it is for who writes for longer."""

SUITE = "trixie"
"""The first of Debian's with libblkio; it needs no newer C library than that of bookworm."""

ALONE = (
    Workload("4 KiB random read, 1 outstanding", "read", "4096", 1, 0.8),
    Workload("4 KiB random write, 1 outstanding", "write", "4096", 1, 0.8),
    Workload("4 KiB random read, 32 outstanding", "read", "4096", 32, 1.0),
    Workload("4 KiB random write, 32 outstanding", "write", "4096", 32, 1.0),
    Workload("128 KiB read, 8 outstanding", "read", "131072", 8, 1.0),
    Workload("128 KiB write, 8 outstanding", "write", "131072", 8, 1.0),
)
IN_A_GUEST = (
    Workload("guest: 4 KiB random read, 1 at a time", "randread", "4k", 1, 0.95),
    Workload("guest: 4 KiB random write, 1 at a time", "randwrite", "4k", 1, 0.95),
    Workload("guest: 4 KiB random read, 32 at a time", "randread", "4k", 32, 1.0),
    Workload("guest: 4 KiB random write, 32 at a time", "randwrite", "4k", 32, 1.0),
    Workload("guest: 128 KiB sequential read", "read", "128k", 8, 1.0),
    Workload("guest: 128 KiB sequential write", "write", "128k", 8, 1.0),
)
MESSAGES = 2000
START_SECONDS = 20.0
MEMORY = 512
GOAL_FACTOR, GOAL_MORE = 1.2, 0.01


@dataclass
class Side:
    """Of each turn: requests per second, and what one cost its server."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    syscalls: list[float] = field(default_factory=list)


@dataclass
class Figure:
    """A workload, on both sides."""

    workload: str
    goal: float
    ours: Side = field(default_factory=Side)
    theirs: Side = field(default_factory=Side)
    floor: Side = field(default_factory=Side)
    """One thread in C, where there is no guest."""

    @property
    def ratio(self) -> float:
        return _ratio(self.ours, self.theirs)

    @property
    def floor_ratio(self) -> float | None:
        """What one thread in C comes to."""
        return _ratio(self.floor, self.theirs) if self.floor.rates else None


def _ratio(mine: Side, other: Side) -> float:
    return statistics.median(one / another for one, another in zip(mine.rates, other.rates, strict=True))


@contextmanager
def served(name: str, argv: list[str], socket: Path) -> Iterator[Child]:
    """A server that listens."""
    child = Child(name, argv, log=socket.with_suffix(".log"))
    try:
        if not await_listening(socket, child.end, START_SECONDS):
            sys.exit(f"{name} does not listen: {child.last_words()}")
        yield child
    finally:
        child.stop()


def load_program(folder: Path) -> Path:
    """`vhost_load.c`, compiled."""
    archive = DebianArchive((SUITE,))
    archive.unpack([deb for deb in archive.fetch(["libblkio-dev"]) if deb.name.startswith("libblkio")], folder)
    (library,) = folder.glob("usr/lib/*/libblkio.so.1")
    source = Path(__file__).with_name("vhost_load.c")
    flags = [
        f"-I{folder}/usr/include",
        f"-Wl,-rpath,{library.parent}",
        "-Wl,--unresolved-symbols=ignore-in-shared-libs",
    ]
    c_compiler().compile(["-O2", "-Wall", "-Werror", *flags, "-o", "load", str(source), str(library)], folder)
    return folder / "load"


@contextmanager
def both_servers(folder: Path) -> Iterator[tuple[dict[str, Path], dict[str, Child]]]:
    """Sockets and servers of both sides, each with an image of its own."""
    sockets = {side: folder / f"{side}.sock" for side in ("ours", "theirs")}
    for side in sockets:
        (folder / f"{side}.img").write_bytes(os.urandom(SIZE_MIB << 20))
    ours = [sys.executable, "-P", "-m", "vhost_user", "serve", "blk", "--image", f"{folder}/ours.img"]
    node = f"driver=file,filename={folder}/theirs.img,node-name=disk"
    export = f"type=vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={sockets['theirs']}"
    theirs = [*install_peer("qemu-storage-daemon").argv, "--blockdev", node, "--export", export]
    with (
        served("our disk", [*ours, "--socket-path", str(sockets["ours"])], sockets["ours"]) as one,
        served("qemu-storage-daemon", theirs, sockets["theirs"]) as other,
    ):
        yield sockets, {"ours": one, "theirs": other}


def alone(folder: Path, turns: int, seconds: float) -> list[Figure]:
    program, floor = load_program(folder), one_thread_program(folder)
    figures = [Figure(each.name, each.goal) for each in ALONE]

    def load(workload: Workload, socket: Path) -> Callable[[], tuple[float, int]]:
        argv = [str(program), str(socket), workload.way, workload.block, str(workload.depth), str(seconds)]
        return partial(_loaded, argv, folder)

    with both_servers(folder) as (sockets, servers):
        for _ in range(turns):
            for figure, workload in zip(figures, ALONE, strict=True):
                for side in sockets:
                    measure(getattr(figure, side), servers[side], load(workload, sockets[side]))
                with one_thread(floor, folder / "theirs.img", folder / "floor.sock"):
                    measure(figure.floor, None, load(workload, folder / "floor.sock"))
        for side in sockets:
            print(f"{'a message, answered by ' + side:44}{round_trip(sockets[side]):8.1f} us")
        print(f"{'128 KiB copied by one thread':44}{copies(folder / 'theirs.img', 131072, seconds):8,.0f} a second")
    return figures


def copies(image: Path, size: int, seconds: float) -> float:
    """How many reads of `size` bytes from the page cache a thread does a second."""
    buffers = [mmap.mmap(-1, size) for _ in range(8)]
    with image.open("rb") as file:
        places = cycle(zip(cycle(buffers), range(0, SIZE_MIB << 20, size)))
        count, begin = 0, time.perf_counter()
        while (spent := time.perf_counter() - begin) < seconds:
            for buffer, place in islice(places, 64):
                os.preadv(file.fileno(), [buffer], place)
            count += 64
    return count / spent


def _loaded(argv: list[str], folder: Path) -> tuple[float, int]:
    """Requests per second, and how many there were."""
    log = folder / "load.log"
    log.unlink(missing_ok=True)
    child = Child("load", argv, log=log)
    if child.wait(120.0) != 0:
        sys.exit(f"{' '.join(argv)}: {child.last_words()}")
    count, seconds, _ = log.read_text().split()
    return int(count) / float(seconds), int(count)


def measure(side: Side, server: Child | None, work: Callable[[], tuple[float, int]]) -> None:
    """Note how fast something is, and what it costs a server, if there is one of its own."""
    if server is None:
        side.rates.append(work()[0])
        return
    process = psutil.Process(server.pid)
    before = cpu_us(process)
    with counting_syscalls(process.pid) as calls:
        rate, count = work()
    side.rates.append(rate)
    side.cpu_us.append((cpu_us(process) - before) / count)
    side.syscalls += [number / count for number in calls]


def round_trip(socket: Path) -> float:
    """Microseconds of a message that is answered."""
    with FrontEnd(str(socket)) as front_end:
        front_end.negotiate()
        spent = []
        for _ in range(MESSAGES):
            begin = time.perf_counter()
            front_end.ask(FrontEndRequest.GET_FEATURES)
            spent.append(time.perf_counter() - begin)
    return statistics.median(spent) * 1e6


def in_a_guest(folder: Path, turns: int, seconds: int) -> list[Figure]:
    figures = [Figure(each.name, each.goal) for each in IN_A_GUEST]
    with Lab("benchmark", folder=folder) as lab:
        guest = lab.boot(image="storage", modules=("virtio_blk",))
        ours = guest.plug(f"vhost-user-blk --image {folder}/guest.img:{SIZE_MIB}M")
        sides = {"ours": ours, "theirs": plug_virtio_blk(guest, folder / "qemu.img")}
        disks = {side: virtio_disk(guest, plugged) for side, plugged in sides.items()}
        for disk in disks.values():  # every block has its place on the host, in its page cache
            guest.succeed(f"dd if=/dev/urandom of={disk} bs=1M count={SIZE_MIB} oflag=direct")
        assert ours.server is not None
        servers = {"ours": ours.server.child, "theirs": None}
        for _ in range(turns):
            for figure, workload in zip(figures, IN_A_GUEST, strict=True):
                for side, disk in disks.items():

                    def work(disk: str = disk, workload: Workload = workload) -> tuple[float, int]:
                        done = fio(guest, disk, workload, seconds)
                        return done["iops"], max(1, done["total_ios"])

                    measure(getattr(figure, side), servers[side], work)
        guest.close()
    return figures


def plug_virtio_blk(guest: BootedGuest, image: Path) -> Plugged:
    """QEMU's own disk, on a new raw image."""
    with image.open("wb") as file:
        file.truncate(SIZE_MIB << 20)
    guest.qmp.command("blockdev-add", driver="file", filename=str(image), **{"node-name": "disk"})
    return guest.plug(Device(driver="virtio-blk-pci", properties={"drive": "disk", "serial": "disk"}))


def migrated(folder: Path, turns: int) -> tuple[float, float]:
    """Median seconds of downtime with our disk, and without."""
    found: dict[str, list[float]] = {"with": [], "without": []}
    with Lab("benchmark-migration", folder=folder) as lab:
        pair = lab.hosts()
        bare = lab.boot(host=pair.a, memory=MEMORY)
        disk = f"vhost-user-blk --image {folder}/moved.img:{SIZE_MIB}M"
        guest = lab.boot(disk, migratable=True, host=pair.a, memory=MEMORY, modules=("virtio_blk",))
        for _ in range(turns):
            report = lab.migrate(guest, to=pair.other(guest.host), mode=Mode.NATIVE, plan=Plan())
            if not report.ok or report.downtime is None:
                sys.exit(f"{report.verdict}: {report.reason}")
            found["with"].append(report.downtime)
            found["without"].append(without_device(lab, bare, pair, Tuning())["downtime"])
    return statistics.median(found["with"]), statistics.median(found["without"])


def show(figures: list[Figure]) -> None:
    head = ("workload", "ours/s", "theirs/s", "ratio", "goal", "", "floor", "CPU us", "theirs", "syscalls", "theirs")
    print("{:40}{:>10}{:>10}{:>7}{:>6}{:>8}{:>7}{:>8}{:>8}{:>10}{:>8}".format(*head))
    for figure in figures:
        rates = (statistics.median(side.rates) for side in (figure.ours, figure.theirs))
        costs = (figure.ours.cpu_us, figure.theirs.cpu_us, figure.ours.syscalls, figure.theirs.syscalls)
        told = [f"{statistics.median(each):.2f}" if each else "-" for each in costs]
        verdict = "met" if figure.ratio >= figure.goal else "MISSED"
        floor = "-" if figure.floor_ratio is None else f"{figure.floor_ratio:.2f}"
        print(
            f"{figure.workload:40}{next(rates):10,.0f}{next(rates):10,.0f}{figure.ratio:7.2f}{figure.goal:6.2f}{verdict:>8}"
            f"{floor:>7}{told[0]:>8}{told[1]:>8}{told[2]:>10}{told[3]:>8}",
            flush=True,
        )


@click.command(help=__doc__)
@click.option("--turns", default=5, show_default=True)
@click.option("--seconds", default=2, show_default=True, help="Of each workload.")
@click.option("--only", type=click.Choice(["alone", "guest", "migration"]), help="One of the three.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(turns: int, seconds: int, only: str | None, json_file: Path | None) -> None:
    result: dict[str, object] = {"build": of_servers()}
    print(f"our disk: {result['build']}; load before: {os.getloadavg()[0]:.1f}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="vhu-") as scratch:
        for part, run in (("alone", alone), ("guest", in_a_guest)):
            if only in (None, part):
                (Path(scratch) / part).mkdir()
                done = run(Path(scratch) / part, turns, seconds)
                show(done)
                figures += done
        if only in (None, "migration"):
            (Path(scratch) / "moved").mkdir()
            with_disk, without = migrated(Path(scratch) / "moved", turns)
            most = GOAL_FACTOR * without + GOAL_MORE
            verdict = "met" if with_disk <= most else "MISSED"
            figure = f"downtime {with_disk * 1e3:.1f} ms, without {without * 1e3:.1f} ms"
            print(f"{figure}; goal {most * 1e3:.1f} ms: {verdict}")
            result["downtime"] = {"with": with_disk, "without": without}
    print(f"load after: {os.getloadavg()[0]:.1f}")
    result["workloads"] = [asdict(figure) | {"ratio": figure.ratio} for figure in figures]
    if json_file:
        json_file.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
