"""What a command that boots a guest says of it: text, JSON and status agree on each outcome. The lab is pretended."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from userdev.errors import UserError, VerdictError
from vfio_user.bundle import open_bundle
from vfio_user.cli import cli, exec, migrate, run
from vfio_user.harness.agent import ANSWER_SECONDS
from vfio_user.harness.artifacts import Timeline
from vfio_user.harness.exercises import EXERCISES, Exercise
from vfio_user.harness.guest import Result as Ran
from vfio_user.harness.migration import Plan, Report
from vfio_user.harness.migration.report import Mode, Phase, PhaseRecord, Verdict

FULL = b"x" * (1 << 20)
"""As much of a stream as is kept here."""


class Lab:
    """In the place of a lab: its guest is as it is told, and it keeps what it was asked for."""

    guest: Any = None
    folder = Path()
    accelerator = "tcg"
    qemu = SimpleNamespace(version_text="QEMU emulator version 11.1.3")

    def __init__(self, *_: object, **asked: Any) -> None:
        self.asked, self.booted = asked, dict[str, Any]()
        self.timeline = Timeline()
        self.failure: Exception | None = None
        self.seconds = 0.0
        type(self).latest = self  # type: ignore[attr-defined]

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def boot(self, *_: object, **asked: Any) -> Any:
        self.booted = asked
        return self.guest

    def monitor_path(self, _guest: object) -> Path:
        return self.folder / "qmp"


def say(*words: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, list(words), input=stdin)


# -- exec -------------------------------------------------------------------------------------------------------------

Outcome = tuple[int, bytes, bytes, bool]


def executed(
    monkeypatch: pytest.MonkeyPatch, outcome: Outcome, *words: str
) -> tuple[Result, tuple[float, float | None]]:
    """What `exec` says of a command with this outcome, how long the guest was to let it run, and what limit we have."""
    code, out, err, timed_out = outcome
    raw = (out, err)
    texts = out.decode(errors="replace"), err.decode(errors="replace")
    limits: list[float] = []
    waits: list[float | None] = []

    def start(command: Any, timeout: float) -> Any:
        limits.append(timeout)

        def wait(limit: float | None) -> Ran:
            waits.append(limit)
            return Ran(command, code, *texts, 1.25, timed_out, raw)

        return SimpleNamespace(wait=wait)

    monkeypatch.setattr(Lab, "guest", SimpleNamespace(patience=5.0, start=start))
    monkeypatch.setattr(exec, "Lab", Lab)
    monkeypatch.setattr(exec, "OUTPUT_LIMIT", len(FULL))
    return say("exec", *words, "--", "it"), (limits[0], waits[0])


OUTCOMES: Sequence[tuple[Outcome, int]] = (
    ((0, b"said\n", b"", False), 0),
    ((0, b"\xff\xfe", b"why\n", False), 0),
    ((3, b"", b"why", False), 3),
    ((255, b"", b"", False), 255),
    ((-9, b"half", b"", False), 137),
    ((-15, b"", b"", False), 143),
    ((-9, b"half", b"", True), exec.TOO_LONG),
    ((0, FULL[:-1], b"", False), 0),
    ((0, FULL, b"", False), exec.NOT_RUN),
    ((0, b"", FULL, False), exec.NOT_RUN),
)


def test_a_command_in_a_guest_ends_as_here_and_its_streams_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for outcome, status in OUTCOMES:
        case = outcome[0], outcome[3], len(outcome[1])
        ran, _ = executed(monkeypatch, outcome, "--quiet")
        assert ran.exit_code == status, case
        assert ran.stdout_bytes == outcome[1], case
        assert ran.stderr_bytes.startswith(outcome[2]), case
        assert ("more than the 1 MiB" in ran.stderr) is (status == exec.NOT_RUN), case
        ran, _ = executed(monkeypatch, outcome, "--quiet", "--json")
        told = json.loads(ran.stdout)
        assert told["status"] == (status if status != exec.NOT_RUN else 0), case
        assert (told["stdout"], told["stderr"]) == tuple(each.decode(errors="replace") for each in outcome[1:3]), case
        assert (told["timed_out"], told["seconds"]) == (outcome[3], 1.25), case
        assert ran.exit_code == status, case


def test_a_timeout_is_of_here_however_slow_the_guest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert executed(monkeypatch, OUTCOMES[0][0], "--timeout", "10")[1] == (2.0, 10 + 5 * ANSWER_SECONDS)
    guests, ours = executed(monkeypatch, OUTCOMES[0][0])[1]
    assert guests * 5 >= 1e6
    assert ours is None


def test_a_command_is_given_the_standard_input_and_none_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    told: list[str] = []

    def start(line: str, timeout: float) -> Any:
        done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
        told.append(line)
        return SimpleNamespace(wait=lambda _: Ran(line, 0, done.stdout.decode(), "", 0.0, raw=(done.stdout, b"")))

    guest = SimpleNamespace(patience=1.0, start=start, put=lambda data, where: Path(where).write_bytes(data))
    monkeypatch.setattr(Lab, "guest", guest)
    monkeypatch.setattr(exec, "Lab", Lab)
    monkeypatch.setattr(exec, "_STDIN", str(given))
    for command in (["cat"], ["sh", "-c", "cat"]):
        assert say("exec", "--stdin", "--", *command, stdin=b"typed\n").stdout == "typed\n"
        assert not given.exists(), told


# -- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def exercised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Exercise]:
    """What each part of an exercise comes to, for `run`."""
    outcomes: list[Exercise] = []
    remaining: list[Exercise] = []

    def exercise(_guest: object, program: str, *arguments: str) -> Exercise:
        if not remaining:
            remaining.extend(outcomes)
        return replace(remaining.pop(0), command=f"{program} {shlex.join(arguments)}")

    def wait(_seconds: float) -> None:
        Lab.latest.timeline.passed += 100.0  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    class Slow(Timeline):
        """A run of 2 s, and however long somebody looks on."""

        passed = 2.0

        @property
        def now(self) -> float:
            return self.passed

    machine = SimpleNamespace(child=SimpleNamespace(wait=wait), console=SimpleNamespace(log="console.log"))
    guest = SimpleNamespace(
        device=SimpleNamespace(address="0000:01:00.0", vendor=0x1234, device=0x11E8),
        agent=SimpleNamespace(kernel="6.12"),
        collect=lambda _folder: None,
        machine=machine,
        ssh_command=lambda _folder: ["ssh", "guest"],
    )
    (tmp_path / "lab").mkdir()
    monkeypatch.setattr(Lab, "guest", guest)
    monkeypatch.setattr(Lab, "folder", tmp_path / "lab")
    monkeypatch.setattr(f"{__name__}.Timeline", Slow)
    monkeypatch.setattr(run, "Lab", Lab)
    monkeypatch.setattr(run, "exercise", exercise)
    return outcomes


RIGHT = Exercise("", ok=True, seen={"sum": 7}, wrong=(), device={"access": "mmap"}, seconds=0.5)
WRONG = Exercise("", ok=False, seen={"sum": 8}, wrong=("sum is 8, not 7",), device={}, seconds=0.25)


def test_a_run_tells_people_and_programs_the_same_of_each_part(exercised: list[Exercise]) -> None:
    parts = EXERCISES["edu"].parts
    for wrong_at in (None, 0, len(parts) - 1):
        exercised[:] = [WRONG if index == wrong_at else RIGHT for index in range(len(parts))]
        text, quiet, programs = say("run"), say("run", "--quiet"), say("run", "--json")
        told = json.loads(programs.stdout)
        assert told == json.loads((Lab.folder / "report.json").read_text())
        assert told["ok"] is (wrong_at is None), wrong_at
        assert [each["ok"] for each in told["parts"]] == [index != wrong_at for index in range(len(parts))]
        marks = re.findall(r"^ +([\d.]+) s  (ok  |FAIL)  (.+?): (.*)$", text.stdout, re.MULTILINE)
        assert [(float(took), mark == "ok  ", proves) for took, mark, proves, _ in marks] == [
            (each["seconds"], each["ok"], each["proves"]) for each in told["parts"]
        ]
        assert ["sum is 8, not 7" in seen for *_, seen in marks] == [index == wrong_at for index in range(len(parts))]
        assert quiet.stdout == ""
        for done in (text, programs, quiet):
            assert isinstance(done.exception, VerdictError) is (wrong_at is not None), wrong_at


def test_how_long_somebody_looks_on_is_no_part_of_a_run(exercised: list[Exercise]) -> None:
    exercised[:] = [RIGHT]
    assert json.loads(say("run", "--json", "--keep").stdout)["seconds"] == 2.0
    assert "in 2.0 s" in say("run", "--keep").stdout


def test_what_was_seen_of_each_part_is_in_the_bundle_the_wrong_ones_too(
    exercised: list[Exercise], tmp_path: Path
) -> None:
    exercised[:] = [RIGHT, WRONG]
    say("run", "--quiet", "--bundle", str(tmp_path / "kept"))
    saw = open_bundle(tmp_path / "kept").bundle.outcome.saw
    assert [(each.ok, '{"sum": 7}' in each.seen or '{"sum": 8}' in each.seen) for each in saw][:2] == [
        (True, True),
        (False, True),
    ]


def test_what_a_device_and_its_server_are_is_what_was_said_of_them() -> None:
    """Options of an exercise are for a device without any; another server has the names of the device that it is."""
    program = EXERCISES["nvme"]
    asked = run._device("nvme --image memory:1M", None, None, program)
    assert asked.options == ("--image", "memory:1M")
    assert run._device("nvme", None, None, program).options == program.options
    theirs = run._device("edu", "./mine {socket}", None, EXERCISES["edu"])
    ours = run._device("edu", None, None, EXERCISES["edu"])
    assert theirs.register_names == ours.register_names != ""


def test_long_tables_are_counted_in_the_line_of_a_part_and_short_ones_shown() -> None:
    for count, said in ((1, "v 0:1 (mmap)"), (2, "v 0:1 1:1 (mmap)"), (30, "v x 30 (mmap)")):
        outcome = replace(RIGHT, seen={"v": dict.fromkeys(map(str, range(count)), 1)})
        assert run._summary(outcome) == said
    wide = replace(RIGHT, seen={"v": {"name": "x" * 35}})
    assert (run._summary(wide), run._summary(replace(wide, seen={"v": {"name": "x" * 36}}))) == (
        f"v name:{'x' * 35} (mmap)",
        "v x 1 (mmap)",
    )


# -- migrate ----------------------------------------------------------------------------------------------------------


Migrated = Callable[..., tuple[Report, list[Exercise]]]


@pytest.fixture
def migrates_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Migrated], None]:
    """Have `migrate` come to this."""

    @contextmanager
    def hosts(_named: str) -> Iterator[Any]:
        yield SimpleNamespace(a=None, b=None, note="", ways="")

    (tmp_path / "lab").mkdir()
    monkeypatch.setattr(Lab, "folder", tmp_path / "lab")
    monkeypatch.setattr(migrate, "Lab", Lab)
    monkeypatch.setattr(migrate, "two_hosts", hosts)
    return lambda migrated: monkeypatch.setattr(migrate, "_migrated", migrated)


def test_a_migration_tells_people_and_programs_the_same(migrates_as: Callable[[Migrated], None]) -> None:
    story = Report(Mode.COORDINATED, "a", "b", devices=["edu"], by_qemu=["disk"], verdict=Verdict.MIGRATED)
    story.phases = [
        PhaseRecord(Phase.START, 0.0, 0.0012, 0),
        PhaseRecord(Phase.PRE_COPY, 0.1, 1.5, 1023),
        PhaseRecord(Phase.DEVICE_STATE, 1.6, 0.25, 1024),
        PhaseRecord(Phase.DIRTY_PAGES, 1.9, 0.125, (1 << 20) - 1024),
        PhaseRecord(Phase.SWITCHOVER, 2.0, 0.5, 1 << 20),
    ]
    story.downtime, story.seconds, story.notes = 0.0625, 2.75, ["one host"]
    story.checks = []
    plans: list[Plan] = []

    def migrated(*arguments: Any) -> tuple[Report, list[Exercise]]:
        plans.append(next(each for each in arguments if isinstance(each, Plan)))
        return story, [RIGHT]

    migrates_as(migrated)
    for wrong in (False, True):
        if wrong:
            story.judge("driver of 0000:01:00.0", False, "none")
        else:
            story.judge("no reboot", True, "boot id 7")
        text, programs = say("migrate", "--bandwidth", "8"), say("migrate", "--json")
        told = json.loads(programs.stdout)
        assert json.loads((Lab.folder / ".migration.json").read_text())["verdict"] == told["verdict"]
        amounts = ["", "1023 B", "1.0 KiB", "1023.0 KiB", "1.0 MiB"]
        rows = [" ".join(line.split()) for line in text.stdout.splitlines()]
        assert rows[1:6] == [
            f"{each['phase']} {each['seconds'] * 1000:.1f} ms {amount}".strip()
            for each, amount in zip(told["phases"], amounts, strict=True)
        ]
        marks = [line for line in rows if line.startswith(("ok ", "WRONG "))]
        assert [mark.startswith("ok") for mark in marks] == [each["ok"] for each in told["checks"]]
        assert all(each["what"] in mark for each, mark in zip(told["checks"], marks, strict=True))
        assert rows[0] == "edu from a to b, mode coordinated, disk by QEMU"
        assert rows[-1] == f"{told['verdict']}: 2.75 s, downtime 62.5 ms"
        assert "note: one host" in rows
        assert isinstance(text.exception, VerdictError) is isinstance(programs.exception, VerdictError) is wrong
        assert bool(say("migrate", "--quiet").stdout) is False
    assert [plan.tuning.bandwidth for plan in plans[:2]] == [8 << 20, 1 << 40]


def test_bundles_of_two_migrations_that_went_right_say_that_the_same_was_seen(
    migrates_as: Callable[[Migrated], None], tmp_path: Path
) -> None:
    """What is another in each guest, as when it was booted, is told only where it is wrong."""

    def seen(number: int, *, ok: bool) -> list[tuple[str, bool, str]]:
        story = Report(Mode.DIRECT, "a", "b", verdict=Verdict.MIGRATED)
        story.judge("no reboot", ok, f"boot id {number}")
        migrates_as(lambda *_: (story, []))
        place = tmp_path / f"kept{number}"
        say("migrate", "--quiet", "--bundle", str(place))
        return [(each.what, each.ok, each.seen) for each in open_bundle(place).bundle.outcome.saw]

    assert seen(1, ok=True) == seen(2, ok=True) == [("no reboot", True, "")]
    assert seen(3, ok=False) == [("no reboot", False, "boot id 3")]


def test_what_works_on_devices_that_no_work_was_named_for() -> None:
    """Each its first where none is named at all, and nothing behind the last that is."""
    kinds = [[each.kind for each in migrate._assignments(("edu", "nvme"), named, None)] for named in ((), ("dma",))]
    assert kinds == [["dma", "fio"], ["dma", "none"]]
    with pytest.raises(UserError, match="2 workloads for 1 device"):
        migrate._assignments(("edu",), ("dma", "idle"), None)


# -- the guest --------------------------------------------------------------------------------------------------------


def test_a_guest_has_the_modules_that_were_named_in_whatever_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, modules in (
        ([], None),
        (["--modules", "uio,nvme"], ("uio", "nvme")),
        (["--modules", " uio , ,nvme,", "--modules", "vfio-pci"], ("uio", "nvme", "vfio-pci")),
    ):
        executed(monkeypatch, OUTCOMES[0][0], "--quiet", *words)
        assert Lab.latest.booted.get("modules") == modules, words  # type: ignore[attr-defined]
