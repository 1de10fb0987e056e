"""How long a trace takes to be counted and compared, against reading it record by record in the same run.

    python -m benchmarks.traces [--records 1000000] [--json FILE]

The trace is of a driver at work: it writes, is interrupted, reads twice, and acknowledges. Figures are seconds of
processor time for a million records, and their ratio to taking every record apart (`trace show`).

Goals for a million records: counted in 10 s, two compared in 20 s, in less than 500 MiB.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from userdev.relay.direction import Direction
from userdev.trace import TraceWriter
from vfio_user.interposer.trace.files import NAME
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire import layouts as at

RAISE, STATUS, ACKNOWLEDGE = 0x60, 0x24, 0x64
ROUND = ((RAISE, 0x5A, None), (STATUS, None, 0x5A), (ACKNOWLEDGE, 0x5A, None), (STATUS, None, 0))
"""(offset, value written, value read)."""
STALE = 5_000
"""Rounds between two reads that differ, where the trace is to differ."""


@click.command(help=__doc__)
@click.option("--records", default=1_000_000, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(records: int, json_file: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="vfu-") as folder:
        good, stale = Path(folder) / "good.trace", Path(folder) / "stale.trace"
        write(good, records)
        write(stale, records, stale=True)
        commands = {"show": ["show", good], "stats": ["stats", good], "diff": ["diff", good, stale]}
        found = {name: cost([str(word) for word in words]) for name, words in commands.items()}
    figures = {}
    for name, (seconds, size) in found.items():
        a_million = seconds * 1e6 / records
        figures[name] = {"seconds": a_million, "ratio": seconds / found["show"][0], "MiB": size}
        click.echo(f"{name:6} {a_million:6.2f} s, {figures[name]['ratio']:.2f} of show, {size} MiB")
    if json_file is not None:
        json_file.write_text(json.dumps(figures))


def write(path: Path, records: int, *, stale: bool = False) -> None:
    """Write a trace of so many records."""
    trace = TraceWriter(path, NAME, {"dialect": CURRENT.name})
    number = 0
    while trace.records < records:
        number += 1
        for offset, written, read in ROUND:
            command = Command.REGION_READ if written is None else Command.REGION_WRITE
            about = at.REGION_ACCESS.pack(offset, 0, 4)
            data = b"" if written is None else written.to_bytes(4, "little")
            asked = Message(trace.records & 0xFFFF, CURRENT.number(command), payload=about + data)
            request = trace.passed(Direction.TO_SERVER, memoryview(asked.encode()))
            if offset == RAISE:
                trace.note("interrupt", index=2, vector=0, count=1)
            seen = 0x5A if stale and number % STALE == 0 else read
            answer = b"" if seen is None or read is None else seen.to_bytes(4, "little")
            trace.passed(Direction.TO_CLIENT, memoryview(asked.reply(about + answer).encode()), request)
    trace.close()


def cost(words: list[str]) -> tuple[float, int]:
    """Seconds of processor time that a command takes with what it starts, and MiB at most."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vfio_user", "trace", *words], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode in (0, 1), f"{words} ended with {done.returncode} after {time.monotonic() - began:.1f} s"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_maxrss >> 10


if __name__ == "__main__":
    main()
