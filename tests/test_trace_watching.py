"""A trace is counted while it grows: by its interposer's control socket, and on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.interposer_bench import DEADLINE
from tests.test_harness_interposed import interposed
from tests.test_trace_stats import run, stats
from tests.traced import CAUSES, REGISTERS, Written
from userdev.errors import UserError
from userdev.trace.stats import Stats, report
from userdev.trace.view import opened
from vfio_user.cli import _console, cli
from vfio_user.cli._trace_stats import FINDINGS, ROWS, _drawn, traced_file
from vfio_user.client import Client
from vfio_user.traces import PROTOCOLS, shown_by


def test_the_trace_of_a_running_interposer_is_counted_by_its_control_socket(tmp_path: Path) -> None:
    with interposed(tmp_path, trace=True) as server, Client.connect(str(server.path)) as client:
        client.store(0, 4, 4, 1)
        counted = stats(server.interposer.control_path)
        [row] = counted["registers"]
        assert (row["register"], row["writes"]) == ("liveness", 1)
        assert counted["file"] == str(tmp_path / "device.trace")


def test_an_interposer_that_records_nothing_says_how_it_would(tmp_path: Path) -> None:
    with interposed(tmp_path) as server, pytest.raises(UserError) as refused:
        run(server.interposer.control_path)
    assert "--trace" in refused.value.hint


def test_what_an_interposer_records_is_a_file_or_there_is_a_word_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Control:
        def __init__(self, path: Path) -> None:
            self.closed = False

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            closed.append(self)

        def call(self, command: str) -> dict[str, object]:
            return {"trace": recorded} if recorded is not None else {}

    monkeypatch.setattr("userdev.control.client.ControlClient", Control)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        for recorded, told in (
            (None, "records nothing"),
            ({"file": "fd:7"}, "descriptor"),
            ({"file": "fd:12"}, "descriptor"),
            ({"file": "/tmp/fd:7"}, ""),
            ({"file": "t"}, ""),
        ):
            closed: list[object] = []
            with pytest.raises(UserError, match=told) if told else nullcontext():
                assert traced_file(tmp_path / "s") == Path(recorded["file"] if recorded else "")
            assert len(closed) == 1, recorded
    assert traced_file(tmp_path / "t") == tmp_path / "t"


def test_what_came_last_is_told_once_nobody_watches_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.read(CAUSES, 0x11)
        trace.writer.flush()

        def enough(_: float) -> None:
            raise KeyboardInterrupt

        shown = StringIO()
        terminal = Console(file=shown, force_terminal=True, width=150)
        monkeypatch.setattr("vfio_user.cli._trace_stats.time", SimpleNamespace(sleep=enough))
        monkeypatch.setattr(_console, "drawing_console", lambda: terminal)
        done = CliRunner().invoke(cli, ["trace", "stats", str(tmp_path / "t"), "--watch"])
    assert done.exit_code == 0, done.output
    before, gone, behind = shown.getvalue().rpartition("\x1b[?1049l")
    assert gone, "what was drawn is gone with the terminal's second screen"
    assert "causes" in before
    assert "causes" in behind


def test_what_came_last_is_in_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.read(CAUSES, 0x11)
        trace.writer.flush()

        def enough(_: float) -> None:
            raise KeyboardInterrupt

        shown = StringIO()
        monkeypatch.setattr("vfio_user.cli._trace_stats.time", SimpleNamespace(sleep=enough))
        monkeypatch.setattr(_console, "drawing_console", lambda: Console(file=shown, width=150))
        done = CliRunner().invoke(cli, ["trace", "stats", str(tmp_path / "t"), "--watch"])
    assert done.exit_code == 0, done.output
    assert shown.getvalue().count("causes") == 1, shown.getvalue()


def test_all_rows_and_all_that_is_odd_are_drawn_for_who_wants_all(tmp_path: Path) -> None:
    places = range(0x100, 0x200, 4)
    with Written(tmp_path / "t") as trace:
        for place in places:
            for _ in range(20):
                trace.read(place, None, errno=5)
    with opened(tmp_path / "t", *PROTOCOLS) as reader:
        counted = Stats(reader, shown_by(reader.header, None).reading())
        counted.take()
        found = report(counted)
    for most, rows, odd in ((ROWS, ROWS, FINDINGS), (None, len(places), len(places))):
        shown = StringIO()
        Console(file=shown, width=200).print(_drawn(found, most))
        drawn = [line for line in shown.getvalue().splitlines() if line.strip().startswith("BAR0+0x")]
        assert len(drawn) == rows, most
        assert shown.getvalue().count("was answered with") == odd, most


def test_a_growing_trace_is_watched_in_a_terminal_until_it_is_enough(tmp_path: Path) -> None:
    near, far = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "vfio_user",
        "trace",
        "stats",
        str(tmp_path / "t"),
        "--watch",
        "--interval",
        "0.05",
    ]
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.read(CAUSES, 0x11)
        trace.writer.flush()
        size = {**os.environ, "COLUMNS": "150", "LINES": "50", "TERM": "xterm"}
        watching = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, env=size)
        os.close(far)
        try:
            await_shown(near, b"0x11")
            trace.read(CAUSES, 0x22)
            trace.writer.flush()
            await_shown(near, b"0x22")
            watching.send_signal(signal.SIGINT)
            await_shown(near, None)  # it would wait for somebody who reads the rest
            assert watching.wait(DEADLINE) == 0
        finally:
            watching.kill()
            watching.wait()
            os.close(near)


def await_shown(terminal: int, wanted: bytes | None) -> None:
    """Read what a program draws until it has drawn this; None: until it has ended."""
    drawn = b""
    end = time.monotonic() + DEADLINE
    while wanted is None or wanted not in drawn:
        assert select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0], drawn[-2000:]
        try:
            drawn += os.read(terminal, 1 << 16)
        except OSError:  # EIO: nobody has the terminal any more
            assert wanted is None, drawn[-2000:]
            return
