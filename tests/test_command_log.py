"""What a guest ran is written down with its outcome, whichever that was."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from userdev.errors import UserError
from vfio_user.harness.command_log import CommandLog
from vfio_user.harness.log import LogFile

LONG = 4096

OUTCOMES: tuple[tuple[dict[str, Any] | Exception, dict[str, Any]], ...] = (
    ({"ok": {"exit_code": 0, "stdout": b"", "stderr": b""}}, {}),
    ({"ok": {"exit_code": 0, "stdout": b"said", "stderr": b""}}, {"stdout": "said"}),
    ({"ok": {"exit_code": 3, "stdout": b"", "stderr": b"why"}}, {"exit_code": 3, "stderr": "why"}),
    (
        {"ok": {"exit_code": 3, "stdout": b"said", "stderr": b"why"}},
        {"exit_code": 3, "stdout": "said", "stderr": "why"},
    ),
    (
        {"ok": {"exit_code": -9, "timed_out": True, "stdout": b"\xff"}},
        {"exit_code": -9, "timed_out": True, "stdout": "\ufffd"},
    ),
    ({"ok": {"stdout": b"x" * LONG, "stderr": b"y" * (LONG + 1)}}, {"stdout": "x" * LONG}),
    ({"ok": {"value": 7}}, {}),
    ({"error": "there is no such function"}, {"error": "there is no such function"}),
    (UserError("the guest has gone"), {"error": "the guest has gone"}),
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def end(log: CommandLog, what: str, outcome: dict[str, Any] | Exception) -> None:
    answer = Future[dict[str, Any]]()
    answer.add_done_callback(log.begin(what))
    answer.set_exception(outcome) if isinstance(outcome, Exception) else answer.set_result(outcome)


def test_a_command_is_written_down_with_all_that_it_said_and_how_it_ended(tmp_path: Path) -> None:
    log = CommandLog(tmp_path / "log")
    for number, (outcome, said) in enumerate(OUTCOMES):
        end(log, f"{number} {'w' * 5000}", outcome)
        line = lines(tmp_path / "log")[-1]
        assert line.pop("run") == f"{number} {'w' * 5000}"[:LONG], outcome
        assert line.pop("when") > 0 <= line.pop("seconds"), outcome
        assert line == said, outcome
    log.close()


def test_what_ends_in_another_machine_is_written_there_and_what_ends_later_nowhere(tmp_path: Path) -> None:
    log = CommandLog(tmp_path / "one")
    begun = [Future[dict[str, Any]]() for _ in range(2)]
    for number, answer in enumerate(begun):
        answer.add_done_callback(log.begin(f"{number}"))
    log.go_on(tmp_path / "two")
    begun[0].set_result({"ok": {}})
    log.close()
    begun[1].set_result({"ok": {}})
    assert lines(tmp_path / "one") == []
    assert [line["run"] for line in lines(tmp_path / "two")] == ["0"]
    assert log.failure is None


def test_a_log_that_was_shortened_grows_again_before_it_is_shortened_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in {"MAX_SIZE": 400, "KEPT_BEGINNING": 40, "KEPT_END": 80}.items():
        monkeypatch.setattr(f"vfio_user.harness.log.{name}", size)
    log, sizes, first = LogFile(tmp_path / "log"), list[int](), b"the beginning\n"
    log.write(first)
    for number in range(200):
        log.write(b"line %03d\n" % number)
        sizes.append((tmp_path / "log").stat().st_size)
    log.close()
    said = (tmp_path / "log").read_bytes()
    assert said.startswith(first)
    assert said.endswith(b"line 199\n")
    assert b"bytes are not kept" in said
    assert max(sizes) <= 400
    grown = [later > earlier for earlier, later in pairwise(sizes)]
    assert 2 <= grown.count(False) <= 12, "each time of some 240 bytes more"


def test_a_log_is_closed_between_two_writes_and_not_within_one(tmp_path: Path) -> None:
    """Who reads a console is another thread than who ends it."""
    log, did = LogFile(tmp_path / "log"), list[str]()
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        closed = False

        def write(self, data: bytes) -> int:
            begun.set()
            go_on.wait(10.0)
            did.append("written")
            return len(data)

        def close(self) -> None:
            did.append("closed")

    log._file.close()
    log._file = Slow()  # type: ignore[assignment]
    writer, closer = (threading.Thread(target=each) for each in (lambda: log.write(b"x"), log.close))
    writer.start()
    begun.wait(10.0)
    closer.start()
    closer.join(0.05)
    go_on.set()
    writer.join()
    closer.join()
    assert did == ["written", "closed"]
