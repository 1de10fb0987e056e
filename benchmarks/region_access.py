"""How fast a server answers register accesses, against a peer in the same run.

    python -m benchmarks.region_access [--reference]
    python -m benchmarks.region_access [--server-command 'CMD {socket}'] [--peer-command 'CMD {socket}'] [--json FILE]

A client in C (`region_client.c`, compiled on the spot) does REGION_READ and REGION_WRITE round trips one by one, and
bursts of 64 posted writes that end in a read, on one 4-byte register. Server and peer take turns; the ratio of each
turn is taken by itself, and the median ratio is printed, over 1 where the server is the faster.

With `--reference` the peer is the reference in C: libvfio-user's sample gpio-pci-idio-16, built with -O2 where it is
not there yet (`vfio-user reference`). Without one it is the smallest server that can be written in Python,
`benchmarks.bare_server`: then the ratios say what the device API costs.

Where the kernel puts client and server decides more than either: to wake a process on another core costs several times
what a switch on the same one does, and a server that polls saves only the former. `--cores two` and `--cores one` say
which; a quiet machine with two cores is like `two`, a busy one like `one`.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from vfio_user.harness import c_compiler, reference_program

HERE = Path(__file__).parent
EDU = f"{shlex.quote(sys.executable)} -m vfio_user serve edu --socket-path {{socket}}"
BARE = f"{shlex.quote(sys.executable)} -m benchmarks.bare_server {{socket}}"
REFERENCE_SAMPLE, REFERENCE_REGISTER = "gpio-pci-idio-16", (2, 4)
METRICS = {"read_ns": False, "write_ns": False, "posted_per_second": True}
"""Metric: whether more of it is better."""


def client_command(scratch: Path) -> list[str]:
    """The client to run, compiled into the folder `scratch`."""
    program = scratch / "region_client"
    c_compiler(progress=print).compile(["-O2", "-o", str(program), str(HERE / "region_client.c")], scratch)
    return [str(program)]


def start(command: str, socket: Path, stack: ExitStack) -> int:
    """Start a server and wait until it listens; it ends with the stack. Its process id."""
    return launch(shlex.split(command.replace("{socket}", str(socket))), socket, stack)


def launch(words: list[str], socket: Path, stack: ExitStack) -> int:
    """As `start`, for words in which everything is filled in."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    deadline = time.monotonic() + 10
    while not socket.is_socket():
        if process.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(f"the server did not come up: {shlex.join(words)}")
        time.sleep(0.01)
    return process.pid


def place(servers: list[int], cores: str) -> None:
    """Keep ourselves, and so the client, on one core, and the servers there as well or on another."""
    if cores == "free":
        return
    ours, *others = sorted(os.sched_getaffinity(0))
    if cores == "two" and not others:
        raise click.ClickException("there is only one core")
    os.sched_setaffinity(0, {ours})
    for pid in servers:
        for thread in Path(f"/proc/{pid}/task").iterdir():  # of a process's number it is the first one's alone
            os.sched_setaffinity(int(thread.name), {others[0] if cores == "two" else ours})


def measure(client: list[str], socket: Path, register: tuple[int, int], trips: int, maps: int = 0) -> dict[str, float]:
    """One turn against one server, with so many pages mapped for DMA."""
    numbers = (*register, trips, max(1, trips // 20), maps)
    command = [*client, str(socket), *map(str, numbers)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def ratio(metric: str, server: float, peer: float) -> float:
    """How many times better the server is."""
    return server / peer if METRICS[metric] else peer / server


@click.command(help=__doc__)
@click.option("--server-command", default=EDU, help="Server under test; {socket} is its path. Default: our edu.")
@click.option("--peer-command", default=BARE, help="What to compare with. Default: a bare Python loop.")
@click.option("--reference", is_flag=True, help="Compare with libvfio-user.")
@click.option("--cores", type=click.Choice(["free", "one", "two"]), default="free", show_default=True)
@click.option("--region", default=0, show_default=True)
@click.option("--offset", default=4, show_default=True, help="A 4-byte register that reads and writes freely.")
@click.option("--turns", default=5, show_default=True)
@click.option("--trips", default=10_000, show_default=True, help="Round trips in a turn.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(
    server_command: str,
    peer_command: str,
    reference: bool,
    cores: str,
    region: int,
    offset: int,
    turns: int,
    trips: int,
    json_file: Path | None,
) -> None:
    registers = {"server": (region, offset), "peer": (region, offset)}
    if reference:
        peer_command = f"{shlex.quote(str(reference_program(REFERENCE_SAMPLE, progress=print)))} {{socket}}"
        registers["peer"] = REFERENCE_REGISTER
    results: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfu-")))
        client = client_command(scratch)
        sides = {"server": server_command, "peer": peer_command}
        pids = []
        for side, command in sides.items():
            print(f"{side}: {command}")
            pids.append(start(command, scratch / side, stack))
        place(pids, cores)
        for _ in range(turns):
            turn = {side: measure(client, scratch / side, registers[side], trips) for side in sides}
            results.append(turn)
    summary = {}
    print(f"{'':20}{'server':>14}{'peer':>14}{'times better':>14}{'(min .. max)':>18}")
    for metric in METRICS:
        ratios = [ratio(metric, turn["server"][metric], turn["peer"][metric]) for turn in results]
        server, peer = (statistics.median(turn[side][metric] for turn in results) for side in ("server", "peer"))
        middle = statistics.median(ratios)
        summary[metric] = {"server": server, "peer": peer, "ratio": middle, "ratios": ratios}
        print(f"{metric:20}{server:14,.0f}{peer:14,.0f}{middle:14.2f}{min(ratios):10.2f} .. {max(ratios):.2f}")
    if json_file:
        json_file.write_text(json.dumps({"turns": results, "summary": summary}, indent=2))


if __name__ == "__main__":
    main()
