"""The verbs of a guest, whichever way commands get there: what they return, when they give up, what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from userdev.process import Deadline
from vfio_user.harness.guest import Command, Guest, GuestFailure, Job, Result


class Scripted(Guest):
    """A guest in which commands end one after the other as it is said; the last goes on to."""

    def __init__(self, *results: Result, patience: float = 1.0) -> None:
        super().__init__(patience=patience)
        self.started: list[Command] = []
        self._results = [*results]

    def start(self, command: Command, timeout: float = 60.0) -> Job:
        self.started.append(command)
        came = self._results.pop(0) if len(self._results) > 1 else self._results[0]

        class Ended(Job):
            def wait(self, limit: float | Deadline | None = None) -> Result:
                return came

            def kill(self, number: int = 15) -> None: ...

        return Ended()

    def put(self, source: Path | bytes, target: str, mode: int = 0o644) -> None: ...

    def get(self, source: str) -> bytes:
        return b""

    def invoke(self, request: Mapping[str, object], timeout: float) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def ended(code: int, out: str = "", err: str = "", *, timed_out: bool = False) -> Result:
    return Result("it", code, out, err, 1.0, timed_out)


def test_what_commands_wrote_is_returned_of_all_of_them_whether_they_had_to_succeed_or_to_fail() -> None:
    assert Scripted(ended(0, "a", "x"), ended(0, "b", "y")).succeed("one", "two") == "ab"
    assert Scripted(ended(1, "a", "x"), ended(2, "b", "y")).fail("one", "two") == "ab"
    assert Scripted(ended(1, "no"), ended(1, "no"), ended(0, "at last")).wait_until_succeeds("it", interval=0) == (
        "at last"
    )


def test_a_command_that_ends_as_it_should_not_is_a_failure_with_its_result() -> None:
    ways: Sequence[tuple[str, Result, str]] = (
        ("succeed", ended(3), "failed with exit code 3"),
        ("succeed", ended(0, timed_out=True), "did not end in 60 s"),
        ("fail", ended(0), "succeeded, and should have failed"),
        ("fail", ended(1, timed_out=True), "did not end in 60 s"),
    )
    for verb, result, said in ways:
        with pytest.raises(GuestFailure, match=said) as failed:
            getattr(Scripted(result), verb)("it")
        assert failed.value.result is result, (verb, said)


def test_a_wait_ends_where_the_next_look_would_be_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("vfio_user.harness.guest.time.sleep", slept.append)
    guest = Scripted(ended(1))
    with pytest.raises(GuestFailure, match="'it' never succeeded in 5 s"):
        guest.wait_until_succeeds("it", timeout=5.0, interval=60.0)
    assert slept == []
    assert guest.started.count("it") == 1
    with pytest.raises(GuestFailure, match="in 10 s"):
        Scripted(ended(1), patience=2.0).wait_until_succeeds("it", timeout=5.0, interval=60.0)


def test_of_a_long_output_the_end_is_shown_and_how_much_was_before() -> None:
    for count, dropped in ((1, 0), (40, 0), (41, 1), (100, 60)):
        shown = ended(1, "".join(f"line {number}\n" for number in range(count))).describe().splitlines()[2:]
        assert [line.strip() for line in shown[-1:]] == [f"line {count - 1}"], count
        before = [line.strip() for line in shown if "before" in line]
        assert before == ([f"... {dropped} line{'s' if dropped > 1 else ''} before"] if dropped else []), count
        assert len(shown) == min(count, 40) + len(before), count
