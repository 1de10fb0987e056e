"""A fuzzer's find that is tried as a check."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from userdev.conformance import CheckFailed
from userdev.errors import UserError
from userdev.fuzz import Find, Found, Kind, Oracle, Step
from vfio_user.cli import _fuzzing


class Refinding:
    """Plays a find, whatever that is like, and has to be given back in any case."""

    def __init__(self, seen: BaseException | Found | None) -> None:
        self.seen = seen
        self.closed = 0

    def prepare(self) -> list[Found]:
        return []

    def kinds(self) -> list[Kind[object]]:
        return [Kind("ping", lambda session: None, {})]

    def play(self, steps: object) -> Found | None:
        if isinstance(self.seen, Found | None):
            return self.seen
        raise self.seen

    def close(self) -> None:
        self.closed += 1


def test_a_find_that_is_a_check_gives_its_server_back_whatever_it_sees(tmp_path: Path) -> None:
    rule = Oracle("crash", "A server goes on.")
    find = Find("vfio-user", "crash", rule.rule, "crash: SIGSEGV", "it ended", (Step("ping", ()),))
    find.write(tmp_path)
    same, another = Found(rule, "SIGSEGV", "it ended"), Found(rule, "SIGBUS", "it ended otherwise")
    for seen, error, says in (
        (None, None, None),
        (same, CheckFailed, "it ended"),
        (another, CheckFailed, "SIGBUS"),
        (UserError("there is no server"), UserError, "no server"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ):
        subject: Any = Refinding(seen)

        def made(bench: object, find: Find, subject: Any = subject) -> Any:
            return subject

        [check_of_it] = _fuzzing.corpus_checks(tmp_path, "vfio-user", made, ())
        with pytest.raises(error, match=says) if error is not None else nullcontext():
            check_of_it.run(None)
        assert subject.closed == 1, seen
