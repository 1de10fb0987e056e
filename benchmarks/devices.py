"""What a device costs its neighbours: 1 to 64 devices in one process, each with a busy client.

    python -m benchmarks.devices [--most 64] [--trips 2000] [--json FILE]

One process serves as many edu devices as are measured; as many clients (`region_client.c`) do register round trips at
once. Printed per count: round trips per second of each device and of all together, and the ratio of all together to
one device alone, which says whether devices get into each other's way (on two cores clients and server share them).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from benchmarks.region_access import client_command

REGISTER = ("0", "4")
"""Region and offset of edu's liveness register."""


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


@click.command(help=__doc__)
@click.option("--most", default=64, show_default=True, help="Devices in the last round; rounds double.")
@click.option("--trips", default=2000, show_default=True, help="Reads and writes of each client.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--serve", "serving", is_flag=True, hidden=True)
@click.argument("sockets", nargs=-1)
def main(most: int, trips: int, json_file: Path | None, serving: bool, sockets: tuple[str, ...]) -> None:
    if serving:
        serve(sockets)
        return
    rounds: dict[int, dict[str, float]] = {}
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
    if json_file:
        json_file.write_text(json.dumps(rounds, indent=2))


if __name__ == "__main__":
    main()
