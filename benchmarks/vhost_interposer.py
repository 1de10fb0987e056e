"""What the interposer costs a vhost-user session, against the same back-end without it in the same run.

    python -m benchmarks.vhost_interposer [--turns N] [--trips N] [--json FILE]

Direct, through the interposer, and through one that writes a trace take turns: round trips of GET_FEATURES on the
connection, and requests of 4 bytes in a ring of `vhost-user serve rng`, one at a time. The ratio of each turn is taken
by itself and the median printed.

Goals: a round trip <= 4 times the direct one, a trace <= 50 % more, a request in a ring as without (0.9 to 1.1 times).
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.region_access import start
from vhost_user.frontend import FrontEnd
from vhost_user.wire import HEADER_SIZE, FrontEndRequest, encode_request

VHOST_USER = f"{shlex.quote(sys.executable)} -P -m vhost_user"
RNG = f"{VHOST_USER} serve rng --socket-path {{socket}}"
SIDES = ("direct", "interposed", "traced")
ASKED = encode_request(FrontEndRequest.GET_FEATURES).encode()
ANSWERED = HEADER_SIZE + 8
"""Bytes of the reply to GET_FEATURES."""


@click.command(help=__doc__)
@click.option("--turns", default=7, show_default=True)
@click.option("--trips", default=3_000, show_default=True, help="Round trips, and requests, in a turn.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
def main(turns: int, trips: int, json_file: Path | None) -> None:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfu-")))
        for side in SIDES:  # a back-end serves one front-end at a time
            start(RNG, scratch / f"{side}.rng", stack)
        for side, trace in (("interposed", ""), ("traced", f" --trace {scratch / 'trace'}")):
            command = f"{VHOST_USER} interpose --listen {{socket}} --connect {scratch / f'{side}.rng'}{trace}"
            start(command, scratch / side, stack)
        paths = {side: scratch / (side if side != "direct" else "direct.rng") for side in SIDES}
        clients = {side: _Client(stack.enter_context(FrontEnd(str(path)))) for side, path in paths.items()}
        results = [{side: client.measure(trips) for side, client in clients.items()} for _ in range(turns)]
    figures = _summary(results)
    for name, value in figures.items():
        print(f"{name:32}{value:16,.2f}")
    if json_file:
        json_file.write_text(json.dumps({"turns": results, "summary": figures}, indent=2))


class _Client:
    """A front-end whose first queue runs."""

    def __init__(self, front_end: FrontEnd) -> None:
        front_end.negotiate()
        front_end.share_memory()
        self._socket = front_end.stream.socket
        self._queue = front_end.queue()
        self._queue.start()

    def measure(self, trips: int) -> dict[str, float]:
        """Nanoseconds of a round trip, and of a request in the ring."""
        self._socket.settimeout(60)
        return {"round_trip_ns": _timed(self._ask, trips), "request_ns": _timed(self._use, trips // 5)}

    def _ask(self) -> None:
        self._socket.sendall(ASKED)
        if len(self._socket.recv(ANSWERED)) != ANSWERED:
            raise click.ClickException("the back-end has closed its connection")

    def _use(self) -> None:
        self._queue.exchange(4)


def _timed(do: Callable[[], None], times: int) -> float:
    began = time.perf_counter_ns()
    for _ in range(times):
        do()
    return (time.perf_counter_ns() - began) / times


def _summary(results: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    figures = {
        f"{side}_{metric}": statistics.median(turn[side][metric] for turn in results)
        for metric in ("round_trip_ns", "request_ns")
        for side in SIDES
    }
    pairs = (("round_trip", "interposed", "direct"), ("trace", "traced", "interposed"))
    for name, one, other in pairs:
        ratios = [turn[one]["round_trip_ns"] / turn[other]["round_trip_ns"] for turn in results]
        figures[f"{name}_ratio"] = statistics.median(ratios)
    figures["request_ratio"] = statistics.median(
        turn["interposed"]["request_ns"] / turn["direct"]["request_ns"] for turn in results
    )
    return figures


if __name__ == "__main__":
    main()
