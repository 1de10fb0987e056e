"""A night: its folder, one job of avocado's over all that is ready, and its summary, which is kept up to date."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from userdev.errors import UserError
from userdev.process import answer_of
from userdev.process.child import is_full
from vfio_user.avocado_job.ending import EndedAtOnce, Ending
from vfio_user.avocado_job.job import (
    JobHangs,
    complete_junit,
    run_bounded,
    usual_settings,
)
from vfio_user.avocado_job.naming import name_tests
from vfio_user.harness.artifacts import results_folder
from vfio_user.harness.debian import Progress, quiet
from vfio_user.harness.interruption import interruptible, reentrant
from vfio_user.nightly.bundles import Bundles
from vfio_user.nightly.cases import Case, suite_settings, variant_of
from vfio_user.nightly.cells import NightCell
from vfio_user.nightly.ended import compared_and_remembered
from vfio_user.nightly.history import History
from vfio_user.nightly.judged import judge, judged_job
from vfio_user.nightly.matrix import Drawn
from vfio_user.nightly.morning import write_morning
from vfio_user.nightly.place import Place, Readiness
from vfio_user.nightly.plan import Plan
from vfio_user.nightly.staging import Stage, ready_servers
from vfio_user.nightly.summary import CaseResult, Cell, PlanIdentity, Status, Summary, Verdict, case_id
from vfio_user.nightly.verdicts import named, qemu_of, result_of, skipped, wedged
from vfio_user.nightly.watch import SPARE_MIB, Clock, Space, held_back

GIT_SECONDS = 60.0
"""What git may take to look whether files of a checkout were changed."""
WRITE_SECONDS = 2.0
"""Seconds between two summaries of a night that runs, at least."""

_LOCK, _RUNNING = ".lock", ".running"


@contextmanager
def only_one(base: Path, *, wait: bool, say: Progress) -> Iterator[None]:
    """A block of which only one at a time is in the folder of nights; another one is waited for if that is wanted.

    Raises:
        UserError: there is another, and it is not.
    """
    base.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(base / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        with contextlib.suppress(OSError):
            say(f"a night runs in {base} already: {(base / _RUNNING).read_text().strip()}")
        if not wait:
            raise UserError(f"a night runs in {base} already", hint="--wait waits until it has ended") from None
        say("waiting until it has ended")
        lock.acquire()
    try:
        (base / _RUNNING).write_text(f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Ready:
    """What can be run: the stage with its servers, and what the place has."""

    stage: Stage
    place: Readiness

    def missing(self, cell: NightCell) -> str:
        """Why nothing of a cell can be run; "" where it can."""
        qemu = self.place.missing.get(cell.qemu)
        if qemu:
            return f"QEMU {cell.qemu} is not to be had: {qemu}"
        return self.stage.servers[str(cell.values["server"])].missing


class Night:
    """A night of a plan, in a new folder below `base`."""

    def __init__(
        self,
        plan: Plan,
        drawn: Drawn,
        base: Path,
        *,
        commit: str = "",
        spare: int = SPARE_MIB,
        bundles: Bundles = Bundles(),  # noqa: B008  # nothing of it changes
    ) -> None:
        """Make its folder, in which `spare` MiB are to be free, and write the first summary.

        Raises:
            UserError: there can be no folder.
        """
        self.folder = results_folder(plan.text.name, base)
        self._bundles = bundles
        self._history = History(base)
        self._clock = Clock()
        self._space = Space(self.folder, spare=spare)
        self._remarks: tuple[str, ...] = ()
        self._known: dict[str, CaseResult] = {}
        self._cases: dict[str, Case] = {}
        self._taken: list[Mapping[str, Any]] = []
        """Tests of avocado's result of which all is known."""
        self._passed: list[Path] = []
        self._qemus: dict[str, str] = {}
        """Versions that tests have used, by cell."""
        self._written = float("-inf")
        self._say: Progress = quiet
        identity = PlanIdentity(name=plan.text.name, file=str(plan.path), digest=plan.digest(drawn.text()))
        self.summary = Summary(night=self.folder.name, plan=identity, commit=commit, began=datetime.now(UTC))
        self._write()

    def run(self, stage: Stage, place: Place, say: Progress) -> Summary:
        """Run all cases of a stage in a place; its summary, in its last state.

        An end that somebody gives it is its status; given twice, `EndedAtOnce` leaves this, too.

        Raises:
            EndedAtOnce: it was told to end twice.
            UserError: nothing could be done, or there was no space.
        """
        self._say = reentrant(say)
        self.summary = self.summary.model_copy(update={"only": stage.only})
        with contextlib.closing(place), held_back(self.folder) as held:
            try:
                with interruptible():
                    self._run(self._make_ready(stage, place, say), place, say)
            except UserError as error:
                held.truncate(0)
                with contextlib.suppress(OSError):  # a full disk: the reason is that, and what is to be told
                    self._finish(Status.UNDONE, "; ".join([str(error), *error.hint.splitlines()]))
                raise
            except KeyboardInterrupt:
                self._finish(Status.ENDED, "before its first case")
            except EndedAtOnce:
                self._finish(Status.ENDED, "at once")
                raise
        return self.summary

    # -- before the first case --------------------------------------------------------------------------------------

    def _make_ready(self, stage: Stage, place: Place, say: Progress) -> _Ready:
        with_servers = replace(stage, servers=ready_servers(stage, say))
        ready = _Ready(with_servers, place.make_ready(stage.used_qemus, stage.plan.text.images, say))
        limits = ", ".join(stage.only)
        self._remarks = (*[f"only what fits {limits} was run of the plan"] * bool(limits), *ready.place.remarks)
        self._cases = {case.id: case for cases in with_servers.cases().values() for case in cases}
        for case in self._cases.values():
            missing = ready.missing(case.cell)
            if missing:
                self._know(wedged(case, missing))
            elif case.skipped:
                self._know(skipped(case))
        planned = Counter(case.cell.id for case in self._cases.values())
        cells = {case.cell.id: _described(case.cell, ready, planned) for case in self._cases.values()}
        self.summary = self.summary.model_copy(update={"cells": tuple(cells.values()), "slots": ready.place.slots})
        self._write()
        return ready

    # -- the job ----------------------------------------------------------------------------------------------------

    def _run(self, ready: _Ready, place: Place, say: Progress) -> None:
        suites = list(self._suites(ready, place))
        if not suites:
            self._finish(Status.FINISHED)
            return
        ending = Ending()
        job = judged_job(self._job_settings(), suites, lambda job: self._judge(job, place, ending))
        with job:
            try:
                run_bounded(job, ending, say, tick=lambda: self._look(job, place, ending))
            except JobHangs as error:
                say(str(error))
            except EndedAtOnce:
                self._take(job, place, ending)
                raise
        self._take(job, place, ending)
        complete_junit(Path(job.logdir) / "results.xml", job.result.tests)
        if ending.came:
            names = [case_id(*named(test)) for test in ending.tests(job)]
            self._finish(Status.ENDED, f"in {', '.join(names)}" if names else "between cases")
        elif is_full(self.folder):
            raise UserError(f"{self.folder}: no space is left there, so that nothing of this is a verdict")
        else:
            for case in self._cases.values():
                if case.id not in self._known:
                    self._know(wedged(case))
            self._finish(Status.FINISHED)

    def _suites(self, ready: _Ready, place: Place) -> Iterator[Any]:
        from avocado.core.suite import TestSuite

        plan = ready.stage.plan
        devices = {name: server.device for name, server in ready.stage.servers.items()}
        for group, cases in ready.stage.cases().items():
            wanted = {case.id for case in cases} - self._known.keys()
            cells = [cell for cell in ready.stage.cells[group] if not ready.missing(cell)]
            if not wanted:
                continue
            settings = {**suite_settings(plan, group, cells, devices, self._bundles), **place.settings()}
            suite = TestSuite.from_config(settings, name=group, job_config=self._job_settings())
            name_tests(suite, plan.folder)
            suite.tests = [test for test in suite.tests if case_id(variant_of(test), test.identifier) in wanted]
            yield suite

    def _job_settings(self) -> dict[str, Any]:
        # a job's suites would write one TAP with the plan of the first of them (avocado 113)
        settings = {**usual_settings(self.folder, 1), "job.run.result.tap.enabled": False}
        # what avocado says of a test is no verdict yet: its server may have a known issue
        return {**settings, "core.show": ["none"], "job.output.testlogs.summary_statuses": []}

    # -- while it runs, and after -----------------------------------------------------------------------------------

    def _look(self, job: Any, place: Place, ending: Ending) -> None:
        """Once a second: take new results, keep the summary up to date, and an eye on the clock."""
        self._clock.look()
        new = self._take(job, place, ending)
        if new and time.monotonic() - self._written > WRITE_SECONDS:
            self._write()

    def _take(self, job: Any, place: Place, ending: Ending) -> int:
        """Results of tests that have reported since the last call; how many, and space for more.

        Those that `ending` ended have none.
        """
        ended = [id(test) for test in ending.tests(job)]
        new = job.result.tests[len(self._taken) :]
        for test in new:
            self._taken.append(test)
            cell, name = named(test)
            case = self._cases.get(case_id(cell, name))
            if case is None or id(test) in ended:
                continue
            result = result_of(case, test, ran=place.ran(test), folder=self.folder)
            bundle = self._bundles.take(Path(str(test["logdir"])), case.id, self.folder)
            result = result.model_copy(update={"bundle": bundle})
            self._know(result)
            self._qemus[cell] = qemu_of(test) or self._qemus.get(cell, "")
            if result.verdict in (Verdict.PASS, Verdict.XFAIL, Verdict.SKIP):
                self._passed.append(Path(str(test["logdir"])))
        self._space.keep(self._passed)  # also behind the last look: what passed since then counts as well
        return len(new)

    def _judge(self, job: Any, place: Place, ending: Ending) -> None:
        """Have avocado's reports say of each test what the night says, but of those that `ending` ended."""
        self._take(job, place, ending)
        ended = [id(test) for test in ending.tests(job)]
        for test in job.result.tests:
            result = self._known.get(case_id(*named(test)))
            if result is not None and id(test) not in ended:
                judge(job.result, test, result)

    def _know(self, result: CaseResult) -> None:
        """Keep a result, and say its line: also that of a case which is not run, with the reason."""
        self._known[result.id] = result
        self._say(f"({len(self._known)}/{len(self._cases)}) {result.line}")

    def _finish(self, status: Status, reason: str = "") -> None:
        """Write the last summary, beside the night before, and what people read of it."""
        self.summary = self.summary.model_copy(update={"status": status, "reason": reason, "ended": datetime.now(UTC)})
        self._write()
        try:
            self.summary = compared_and_remembered(self.summary, self._history, self.folder)
        except UserError as error:  # locked by who looks at it, say: the night is what it is, and its folder is there
            self._remarks = (*self._remarks, f"the history of nights was not to be had: {error}")
            self._say(self._remarks[-1])
            self._write()
        with contextlib.suppress(UserError) if status is Status.UNDONE else contextlib.nullcontext():
            write_morning(self.summary, self.folder)

    def _write(self) -> None:
        """Write the summary as it is now, checked."""
        results = [self._without_what_is_gone(self._known[case]) for case in self._cases if case in self._known]
        remarks = (*self._remarks, *self._clock.remarks, *filter(None, [self._space.remark]))
        now = self.summary.model_copy(
            update={
                "results": tuple(results),
                "cells": tuple(self._with_version(cell) for cell in self.summary.cells),
                "seconds": round(self._clock.seconds, 3),
                "remarks": remarks,
            }
        )
        self.summary = Summary.model_validate(now.model_dump())
        self.summary.write(self.folder)
        self._written = time.monotonic()

    def _with_version(self, cell: Cell) -> Cell:
        used = self._qemus.get(cell.id)
        return cell.model_copy(update={"versions": {**cell.versions, "qemu": used}}) if used else cell

    def _without_what_is_gone(self, result: CaseResult) -> CaseResult:
        gone = self.folder / result.evidence in self._space.given_up
        if not gone:
            return result
        return result.model_copy(update={"evidence": "", "bundle": "" if result.bundle_is_evidence else result.bundle})


def commit_of(folder: Path) -> str:
    """The commit that a checkout is at, with -dirty where files were changed; "" where it is none."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(UserError):
        return answer_of("git", describe, GIT_SECONDS, cwd=folder).strip()
    return ""


def _described(cell: NightCell, ready: _Ready, planned: Mapping[str, int]) -> Cell:
    server = ready.stage.servers[str(cell.values["server"])]
    versions = {
        "qemu": ready.place.qemus.get(cell.qemu, ""),
        "kernel": ready.place.kernel,
        "server": server.version,
    }
    return Cell(
        id=cell.id,
        parameters=cell.parameters,
        versions={name: version for name, version in versions.items() if version},
        planned=planned[cell.id],
        reason=ready.missing(cell),
    )
