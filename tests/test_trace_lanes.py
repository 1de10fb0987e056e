"""Lanes of a recorded session's picture: requests that overlap have one each."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.interposer_bench import Bench, answer, read
from tests.test_trace_show import run
from tests.traced import Written


def test_requests_that_overlap_are_in_lanes_beside_each_other(tmp_path: Path) -> None:
    """Trace viewers drop bars of one lane that cross."""
    path = tmp_path / "overlapping.trace"
    with Bench(trace=path) as bench:
        for number in range(3):
            bench.client.send(read(0, 0, id=number))
        asked = [bench.server.receive() for _ in range(3)]
        for request in asked:
            bench.server.send(answer(request, b"abcd"))
            bench.client.receive()
    run("export", path, "--format", "perfetto", "-o", tmp_path / "p")
    events = json.loads((tmp_path / "p").read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    reads = [event for event in events if event["name"].startswith("REGION_READ")]
    assert len({event["tid"] for event in reads}) == 3
    assert {lanes[event["tid"]] for event in reads} == {"client to server"}


def test_requests_that_follow_each_other_at_once_share_a_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.chain(
        [0], ((number + 3) // 2 * 1000 for number in itertools.count())
    )  # a reply when the next request comes
    monkeypatch.setattr("userdev.trace.writer.time.monotonic_ns", lambda: next(times))
    with Written(tmp_path / "t") as trace:
        for _ in range(5):
            trace.read(8, 7)
    run("export", tmp_path / "t", "--format", "perfetto", "-o", tmp_path / "p")
    events = json.loads((tmp_path / "p").read_text())["traceEvents"]
    assert len({event["tid"] for event in events if event["name"].startswith("REGION_READ")}) == 1
