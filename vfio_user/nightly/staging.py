"""What a night has ready before its first case: servers that were fetched, built and asked; and the cases."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from userdev.errors import UserError, meant
from userdev.process import answer_of
from userdev.process.spawning import require_program
from userdev.written import Place as DocumentPlace
from vfio_user.avocado_job.naming import MissingTest, tests_in, told_names
from vfio_user.avocado_job.selection import reference, suite_folder
from vfio_user.harness.debian import Progress
from vfio_user.harness.device import Device
from vfio_user.nightly.abilities import Abilities, declared, probed
from vfio_user.nightly.cases import Case, Tags, cases_of, of_every_night, tests_of
from vfio_user.nightly.cells import NightCell, cells_of
from vfio_user.nightly.matrix import Drawn
from vfio_user.nightly.plan import Plan
from vfio_user.nightly.servers import ABILITIES, PROGRAM, Server

PREPARE_SECONDS = 900.0
"""Seconds that a server may take to be fetched and built."""


@dataclass(frozen=True)
class ReadyServer:
    """A server: the text of its device, what it can do; or why it is not to be had."""

    device: str
    abilities: Abilities
    version: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Stage:
    """A plan's groups with their cells and cases. Until its servers are ready each can do all there is."""

    plan: Plan
    cells: Mapping[str, Sequence[NightCell]]
    tests: Mapping[str, Mapping[str, Tags]]
    servers: Mapping[str, ReadyServer] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    """Patterns of cells, or of cases, to which it is limited; none: it has all of the plan."""

    def limited(self, patterns: Sequence[str]) -> Stage:
        """The same with cells and cases alone whose ids one of the patterns fits (as a shell's); with none, all.

        Raises:
            UserError: a pattern fits nothing.
        """
        cases = [case for found in self.cases().values() for case in found]
        cells = list(dict.fromkeys(case.cell.id for case in cases))
        for pattern in patterns:
            if not any(_fits(case, [pattern]) for case in cases):
                hint = f"{meant(pattern, cells)}there are: {', '.join(cells)}; or CELL/TEST, as --list has them"
                raise UserError(f"no cell or case of the plan is {pattern!r}", hint=hint)
        left = {case.cell.id for case in cases if _fits(case, patterns)} if patterns else {*cells}
        groups = {group: [cell for cell in found if cell.id in left] for group, found in self.cells.items()}
        return replace(self, cells=groups, only=tuple(patterns))

    @property
    def used_servers(self) -> list[str]:
        """The names of the servers that some cell has."""
        return list(dict.fromkeys(str(cell.values["server"]) for cells in self.cells.values() for cell in cells))

    @property
    def used_qemus(self) -> dict[str, str]:
        """QEMUs that some cell has, by name, as the harness takes them."""
        names = dict.fromkeys(cell.qemu for cells in self.cells.values() for cell in cells)
        return {name: self.plan.qemu(name) for name in names}

    def cases(self) -> dict[str, list[Case]]:
        """The cases of every group; one that two groups have is the first one's."""
        seen: set[str] = set()
        found: dict[str, list[Case]] = {}
        for group, cells in self.cells.items():
            cases = cases_of(cells, self.tests[group], self._abilities)
            wanted = (case for case in cases if not self.only or _fits(case, self.only))
            found[group] = [case for case in wanted if not (case.id in seen or seen.add(case.id))]  # type: ignore[func-returns-value]
        return found

    def _abilities(self, cell: NightCell) -> Abilities:
        ready = self.servers.get(str(cell.values["server"]))
        return ready.abilities if ready else dict.fromkeys(ABILITIES[cell.server.protocol], "")


def _fits(case: Case, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in (case.cell.id, case.id))


def staged(plan: Plan, drawn: Drawn) -> Stage:
    """The cells and cases of a plan; nothing is started for it.

    Raises:
        UserError: avocado finds no test where the plan, or a known issue of a server, names one.
    """
    tests = {name: _tests(plan, name) for name in plan.text.groups}
    _check_known_issues(plan, tests)
    chosen = {
        name: tests[name] if group.nightly else of_every_night(tests[name]) for name, group in plan.text.groups.items()
    }
    return Stage(plan, cells_of(plan, drawn), chosen)


def _tests(plan: Plan, group: str) -> Mapping[str, Tags]:
    try:
        return tests_of(plan.references[group], plan.folder)
    except MissingTest as error:
        raise plan.document.refuse(("groups", group, "tests", error.index), str(error), hint=error.hint) from None


def _check_known_issues(plan: Plan, tests: Mapping[str, Mapping[str, Tags]]) -> None:
    """Refuse what a server's issues call a test, and is none: nothing of such an issue would ever be expected."""
    if plan.others is None:
        return
    for name, server in plan.others.value.servers.items():
        groups = [tests[group] for group, text in plan.text.groups.items() if name in text.servers]
        run = list(dict.fromkeys(test.rpartition(":")[2] for group in groups for test in group))
        for place, told in _named_by_issues(name, server) if groups else ():
            problem, hint = _wrong_with(told, run, plan.servers_folder)
            if problem:
                raise plan.others.refuse(place, problem, hint=hint)


def _named_by_issues(name: str, server: Server) -> Iterator[tuple[DocumentPlace, str]]:
    for index, issue in enumerate(server.known_issues):
        for number, told in enumerate(issue.tests):
            yield ("servers", name, "known_issues", index, "tests", number), told


def _wrong_with(told: str, run: Sequence[str], folder: Path) -> tuple[str, str]:
    """What is wrong with a test's name, and a hint; `run` are those that the plan runs on the server."""
    file, _, test = told.rpartition(":")
    try:
        there = tests_in(reference(file, suite_folder(), folder)) if file else run
    except UserError as error:
        return str(error), error.hint
    if test in there:
        return "", ""
    elsewhere = "" if file else "; one that only another plan runs has its file before it: FILE:CLASS.METHOD"
    return f"there is no test {test}{f' in {file}' * bool(file)}", told_names(test, there) + elsewhere


def ready_servers(stage: Stage, say: Progress) -> dict[str, ReadyServer]:
    """Every server that some cell has, fetched, built and asked; what is not to be had says why."""
    found = {}
    for name in stage.used_servers:
        server = stage.plan.servers[name]
        try:
            found[name] = _ready(server, stage.plan.servers_folder, lambda said, name=name: say(f"{name}: {said}"))  # type: ignore[misc]
        except UserError as error:
            everything = dict.fromkeys(ABILITIES[server.protocol], "")  # so that its cases are not lost as skipped
            found[name] = ReadyServer("", everything, missing=f"the server {name} is not to be had: {error}")
            say(found[name].missing)
    return found


def _ready(server: Server, folder: Path, say: Progress) -> ReadyServer:
    program = ""
    if server.prepare:
        say(server.prepare)
        program = last_line(server.prepare, folder)
    device = server.device(program, folder)
    if not server.is_ours:
        _require_its_program(device)
    version = last_line(server.version.replace(PROGRAM, program), folder) if server.version else ""
    abilities = probed(server, Device.parse(device)) if server.probe else declared(server)
    return ReadyServer(device, abilities, version)


def _require_its_program(device: str) -> None:
    """See to it that a server's program is there, where that can be said before it is started.

    Raises:
        UserError: it is not.
    """
    program, *_ = shlex.split(Device.parse(device).command)
    if "{" not in program and (program.startswith("/") or "/" not in program):  # others are found where a test runs
        require_program(program)


def last_line(command: str, folder: Path, *, seconds: float = PREPARE_SECONDS) -> str:
    """The last line that a shell's command prints, which runs in `folder`.

    Raises:
        UserError: it fails, takes too long, or prints nothing.
    """
    lines = answer_of(f"`{command}`", ["/bin/sh", "-c", command], seconds, cwd=folder).strip().splitlines()
    if not lines:
        raise UserError(f"`{command}` prints nothing")
    return lines[-1].strip()
