"""What a server is as a program: its memory after a client, and how soon it listens; and what all checks take.

    python -m benchmarks.server_process [--rounds N] [--json FILE]

Memory is what is resident (RSS), and what of it the process has for itself alone (USS). Beside ours stand a Python
that does nothing, one that listens and has loaded what of the standard library a server needs, which is the floor of
any server in Python, and a sample of libvfio-user, which is in C, after a client that does the same. Modules are
compiled, as in any installation, whatever PYTHONDONTWRITEBYTECODE says. Goals: 14 MiB for
`vfio-user serve edu`, 40 MiB for 64 devices in one process, 60 ms from the start until a client can connect, 0.6 s for
`vfio-user conformance`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX
from socket import socket as Endpoint

import click
import psutil

from benchmarks.devices import devices
from userdev.process import await_listening
from vfio_user.client import Client, GuestMemory
from vfio_user.harness import Child, reference_program
from vfio_user.wire import CURRENT, Capabilities, Command, Message, encode_version
from vfio_user.wire import layouts as at

START_SECONDS = 20.0
DEVICES = 64
MIB = 1 << 20
FLOOR = """\
import array, bisect, contextlib, dataclasses, enum, heapq, json, logging, mmap, select, signal, socket, struct, sys
import threading, typing, zlib
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
threading.Thread(target=listener.accept, daemon=True).start()
signal.pause()
"""
"""A server that has nothing of ours."""
CONNECTIONS, ANSWERS = 460, 8
"""What all checks make, and wait for in each in the middle, of 9,600 questions of which most are asked at once."""
REGISTERS = {"edu": (0, 4), "sample": (2, 4)}
"""Region, and offset of a register of four bytes."""


@contextmanager
def served(argv: list[str], socket: Path) -> Iterator[tuple[Child, float]]:
    """A server that listens, and the milliseconds until it did."""
    began = time.perf_counter()
    child = Child(socket.name, argv, log=socket.with_suffix(".log"))
    try:
        if not await_listening(socket, child.end, START_SECONDS):
            raise click.ClickException(f"{argv[0]} does not listen: {child.last_words()}")
        yield child, (time.perf_counter() - began) * 1e3
    finally:
        child.stop()


def use(socket: Path, register: tuple[int, int]) -> None:
    """Do what a driver does first."""
    with GuestMemory(MIB) as memory, Client.connect(str(socket)) as client:
        client.dma_map(0, memory)
        for _ in range(100):
            client.load(*register, 4)


def after_a_client(argv: list[str], socket: Path) -> tuple[float, float, float]:
    """MiB resident and MiB of its own after a client has looked at all that there is; milliseconds to listen."""
    with served(argv, socket) as (child, milliseconds):
        use(socket, REGISTERS["sample" if "gpio" in argv[0] else "edu"])
        memory = psutil.Process(child.pid).memory_full_info()
        return memory.rss / MIB, memory.uss / MIB, milliseconds


def of_floor(socket: Path) -> tuple[float, float]:
    """MiB resident of `FLOOR`, and the milliseconds until it listens."""
    with served([sys.executable, "-P", "-c", FLOOR, str(socket)], socket) as (child, milliseconds):
        return psutil.Process(child.pid).memory_info().rss / MIB, milliseconds


def of_nothing() -> float:
    """MiB resident of an interpreter that does nothing: what is there before anything of ours."""
    command = [sys.executable, "-P", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
        assert idle.stdout is not None
        idle.stdout.readline()
        found = psutil.Process(idle.pid).memory_info().rss / MIB
        idle.communicate()
    return float(found)


def of_devices(count: int, folder: Path) -> float:
    """MiB resident of a process with so many devices, each of which had a client."""
    with devices(count, folder) as sockets:
        for socket in sockets:
            use(socket, REGISTERS["edu"])
        (server,) = [child for child in psutil.Process().children() if "--serve" in child.cmdline()]
        return float(server.memory_info().rss) / MIB


def conformance(socket: Path) -> float:
    """Seconds that all checks take, as a command."""
    began = time.perf_counter()
    command = [sys.executable, "-P", "-m", "vfio_user", "conformance", str(socket)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def least_conformance(socket: Path) -> float:
    """Seconds that so many connections and answers of `benchmarks.bare_server` take whose client asks and waits."""
    propose = Message(1, CURRENT.number(Command.VERSION), payload=encode_version(CURRENT, 0, Capabilities())).encode()
    read = Message(2, CURRENT.number(Command.REGION_READ), payload=at.REGION_ACCESS.pack(0, 0, 4)).encode()
    began = time.perf_counter()
    for _ in range(CONNECTIONS):
        with Endpoint(AF_UNIX) as client:
            client.connect(str(socket))
            for asked in (propose, *[read] * ANSWERS):
                client.sendall(asked)
                client.recv(4096)
    return time.perf_counter() - began


@click.command(help=__doc__)
@click.option("--rounds", default=9, show_default=True, help="Of each; medians count.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(rounds: int, json_file: Path | None) -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    edu = [sys.executable, "-P", "-m", "vfio_user", "serve", "edu", "--socket-path"]
    with tempfile.TemporaryDirectory(prefix="vfu-") as scratch:
        folder = Path(scratch)
        ours = [after_a_client([*edu, str(folder / f"edu{turn}")], folder / f"edu{turn}") for turn in range(rounds)]
        floor = [of_floor(folder / f"floor{turn}") for turn in range(rounds)]
        sample = str(reference_program("gpio-pci-idio-16", progress=print))
        theirs = after_a_client([sample, str(folder / "sample")], folder / "sample")
        with served([*edu, str(folder / "checked")], folder / "checked"):
            spent = [conformance(folder / "checked") for _ in range(rounds)]
        bare = [sys.executable, "-m", "benchmarks.bare_server", str(folder / "bare")]
        with served(bare, folder / "bare"):
            least = [least_conformance(folder / "bare") for _ in range(rounds)]
        figures = {
            "edu_mib": statistics.median(each[0] for each in ours),
            "edu_own_mib": statistics.median(each[1] for each in ours),
            "sample_mib": theirs[0],
            "interpreter_mib": of_nothing(),
            "floor_mib": statistics.median(each[0] for each in floor),
            "floor_ms": statistics.median(each[1] for each in floor),
            "devices_mib": of_devices(DEVICES, folder),
            "listening_ms": statistics.median(each[2] for each in ours),
            "conformance_s": statistics.median(spent),
            "conformance_floor_s": statistics.median(least),
        }
    for name, value in figures.items():
        print(f"{name:20}{value:10.2f}")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
