"""What a device costs its neighbours: 1 to 64 devices in one process, each with a busy client.

    python -m benchmarks.devices [--most 64] [--trips 2000] [--turns 5] [--json FILE]

One process serves as many edu devices as are measured; as many clients (`region_client.c`) do register round trips at
once. Printed per count: round trips per second of each device and of all together, and the ratio of all together to
one device alone, which says whether devices get into each other's way (on two cores clients and server share them).

Then one client alone, in turn: with one device; with one of as many whose clients are silent; and with one device and
65,535 pages mapped for DMA. Printed is how much longer a register's round trip takes then, server and client on a core
each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from benchmarks import region_access as regions
from benchmarks.region_access import client_command
from vfio_user.client import Client

REGISTER = ("0", "4")
"""Region and offset of edu's liveness register."""
MAPS = 65_535


@contextmanager
def devices(count: int, scratch: Path) -> Iterator[list[Path]]:
    """Sockets of `count` devices in one process, which ends with the block."""
    sockets = [scratch / f"{count}-{number}" for number in range(count)]
    command = [sys.executable, "-m", "benchmarks.devices", "--serve", *map(str, sockets)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()  # the word that all of them listen
    try:
        yield sockets
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def serve(paths: tuple[str, ...]) -> None:
    """Serve until standard input ends."""
    from userdev_servers.edu import Edu
    from vfio_user.server import Server

    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(Server(Edu(), path))
        print("listening", flush=True)
        sys.stdin.read()


def measure(client: list[str], sockets: list[Path], trips: int) -> list[float]:
    """Round trips per second of each device, all busy at once."""
    commands = [[*client, str(socket), *REGISTER, str(trips), "1"] for socket in sockets]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    figures = [json.loads(process.communicate()[0]) for process in running]
    return [figure["trips_per_second"] for figure in figures]


def measure_flatness(client: list[str], scratch: Path, most: int, trips: int, turns: int) -> dict[str, float]:
    """How many times as long a read and a write take as with one device and nothing mapped: medians of the turns."""
    first, *others = sorted(os.sched_getaffinity(0))
    register = (int(REGISTER[0]), int(REGISTER[1]))
    with ExitStack() as stack:
        os.sched_setaffinity(0, {others[-1] if others else first})
        alone, crowd = [stack.enter_context(devices(count, scratch)) for count in (1, most)]
        os.sched_setaffinity(0, {first})
        stack.callback(os.sched_setaffinity, 0, {first, *others})
        for socket in crowd[1:]:
            stack.enter_context(Client.connect(str(socket)))
        sides = {"alone": (alone[0], 0), "crowd": (crowd[0], 0), "maps": (alone[0], MAPS)}
        found = [
            {side: regions.measure(client, socket, register, trips, maps) for side, (socket, maps) in sides.items()}
            for _ in range(turns)
        ]
    return {
        f"{side}_{metric}": statistics.median(turn[side][metric] / turn["alone"][metric] for turn in found)
        for side in ("crowd", "maps")
        for metric in ("read_ns", "write_ns")
    }


@click.command(help=__doc__)
@click.option("--most", default=64, show_default=True, help="Devices in the last round; rounds double.")
@click.option("--trips", default=2000, show_default=True, help="Reads and writes of each client.")
@click.option("--turns", default=5, show_default=True, help="Turns of one client alone.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--serve", "serving", is_flag=True, hidden=True)
@click.argument("sockets", nargs=-1)
def main(most: int, trips: int, turns: int, json_file: Path | None, serving: bool, sockets: tuple[str, ...]) -> None:
    if serving:
        serve(sockets)
        return
    rounds: dict[int | str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="vfu-") as scratch:
        client = client_command(Path(scratch))
        print(f"{'devices':>8}{'each/s':>12}{'slowest/s':>12}{'all/s':>12}{'all : one alone':>18}")
        count = 1
        while count <= most:
            with devices(count, Path(scratch)) as paths:
                rates = measure(client, paths, trips)
            rounds[count] = {"each": statistics.median(rates), "slowest": min(rates), "all": sum(rates)}
            ratio = rounds[count]["all"] / rounds[1]["all"]
            print(f"{count:8}{statistics.median(rates):12,.0f}{min(rates):12,.0f}{sum(rates):12,.0f}{ratio:18.2f}")
            count *= 2
        rounds["flat"] = measure_flatness(client, Path(scratch), most, trips, turns)
    for name, times in rounds["flat"].items():
        print(f"{name:20}{times:8.2f} times as long")
    if json_file:
        json_file.write_text(json.dumps(rounds, indent=2))


if __name__ == "__main__":
    main()
