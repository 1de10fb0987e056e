"""Lanes of a recorded session's picture: requests that overlap have one each."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.interposer_bench import Bench, answer, read
from tests.test_trace_show import run
from tests.test_trace_show import trace as trace  # a recorded session
from tests.traced import Written
from vfio_user.interposer.trace import read_trace


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


def test_the_picture_has_all_lanes(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "qmp").write_text(
        'noise\n{"event": "RESUME", "timestamp": {"seconds": 1700000000, "microseconds": 5}}\n{"return": {}}\n'
    )
    (tmp_path / "console").write_text("2026-01-01T00:00:00Z booted\nno time here\n1700000000.5 login:\n")
    run("export", trace, "--format", "perfetto", "-o", tmp_path / "p", "--qmp-log", tmp_path / "qmp",
        "--console-log", tmp_path / "console")  # fmt: skip
    events = json.loads((tmp_path / "p").read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    used = [lanes[event["tid"]] for event in events if event["ph"] in "Xi"]
    assert set(used) == set(lanes.values()) - {"server to client"}  # where DMA would be, had it no lane of its own
    assert used.count("QMP") == 1
    assert used.count("console") == 2
    began = read_trace(trace).header.realtime / 1e9
    of = {event["name"]: event["ts"] / 1e6 for event in events if event["ph"] == "i"}
    wanted = {"RESUME": 1700000000.000005, "login:": 1700000000.5, "booted": 1767225600.0}
    for name, moment in wanted.items():
        assert of[name] == pytest.approx(moment - began, abs=0.001), "seconds since the trace began"


def test_a_request_in_the_picture_lasts_until_its_reply(trace: Path, tmp_path: Path) -> None:
    run("export", trace, "--format", "perfetto", "-o", tmp_path / "p")
    events = json.loads((tmp_path / "p").read_text())["traceEvents"]
    reads = [event for event in events if event["name"].startswith("REGION_READ")]
    assert [event["args"].get("value") for event in reads] == [0x12345678, None]
    assert [event["args"]["answer"].get("error") for event in reads] == [None, "EINVAL"]
    assert "DEVICE_SET_IRQS MSIX 0" in {event["name"] for event in events}
    assert len(reads) == 2
    assert all(event["dur"] > 0 for event in reads)
