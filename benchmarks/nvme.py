"""What our NVMe controller is worth to a guest, beside QEMU's own, and what it costs the host.

    python -m benchmarks.nvme [--turns N] [--seconds S] [--growth] [--doorbells] [--json FILE]

One guest has both controllers, each on a raw file of the same size in the same folder. fio does a workload on one and
on the other in turn; the ratio of each turn is taken by itself, and the median printed, with the CPU time and the
system calls that our server needs for a command (system calls by perf, where there is one). `--growth` adds 1, 2 and 4
queue pairs, in guests of as many processors, and 1 and 4 devices that are busy at once, with the CPU time that QEMU and
all servers need for a command, how often servers sleep for one, and how much of its time the guest's processor has
work, and no core to do it. `--doorbells` compares the ways in which a guest may ring, each a device of its own in one
guest: the best of their turns, as a ratio to the default's (what else runs on the host only takes away), with CPU time
and register accesses for a command, and the CPU time of a device that has nothing to do.

Goals: >= 1.0 of QEMU's at 128 KiB, >= 0.9 at 4 KiB and 32 commands at a time, >= 0.7 one at a time.

Four devices are no faster than one, and on two cores slower (24.6k and 22k commands a second on a quiet machine; 19k
and 12k on a busy one). The guest's one processor is what all commands come from. With one device it and the server have
a core each, and the guest's processor waits for one 3 % of the time. With four there are six threads for two cores: it
waits 25 % of the time, QEMU's main loop 22 %, each server 20 %. A server that has only a quarter of the commands sleeps
more often: all together 0.7 times a command instead of 0.1, which costs 33 us of CPU instead of 20.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil

from avocado_tests.nvme_test import block_device, fio_command
from avocado_tests.test_differential import plug_qemu_nvme
from userdev.control import ControlClient
from vfio_user.harness import BootedGuest, Lab, Plugged

SIZE_MIB = 64


@dataclass(frozen=True)
class Workload:
    name: str
    way: str
    block: str
    depth: int
    goal: float

    def options(self, seconds: int) -> dict[str, object]:
        return {"rw": self.way, "bs": self.block, "iodepth": self.depth, "time_based": 1, "runtime": seconds}


WORKLOADS = (
    Workload("4 KiB random read, 1 at a time", "randread", "4k", 1, 0.7),
    Workload("4 KiB random write, 1 at a time", "randwrite", "4k", 1, 0.7),
    Workload("4 KiB random read, 32 at a time", "randread", "4k", 32, 0.9),
    Workload("4 KiB random write, 32 at a time", "randwrite", "4k", 32, 0.9),
    Workload("128 KiB sequential read", "read", "128k", 8, 1.0),
    Workload("128 KiB sequential write", "write", "128k", 8, 1.0),
)
BUSY = WORKLOADS[2]
DOORBELLS = {
    "shadow (default)": "",
    "mapped": "--map-doorbells memfd",
    "mapped and shadow": "--map-doorbells memfd --shadow-doorbells yes",
    "registers": "--shadow-doorbells no",
}
IDLE_SECONDS = 4


@dataclass
class Cost:
    """What a server needed for a number of commands."""

    commands: int = 0
    cpu_us: float = 0.0
    syscalls: float | None = None


@dataclass
class Figure:
    """Commands per second of each turn, and what ours cost in all of them."""

    workload: str
    goal: float
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(mine / other for mine, other in zip(self.ours, self.theirs, strict=True))


@dataclass(frozen=True)
class Rung:
    """Commands per second; what one cost: the server's CPU time, and doorbells that came as messages."""

    iops: float
    cpu_us: float = 0.0
    messages: float = 0.0


@click.command(help=__doc__)
@click.option("--turns", default=5, show_default=True)
@click.option("--seconds", default=2, show_default=True, help="Of each fio job.")
@click.option("--growth", is_flag=True, help="Also with more queue pairs and devices; boots three more guests.")
@click.option("--doorbells", is_flag=True, help="Also with each way to ring; boots one more guest.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(turns: int, seconds: int, growth: bool, doorbells: bool, json_file: Path | None) -> None:
    print(f"load before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="vfu-") as scratch, Lab("benchmark", folder=Path(scratch)) as lab:
        figures = side_by_side(lab, Path(scratch), turns, seconds)
        report(figures)
        result: dict[str, Any] = {"workloads": [asdict(figure) | {"ratio": figure.ratio} for figure in figures]}
        if growth:
            result |= {
                "queue pairs": grow_queues(lab, Path(scratch), seconds),
                "devices": grow_devices(lab, Path(scratch), seconds),
            }
        if doorbells:
            result["doorbells"] = compare_doorbells(lab, Path(scratch), turns, seconds)
    print(f"load after: {os.getloadavg()[0]:.1f}")
    if json_file:
        json_file.write_text(json.dumps(result, indent=2, default=asdict))


def side_by_side(lab: Lab, folder: Path, turns: int, seconds: int) -> list[Figure]:
    guest = lab.boot(image="storage")
    guest.succeed("modprobe nvme")
    ours = plug_ours(guest, folder / "ours.img")
    theirs = plug_qemu_nvme(guest, folder / "theirs.img", SIZE_MIB << 20)
    disks = [block_device(guest, plugged=each) for each in (ours, theirs)]
    for disk in disks:  # every block has its place on the host, in its page cache
        guest.succeed(f"dd if=/dev/urandom of={disk} bs=1M count={SIZE_MIB} oflag=direct")
    figures = [Figure(workload.name, workload.goal) for workload in WORKLOADS]
    for _ in range(turns):
        for figure, workload in zip(figures, WORKLOADS, strict=True):
            with cost_of(ours) as cost:
                done = fio(guest, disks[0], workload, seconds)
                cost.commands = done["total_ios"]
            figure.ours.append(done["iops"])
            figure.theirs.append(fio(guest, disks[1], workload, seconds)["iops"])
            figure.costs.append(cost)
    guest.close()
    return figures


def grow_queues(lab: Lab, folder: Path, seconds: int) -> dict[int, float]:
    """Commands per second with so many queue pairs, a processor and a job each."""
    found = {}
    print(f"\n{'queue pairs':24}{'commands/s':>12}")
    for count in (1, 2, 4):
        guest = lab.boot(image="storage", cpus=count)
        guest.succeed("modprobe nvme")
        ours = plug_ours(guest, folder / f"queues{count}.img", f"--queues {count}")
        disk = block_device(guest, plugged=ours)
        found[count] = fio(guest, disk, BUSY, seconds, numjobs=count)["iops"]
        print(f"{count:<24}{found[count]:12,.0f}")
        guest.close()
    return found


def grow_devices(lab: Lab, folder: Path, seconds: int) -> dict[int, float]:
    """Commands per second of all devices together."""
    found = {}
    print(f"\n{'devices':24}{'commands/s':>12}{'QEMU us':>10}{'servers us':>12}{'sleeps':>9}{'waits':>8}")
    guest = lab.boot(image="storage")
    guest.succeed("modprobe nvme")
    qemu = psutil.Process(guest.machine.child.pid)
    processor = guest.qmp.command("query-cpus-fast")[0]["thread-id"]
    servers: list[psutil.Process] = []
    disks: list[str] = []
    for count in (1, 4):
        while len(disks) < count:
            ours = plug_ours(guest, folder / f"device{len(disks)}.img")
            assert ours.server is not None
            servers.append(psutil.Process(ours.server.child.pid))
            disks.append(block_device(guest, plugged=ours))
        figures: tuple[Callable[[], float], ...] = (
            lambda: cpu_us(qemu),
            lambda: sum(map(cpu_us, servers)),
            lambda: sum(map(sleeps, servers)),
            lambda: waited_us(qemu.pid, processor),
        )
        before, began = [figure() for figure in figures], time.monotonic()
        done = fio(guest, ":".join(disks), BUSY, seconds)
        spent = [figure() - earlier for figure, earlier in zip(figures, before, strict=True)]
        waits = spent.pop() / 1e6 / (time.monotonic() - began)
        each = [figure / max(1, done["total_ios"]) for figure in spent]
        found[count] = done["iops"]
        print(f"{count:<24}{found[count]:12,.0f}{each[0]:10.1f}{each[1]:12.1f}{each[2]:9.2f}{waits:8.0%}")
    guest.close()
    return found


def compare_doorbells(lab: Lab, folder: Path, turns: int, seconds: int) -> dict[str, dict[str, list[Rung]]]:
    """What each way to ring is worth, and QEMU's controller: figures of every turn, by workload and way."""
    guest = lab.boot(image="storage")
    guest.succeed("modprobe nvme")
    ways = {
        name: plug_ours(guest, folder / f"rung{number}.img", f"--control {folder}/rung{number} {options}")
        for number, (name, options) in enumerate(DOORBELLS.items())
    }
    ways["QEMU's"] = plug_qemu_nvme(guest, folder / "rung.img", SIZE_MIB << 20)
    controls = {name: ControlClient(folder / f"rung{number}") for number, name in enumerate(DOORBELLS)}
    disks = {name: block_device(guest, plugged=plugged) for name, plugged in ways.items()}
    for disk in disks.values():
        guest.succeed(f"dd if=/dev/urandom of={disk} bs=1M count={SIZE_MIB} oflag=direct")
    found: dict[str, dict[str, list[Rung]]] = {each.name: {name: [] for name in ways} for each in WORKLOADS}
    for _ in range(turns):
        for workload in WORKLOADS:
            for name, plugged in ways.items():
                ring = partial(fio, guest, disks[name], workload, seconds)
                found[workload.name][name].append(rung(ring, plugged, controls.get(name)))
    idle = {}
    time.sleep(1)  # the drivers' own timers
    for name in DOORBELLS:
        server = ways[name].server
        assert server is not None
        process = psutil.Process(server.child.pid)
        before = cpu_us(process)
        time.sleep(IDLE_SECONDS)
        idle[name] = (cpu_us(process) - before) / IDLE_SECONDS / 1e6
    for control in controls.values():
        control.close()
    guest.close()
    report_doorbells(found, idle)
    return found


def rung(fio: Callable[[], dict[str, Any]], plugged: Plugged, control: ControlClient | None) -> Rung:
    """A workload's figure, and what each of its commands cost."""
    if control is None or plugged.server is None:
        return Rung(fio()["iops"])
    process = psutil.Process(plugged.server.child.pid)
    cpu, messages = cpu_us(process), control.call("doorbells")["messages"]
    done = fio()
    commands = max(1, done["total_ios"])
    cpu, messages = cpu_us(process) - cpu, control.call("doorbells")["messages"] - messages
    return Rung(done["iops"], cpu / commands, messages / commands)


def report_doorbells(found: dict[str, dict[str, list[Rung]]], idle: dict[str, float]) -> None:
    """The best turn of each way, and medians of what commands cost."""
    print(
        "\n{:36}{:20}{:>10}{:>12}{:>9}{:>11}".format("workload", "rung by", "best/s", ": default", "CPU us", "messages")
    )
    for workload, ways in found.items():
        best = {name: max(turn.iops for turn in turns) for name, turns in ways.items()}
        for name, turns in ways.items():
            cpu = statistics.median(turn.cpu_us for turn in turns)
            messages = statistics.median(turn.messages for turn in turns)
            ratio = best[name] / best[next(iter(DOORBELLS))]
            print(f"{workload:36}{name:20}{best[name]:10,.0f}{ratio:12.2f}{cpu:9.1f}{messages:11.3f}")
    for name, share in idle.items():
        print(f"{'idle':36}{name:20}{share:22.2%}")


def cpu_us(process: psutil.Process) -> float:
    """Microseconds of CPU time that it has needed."""
    times = process.cpu_times()
    return (times.user + times.system) * 1e6


def sleeps(process: psutil.Process) -> int:
    """How often its threads have given up the processor by themselves."""
    return sum(psutil.Process(thread.id).num_ctx_switches().voluntary for thread in process.threads())


def waited_us(pid: int, thread: int) -> float:
    """Microseconds that a thread could have run in, had there been a core (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1]) / 1e3


def plug_ours(guest: BootedGuest, image: Path, options: str = "") -> Plugged:
    return guest.plug(f"nvme --image {image}:{SIZE_MIB}M {options}")


def fio(guest: BootedGuest, target: str, workload: Workload, seconds: int, **more: object) -> dict[str, Any]:
    """The figures of what a workload did, all its jobs together."""
    output = guest.succeed(fio_command(target, **workload.options(seconds), **more), timeout=seconds + 30)
    job = json.loads(output[output.index("{") :])["jobs"][0]
    figures: dict[str, Any] = job["write" if "write" in workload.way else "read"]
    return figures


@contextmanager
def cost_of(plugged: Plugged) -> Iterator[Cost]:
    """CPU time and system calls of a device's server in the block, per command, whose number is told in it."""
    assert plugged.server is not None
    process, cost = psutil.Process(plugged.server.child.pid), Cost()
    before = cpu_us(process)
    with counting_syscalls(process.pid) as count:
        yield cost
    after = cpu_us(process)
    cost.cpu_us = (after - before) / max(1, cost.commands)
    cost.syscalls = count[0] / max(1, cost.commands) if count else None


@contextmanager
def counting_syscalls(pid: int) -> Iterator[list[int]]:
    """How many system calls a process made in the block; empty where perf cannot tell."""
    count: list[int] = []
    perf = shutil.which("perf")
    if perf is None:
        yield count
        return
    command = [perf, "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", str(pid)]
    counter = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield count
    finally:
        counter.send_signal(2)
        _, said = counter.communicate()
        number = said.strip().splitlines()[-1].split(",")[0] if said.strip() else ""
        if number.isdigit():
            count.append(int(number))


def report(figures: list[Figure]) -> None:
    head = ("workload", "ours/s", "QEMU's/s", "ours : QEMU's", "goal", "", "CPU us", "syscalls")
    print("{:36}{:>10}{:>10}{:>15}{:>7}{:>8}{:>9}{:>10}".format(*head))
    for figure in figures:
        cpu = statistics.median(cost.cpu_us for cost in figure.costs)
        calls = [cost.syscalls for cost in figure.costs if cost.syscalls is not None]
        told = f"{statistics.median(calls):.2f}" if calls else "-"
        verdict = "met" if figure.ratio >= figure.goal else "MISSED"
        print(
            f"{figure.workload:36}{statistics.median(figure.ours):10,.0f}{statistics.median(figure.theirs):10,.0f}"
            f"{figure.ratio:15.2f}{figure.goal:7.1f}{verdict:>8}{cpu:9.1f}{told:>10}"
        )


if __name__ == "__main__":
    main()
