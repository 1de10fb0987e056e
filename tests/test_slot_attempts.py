"""A test's attempts on slots: which slot is taken, and what becomes of one that dies or is ended meanwhile."""

from __future__ import annotations

import asyncio
import json
import queue
import signal
import subprocess
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each
from vfio_user.nightly.place import Ran
from vfio_user.nightly.slot_spawner import Pool, SlotCommand, _Attempts


def slot(name: str, parallel: int = 1) -> SlotCommand:
    return SlotCommand(name, parallel, ["true"], "/x")


def test_the_slot_with_most_room_is_taken(tmp_path: Path) -> None:
    pool = Pool([slot("a"), slot("b", 2)])
    taken = [pool.take() for _ in range(3)]
    assert sorted(one.name for one in taken if one) == ["a", "b", "b"]


def test_a_slot_that_has_died_is_not_taken_again() -> None:
    pool = Pool([slot("a")])
    first = pool.take()
    assert first is not None
    pool.give_back(first, died=True)
    assert pool.take() is None


def test_whoever_waits_for_a_slot_has_one_that_is_free_again_or_hears_that_there_is_none() -> None:
    for died in (False, True):
        pool, taken = Pool([slot("a")]), queue.SimpleQueue[SlotCommand | None]()
        first = pool.take()
        assert first is not None
        for _ in range(2):
            threading.Thread(target=lambda pool=pool, taken=taken: taken.put(pool.take()), daemon=True).start()
        pool.give_back(first, died=died)
        found = taken.get(timeout=10)
        assert (found is None) is died
        if found is not None:
            pool.give_back(found, died=True)
        assert taken.get(timeout=10) is None


def test_an_attempt_says_that_a_test_has_begun_once_and_is_not_repeated_where_somebody_has_ended_it(
    tmp_path: Path,
) -> None:
    lines = [b"started on a\n", b'{"status": "started"}\n', b'{"status": "running"}\n', b'{"status": "finished"}\n']
    for number, said in ((1, ["started", "running", "finished"]), (2, ["running", "finished"])):
        posted: list[Mapping[str, object]] = []
        attempts = _Attempts.__new__(_Attempts)
        attempts._logdir = tmp_path
        attempts._posts = [SimpleNamespace(post=posted.append)]
        attempts._task = SimpleNamespace(identifier="1-x", job_id="y")
        attempts._first = attempts._began = 0.0
        assert attempts._pass_on(lines, Ran("a", number)) == (True, True)
        assert [message["status"] for message in posted] == said
        assert json.loads((tmp_path / "slot.json").read_text()) == {"slot": "a", "attempts": number}
        assert attempts._pass_on(lines[:2], Ran("a", number)) == (True, False)


class EndedMeanwhile(_Attempts):
    """One that avocado ends while it runs, or does not; one that was ended before is ended by a signal."""

    is_ended: bool

    def _pass_on(self, lines: Iterable[bytes], attempt: Ran) -> tuple[bool, bool]:
        passed = super()._pass_on(lines, attempt)
        self._ended = self.is_ended
        return passed


def test_a_slot_has_died_where_its_connection_ended_before_the_test_and_nobody_had_ended_that(tmp_path: Path) -> None:
    finished = """echo '{"status": "finished"}';"""
    for says, status, ended, died in (
        ("", 255, False, True),
        ("", 255, True, False),
        ("", 1, False, False),
        ("", 0, False, False),
        (finished, 255, False, False),
    ):
        attempts = EndedMeanwhile.__new__(EndedMeanwhile)
        attempts._logdir, attempts._ended, attempts._posts = tmp_path, False, []
        attempts.is_ended = ended
        attempts._task = SimpleNamespace(identifier="1-x", job_id="y", get_command_args=list)
        attempts._first = 0.0
        found = attempts._attempt(SlotCommand("a", 1, ["sh", "-c", f"{says} exit {status}"], "/x"), 0)
        assert found == (False, bool(says), died), (says, status, ended)


def test_a_test_that_is_ended_while_it_waits_for_another_slot_is_not_begun_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[Mapping[str, object]] = []
    service = SimpleNamespace(post=told.append, close=lambda: None)
    monkeypatch.setattr("vfio_user.nightly.slot_spawner.TaskStatusService", lambda uri: service)
    task = SimpleNamespace(
        runnable=SimpleNamespace(output_dir=str(tmp_path)),
        status_services=[SimpleNamespace(uri="x")],
        get_command_args=list,
        identifier="1-x",
        job_id="y",
    )
    dies, begins = ["sh", "-c", "exit 255"], ["sh", "-c", f"echo begun >> {tmp_path}/begun"]
    pool = Pool([SlotCommand("a", 1, dies, "/x"), SlotCommand("b", 1, begins, "/x")])
    of_its_own, of_another = pool.take(), pool.take()
    assert of_another is not None
    begun = queue.SimpleQueue[_Attempts]()

    def take() -> SlotCommand | None:
        begun.get(timeout=30).terminate()
        pool.give_back(of_another, died=False)
        return Pool.take(pool)

    async def run() -> None:
        monkeypatch.setattr(pool, "take", take)
        attempts = _Attempts(task, pool, of_its_own)
        begun.put(attempts)
        await asyncio.wait_for(attempts.wait(), 30)

    asyncio.run(run())
    assert not (tmp_path / "begun").exists()
    assert [message["status"] for message in told] == ["started", "finished"]
    assert pool._free == {"a": 1, "b": 1}, "nobody holds a slot"


def test_a_test_that_is_ended_before_its_relay_is_there_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempts = _Attempts.__new__(_Attempts)
    attempts._logdir, attempts._ended, attempts._posts, attempts._relay = tmp_path, False, [], None
    attempts.returncode = None
    attempts._task = SimpleNamespace(identifier="1-x", job_id="y", get_command_args=list)
    usual, relays = subprocess.Popen, list[subprocess.Popen[bytes]]()

    def late(*arguments: Any, **named: Any) -> subprocess.Popen[bytes]:
        attempts.terminate()
        relays.append(usual(*arguments, **named))
        return relays[0]

    monkeypatch.setattr("vfio_user.nightly.slot_spawner.subprocess.Popen", late)
    assert attempts._attempt(SlotCommand("a", 1, ["sh", "-c", "exec sleep 20"], "/x"), 0) == (False, False, False)
    assert [relay.returncode for relay in relays] == [-signal.SIGTERM]


@for_each([["/none/there"], ["sh", "-c", "echo '{no message'; exec sleep 60"]], ids=["no program", "no message"])
def test_a_slot_whose_relay_goes_wrong_is_free_again_and_the_test_has_an_end(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[Mapping[str, object]] = []
    service = SimpleNamespace(post=told.append, close=lambda: None)
    monkeypatch.setattr("vfio_user.nightly.slot_spawner.TaskStatusService", lambda uri: service)
    task = SimpleNamespace(
        runnable=SimpleNamespace(output_dir=str(tmp_path)),
        status_services=[SimpleNamespace(uri="x")],
        get_command_args=list,
        identifier="1-x",
        job_id="y",
    )
    pool = Pool([SlotCommand("a", 1, command, "/x")])

    async def run() -> None:
        await asyncio.wait_for(_Attempts(task, pool, pool.take()).wait(), 30)

    asyncio.run(run())
    assert [message["status"] for message in told] == ["started", "finished"]
    taken: list[SlotCommand | None] = []
    again = threading.Thread(target=lambda: taken.append(pool.take()), daemon=True)
    again.start()
    again.join(10)
    assert taken
