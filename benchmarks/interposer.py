"""What the interposer costs, against the same server without it in the same run.

    python -m benchmarks.interposer [--server-command 'CMD {socket}'] [--json FILE]

Direct, through the interposer, and through one that writes a trace take turns against one server: round trips of
REGION_READ one by one, and bursts of 64 posted writes that end in a read. Each turn has processes of its own, since
whether one looks or sleeps may depend on how it began. The ratio of each turn is taken by itself; printed are the
median and the worst. Then the server is killed under a client that reads without pause, and the longest time a reply
took is the restart as the client sees it.

A server that writes its own trace (`serve --trace`) is a fourth side, and `benchmarks.bare_relay --look` the fifth: the
least that a hop in Python costs is `floor_ratio`. benchmarks/goals.py has the goals.
"""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.region_access import BARE, EDU, client_command, launch, measure, start
from vfio_user.client import Client
from vfio_user.interposer.control.client import InterposerControl

AROUND_A_KILL = 1.0
"""Seconds that the client reads after each."""
SIDES = ("direct", "tracing", "interposed", "traced", "relayed")
Turn = dict[str, dict[str, float]]
"""What each side took."""
RELAY = f"{shlex.quote(sys.executable)} -m benchmarks.bare_relay {{socket}}"
INTERPOSE = f"{shlex.quote(sys.executable)} -m vfio_user interpose --listen {{socket}}"


@click.command(help=__doc__)
@click.option("--server-command", default=EDU, help="The server; {socket} is its path. Default: our edu.")
@click.option("--bare", is_flag=True, help="A server that only sleeps in recv, in place of edu.")
@click.option("--region", default=0, show_default=True)
@click.option("--offset", default=4, show_default=True, help="A 4-byte register that reads and writes freely.")
@click.option("--turns", default=7, show_default=True)
@click.option("--trips", default=5_000, show_default=True, help="Round trips in a turn.")
@click.option("--restarts", default=5, show_default=True, help="Times that the server is killed.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(
    server_command: str,
    bare: bool,
    region: int,
    offset: int,
    turns: int,
    trips: int,
    restarts: int,
    json_file: Path | None,
) -> None:
    command = BARE if bare else server_command
    with tempfile.TemporaryDirectory(prefix="vfu-") as folder:
        scratch = Path(folder)
        client = client_command(scratch)
        results, traced = [], 0
        for number in range(turns):
            turn = scratch / str(number)
            turn.mkdir()
            results.append(_turn(command, client, turn, (region, offset), trips))
            traced += (turn / "trace").stat().st_size
            shutil.rmtree(turn)
        messages = (trips * 2 + trips // 20 * 66) * 2 * turns
        figures = _summary(results)
        figures["trace_bytes_per_message"] = traced / messages
        figures["restart_s"] = statistics.median(_restarts(command, scratch, (region, offset), restarts))
    _report(figures)
    if json_file:
        json_file.write_text(json.dumps({"turns": results, "summary": figures}, indent=2))


def _turn(command: str, client: list[str], folder: Path, register: tuple[int, int], trips: int) -> Turn:
    """Each side once, in processes that are started for it."""
    with ExitStack() as stack:
        start(command, folder / "direct", stack)
        start(f"{EDU} --trace {folder / 'own.trace'}", folder / "tracing", stack)
        connect = f" --connect {folder / 'direct'}"
        start(INTERPOSE + connect, folder / "interposed", stack)
        start(INTERPOSE + connect + f" --trace {folder / 'trace'}", folder / "traced", stack)
        start(f"{RELAY} {folder / 'direct'} --look", folder / "relayed", stack)
        return {side: measure(client, folder / side, register, trips) for side in SIDES}


def _restarts(command: str, scratch: Path, register: tuple[int, int], times: int) -> list[float]:
    """Seconds that the longest read took around each kill of the server; the client reads without pause."""
    region, offset = register
    front, control = scratch / "kept-alive", scratch / "control"
    with ExitStack() as stack:
        words = [
            sys.executable,
            "-P",
            "-m",
            "vfio_user",
            "interpose",
            "--listen",
            str(front),
            "--control",
            str(control),
        ]
        launch([*words, "--keep-alive", "--server-command", command], front, stack)
        client = stack.enter_context(Client.connect(str(front)))
        controller = stack.enter_context(InterposerControl(control))
        longest = []
        for _ in range(times):
            controller.call("signal", signal="SIGKILL")
            longest.append(0.0)
            over = time.monotonic() + AROUND_A_KILL
            while (began := time.monotonic()) < over:
                client.region_read(region, offset, 4)
                longest[-1] = max(longest[-1], time.monotonic() - began)
        survived = controller.survival()
    if survived["crashes"] != times or survived["failed"]:
        raise click.ClickException(f"the server did not come back each time: {survived}")
    return longest


def _summary(results: list[Turn]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for metric in ("read_ns", "posted_per_second"):
        for side in SIDES:
            figures[f"{side}_{metric}"] = statistics.median(turn[side][metric] for turn in results)
    figures["round_trip_ratio"] = _median_ratio(results, "interposed", "direct", "read_ns")
    figures["trace_ratio"] = _median_ratio(results, "traced", "interposed", "read_ns")
    figures["own_trace_ratio"] = _median_ratio(results, "tracing", "direct", "read_ns")
    figures["floor_ratio"] = _median_ratio(results, "relayed", "direct", "read_ns")
    figures["round_trip_worst"] = max(_ratios(results, "interposed", "direct", "read_ns"))
    figures["trace_worst"] = max(_ratios(results, "traced", "interposed", "read_ns"))
    figures["own_trace_worst"] = max(_ratios(results, "tracing", "direct", "read_ns"))
    figures["posted_trace_ratio"] = _median_ratio(results, "interposed", "traced", "posted_per_second")
    figures["posted_trace_worst"] = max(_ratios(results, "interposed", "traced", "posted_per_second"))
    return figures


def _median_ratio(results: list[Turn], one: str, other: str, metric: str) -> float:
    return statistics.median(_ratios(results, one, other, metric))


def _ratios(results: list[Turn], one: str, other: str, metric: str) -> list[float]:
    return [turn[one][metric] / turn[other][metric] for turn in results]


def _report(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        print(f"{name:32}{value:16,.2f}")


if __name__ == "__main__":
    main()
