"""What a slot has to have, how often a test is tried on one, and what of it is left there; no slot is reached."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each_row
from userdev.errors import UserError
from vfio_user.harness.hosts import SshHost
from vfio_user.nightly import over_there, slot_spawner
from vfio_user.nightly.cells import NightCell
from vfio_user.nightly.place import this_machine
from vfio_user.nightly.plan import USUALLY, SlotText
from vfio_user.nightly.servers import our_servers
from vfio_user.nightly.slot_spawner import Pool, SlotCommand, _Attempts
from vfio_user.nightly.slots import NEEDED_MIB, Slots

GIVEN_MIB = 300


@for_each_row(
    [
        ({}, ""),
        ({"free": NEEDED_MIB + GIVEN_MIB - 1}, f"{NEEDED_MIB + GIVEN_MIB} are needed"),
        ({"python": [3, 10]}, "is Python 3.10"),
        ({"python": [4, 0]}, ""),
        ({"lacking": ["avocado (no)", "click (no)"]}, "lacks avocado (no), click (no)"),
        ({"why": "it may not be written"}, "it may not be written"),
    ]
)
def test_a_slot_is_used_where_all_is_there_and_what_it_is_given_has_room(
    otherwise: Mapping[str, Any], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"python": [3, 11], "lacking": [], "why": "", "free": NEEDED_MIB + GIVEN_MIB, **otherwise}
    monkeypatch.setattr(Slots, "_asked", lambda *_: said)
    slots = Slots({"a": SlotText(host="one", folder="/x")}, {"a": SshHost("a", "one", "one")}, Path(), [])
    with pytest.raises(UserError, match=re.escape(refused)) if refused else contextlib.nullcontext():
        slots._probe("a", GIVEN_MIB)


def test_as_many_tests_run_at_once_as_all_slots_together_take() -> None:
    commands = [SlotCommand("a", 2, ["x"], "/x"), SlotCommand("b", 3, ["x"], "/x")]
    slots = Slots({}, {}, Path(), [], commands)
    assert slots.settings()["run.max_parallel_tasks"] == 5


STARTS = """echo '{"status": "started"}';"""
FINISHES = """echo '{"status": "finished"}';"""


@for_each_row(
    [
        ([f"{STARTS} exit 255"] * 3, "abf"),
        ([f"{STARTS} exit 255", f"{STARTS} {FINISHES}"], "ab"),
        (["exit 255", "exit 255", f"{STARTS} {FINISHES}"], "abc"),
        (["exit 255"] * 3, "abcf"),
        ([f"{STARTS} exit 1", f"{STARTS} {FINISHES}"], "af"),
    ],
    ids=["dies with all", "dies with one", "begins with the last", "none is there", "its runner alone goes"],
)
def test_a_test_is_begun_on_two_slots_at_most_and_has_one_beginning_and_one_end(
    slots: list[str], tried: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`tried` are the slots in turn, and f where the end is ours."""
    told: list[Mapping[str, Any]] = []
    service = SimpleNamespace(post=told.append, close=lambda: None)
    monkeypatch.setattr(slot_spawner, "TaskStatusService", lambda uri: service)
    task = SimpleNamespace(
        runnable=SimpleNamespace(output_dir=str(tmp_path)),
        status_services=[SimpleNamespace(uri="x")],
        get_command_args=list,
        identifier="1-x",
        job_id="y",
    )
    names = "abc"[: len(slots)]
    pool = Pool(
        [
            SlotCommand(name, 1, ["sh", "-c", f"echo {name} >> {tmp_path}/tried; {does}"], "/x")
            for name, does in zip(names, slots, strict=True)
        ]
    )

    async def run() -> None:
        await asyncio.wait_for(_Attempts(task, pool, pool.take()).wait(), 30)

    asyncio.run(run())
    assert (tmp_path / "tried").read_text().split() == [*tried.rstrip("f")]
    assert [message["status"] for message in told] == ["started", "finished"]
    assert ("interrupted" in told[-1].values()) is tried.endswith("f"), told


def test_only_the_attempt_that_was_told_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a slot that then was none is none of the test's time, nor is what came before another beginning."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(slot_spawner, "time", clock)
    told: list[Mapping[str, Any]] = []
    attempts = _Attempts.__new__(_Attempts)
    attempts._logdir, attempts._posts = Path("/x"), [SimpleNamespace(post=told.append)]
    attempts._task = SimpleNamespace(identifier="1-x", job_id="y")
    attempts._first = 0.0
    for began, at, status in ((50.0, 55.0, "started"), (50.0, 60.0, "running"), (200.0, 207.0, "finished")):
        attempts._began, clock.now = began, at
        attempts._post({"status": status})
    assert [message["time"] for message in told] == [55.0, 60.0, 57.0]


def test_nothing_of_a_test_stays_on_a_slot_however_it_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from avocado.plugins.runners.avocado_instrumented import RunnerApp

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    quiet: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda number, _: quiet.append(number))
    monkeypatch.setattr(os, "fdopen", lambda number, *_, **__: quiet.append(number))
    for status in (None, 1):
        folder = tmp_path / "tests" / f"of-{status}"
        seen: list[bool] = []

        def run(_: object, folder: Path = folder, seen: list[bool] = seen, status: int | None = status) -> None:
            seen.append(folder.is_dir())
            (folder / "left").write_text("evidence")
            if status is not None:
                raise SystemExit(status)

        monkeypatch.setattr(RunnerApp, "run", run)
        with pytest.raises(SystemExit) if status else contextlib.nullcontext():
            over_there.run(str(folder), ["-i", "1"])
        assert seen == [True], status
        assert not folder.exists(), status
    for number in set(quiet):
        os.close(number)


def test_a_machine_is_described_as_its_kernel_does() -> None:
    machine = this_machine([])
    total = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert (machine.name, machine.kernel) == (platform.node(), platform.release())
    assert abs(machine.memory - int(total) // 1024) <= 1
    assert machine.processors == len(os.sched_getaffinity(0))


@for_each_row(
    [
        ({}, {}),
        ({"cpus": 2}, {"cpus": 2}),
        ({"memory": 512}, {}),
        ({"memory": 1024}, {"memory": 1024}),
        ({"iommu": True}, {"iommu": True}),
        ({"cpus": 4, "memory": 768, "iommu": True}, {"cpus": 4, "memory": 768, "iommu": True}),
    ]
)
def test_a_guest_of_a_cell_has_the_hardware_that_the_cell_has(
    values: Mapping[str, Any], hardware: Mapping[str, Any]
) -> None:
    cell = NightCell("g", {**USUALLY, "server": "edu", **values}, our_servers()["edu"])
    made = cell.guest_cell("/q", "edu")
    assert (made.hardware, made.qemu, made.interpose, made.dialect) == (hardware, "/q", False, "")
