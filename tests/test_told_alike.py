"""Commands that boot guests, each to a good and to a bad end: --json and --quiet change nothing but what is told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

from tests.soak_kit import Pretended
from tests.tellings import see_alike
from tests.tellings.stand_ins import BUNDLE, PREPARED
from tests.test_e2e_counts import job_of
from tests.test_nightly_history import FAIL, PASS, case, nth
from tests.test_nightly_plan import written
from vfio_user.avocado_job.ending import Ending
from vfio_user.cli import exec as exec_command
from vfio_user.cli import migrate, nightly, repro, run, soak, test_e2e
from vfio_user.harness.artifacts import Timeline
from vfio_user.harness.exercises import Exercise
from vfio_user.harness.guest import Result
from vfio_user.harness.hosts import Pair
from vfio_user.harness.hosts.host import LOCAL
from vfio_user.harness.migration.report import Mode, Report, Verdict
from vfio_user.nightly.staging import Stage

GOOD, BAD = True, False
LINES = (
    "vfio-user run",
    "vfio-user run --trace --fresh --capture-dma",
    "vfio-user exec -- true",
    "vfio-user migrate",
    "vfio-user migrate --trace --mode direct",
    "vfio-user soak --until 2 --seed 1",
    "vfio-user soak --only 1,2 --seed 1",
    "vfio-user nightly --plan plan.yaml",
    "vfio-user repro bundle",
    "vfio-user repro bundle --times 2",
    "vfio-user repro bundle --until pass --times 1",
    "vfio-user test-e2e registers",
)


class Lab:
    """A lab without a guest, which tells of its progress."""

    def __init__(self, folder: Path, progress: Any) -> None:
        self.folder, self.timeline = folder, Timeline()
        self.failure: Exception | None = None
        self.servers: list[Any] = []
        self._progress = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def boot(self, *_: object, **__: object) -> Any:
        self._progress("it is fetched")
        device = SimpleNamespace(address="01:00.0", vendor=0x1234, device=0x11E8)
        return SimpleNamespace(device=device, collect=lambda _: None)


@contextmanager
def pretended(folder: Path, ok: bool) -> Iterator[None]:
    """A block in which the commands come to a good or a bad end, without a guest."""
    seen = Exercise("edu 5", ok=ok, seen={"5!": 120}, wrong=() if ok else ("5! is 7",), device={}, seconds=0.25)
    report = Report(Mode.AUTO, "a", "b", ["edu"], [], Verdict.MIGRATED if ok else Verdict.LOST, "")
    summary = nth(1, case("a"), case("b", PASS if ok else FAIL))
    ran = Result(["true"], 0 if ok else 3, "said\n", "why\n", 0.5, raw=(b"said\n", b"why\n"))

    def lab(_name: str, *, progress: Any, **_asked: Any) -> Lab:
        return Lab(folder, progress)

    def tested(*_: Any, printed: Any, into: Any, **__: Any) -> None:
        (folder / "job").mkdir(exist_ok=True)
        test_e2e.report(job_of(folder / "job", [1, 0, not ok, 0, 0, 0, 0, 0]), 0, Ending(), into, printed)

    attempt = SimpleNamespace(verdict="PASS" if ok else "FAIL", same=ok, seconds=1.0, differences=())
    attempt.found, attempt.as_dict = SimpleNamespace(folder="a folder"), lambda: {"same": ok}
    done = SimpleNamespace(run=lambda *_: summary, folder=Path("night"))
    changed: Mapping[Any, Mapping[str, Any]] = {
        run: {"Lab": lab, "exercise": lambda *_: seen},
        run._Printer: {"machine": lambda *_: None},
        exec_command: {"Lab": lab, "_result": lambda *_: ran},
        migrate: {
            "Lab": lab,
            "two_hosts": lambda _: nullcontext(Pair(LOCAL, LOCAL)),
            "_migrated": lambda *_: (report, [seen]),
        },
        soak: {"performances": lambda *_: Pretended(lambda lived: "" if ok else "register")},
        nightly: {
            "Night": lambda *_, **__: done,
            "staged": lambda plan, drawn: Stage(plan, {}, {}),
            "place_of": lambda _: None,
        },
        repro: {
            "open_bundle": lambda _: BUNDLE,
            "prepare": lambda *_, say, **__: (say("it is built"), PREPARED)[1],
            "do_again": lambda *_, **__: attempt,
        },
        test_e2e: {"make_job": lambda _: SimpleNamespace(test_suites=[]), "provision": lambda *_: None, "_run": tested},
    }
    with ExitStack() as stack:
        for of, names in changed.items():
            stack.enter_context(patch.multiple(of, **names))
        for of in (nightly, test_e2e):
            stack.enter_context(patch.object(of, "prepare_environment", lambda *_, **__: None))
        stack.enter_context(patch.dict(os.environ, {"VFIO_USER_RESULTS": str(folder / "results")}))
        yield


def test_a_bad_end_is_one_however_it_is_told(tmp_path: Path) -> None:
    for ok in (GOOD, BAD):
        folder = tmp_path / str(ok)
        folder.mkdir()
        written(folder)
        with pretended(folder, ok):
            for line in LINES:
                statuses = {status for status, _, _ in see_alike(folder, line).values()}
                assert statuses == {0} if ok else 0 not in statuses, (line, ok)
