"""`run` and `migrate` without a guest: what they ask for, in which order, and what they end with."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from userdev.errors import UserError, VerdictError
from userdev.interposer.faults.use import RuleShown
from vfio_user.cli import exec, migrate, run
from vfio_user.harness import guest
from vfio_user.harness.artifacts import Timeline
from vfio_user.harness.exercises import EXERCISES, Exercise
from vfio_user.harness.guest import GuestFailure
from vfio_user.harness.hosts import Pair
from vfio_user.harness.hosts.host import LOCAL, HostFailure
from vfio_user.harness.interposition import Interposition
from vfio_user.harness.migration import Mode, Plan, Report, Verdict

EDU = (0x1234, 0x11E8)
PARTS = len(EXERCISES["edu"].parts)


def exercise(ok: bool = True) -> Exercise:
    return Exercise("it", ok=ok, seen={"value": 7}, wrong=() if ok else ("it read 8",), device={}, seconds=0.0)


class PretendedLab:
    """A lab whose guest has seen what it is told to, part by part."""

    def __init__(self, folder: Path, ids: tuple[int, int], seen: Sequence[bool]) -> None:
        self.folder, self.timeline = folder, Timeline()
        self.failure: VerdictError | None = None
        self.asked: dict[str, Any] = {}
        self.servers: list[Any] = []
        self._seen = [*seen]
        plugged = SimpleNamespace(address="0000:00:05.0", vendor=ids[0], device=ids[1])
        self._guest = SimpleNamespace(device=plugged, collect=lambda _: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def boot(self, device: object, **asked: Any) -> Any:
        self.asked |= {"device": device, **asked}
        return self._guest

    def exercise(self, *_: object) -> Exercise:
        return exercise(self._seen.pop(0))


def ran(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *words: str,
    ids: tuple[int, int] = EDU,
    seen: Sequence[bool] = (True,) * PARTS,
    rules: Sequence[RuleShown] = (),
) -> tuple[Result, PretendedLab]:
    lab = PretendedLab(folder, ids, seen)
    control = SimpleNamespace(call=lambda command: {"rules": [*rules]})
    lab.servers.append(SimpleNamespace(has_faults=True, control=control))

    def made(name: str, **asked: Any) -> PretendedLab:
        lab.asked |= asked
        return lab

    monkeypatch.setattr(run, "Lab", made)
    monkeypatch.setattr(run, "exercise", lab.exercise)
    return CliRunner().invoke(run.command, ["--json", *words]), lab


def test_what_a_run_puts_before_its_server_has_all_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = tmp_path / "faults.yaml"
    faults.touch()
    with_faults = ("--faults", str(faults))
    for words, wanted in (
        ((), False),
        (("--interpose",), True),
        (with_faults, faults),
        (("--interpose", *with_faults), faults),
        (("--trace",), Interposition(capture_interrupts=True)),
        (("--trace", *with_faults), Interposition(faults, capture_interrupts=True)),
        (("--capture-dma",), Interposition(capture_dma=True)),
        (("--capture-dma", *with_faults), Interposition(faults, capture_dma=True)),
        (("--capture-dma", "--trace", *with_faults), Interposition(faults, capture_dma=True, capture_interrupts=True)),
    ):
        done, lab = ran(monkeypatch, tmp_path, *words)
        assert done.exit_code == 0, (words, done.output)
        assert lab.asked["interpose"] == wanted, words


def test_a_run_whose_faults_did_not_happen_has_no_verdict_unless_the_guest_saw_something_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule with a wrong offset matched nothing, and the guest had "survived" it: All right."""
    faults = tmp_path / "faults.yaml"
    faults.touch()
    acted: RuleShown = {"name": "lose", "matched": 3, "acted": 1, "in_vain": 0, "probability": 1}
    never: RuleShown = {**acted, "matched": 0, "acted": 0}
    nth: RuleShown = {**acted, "acted": 0}
    right, wrong = (True,) * PARTS, (*(True,) * (PARTS - 1), False)
    for rules, seen, said, error in (
        ([acted], right, "", None),
        ([acted, never], right, "'lose' never acted: no message matched it", UserError),
        ([acted, nth], right, "'lose' never acted: of 3 messages that matched none was its nth", UserError),
        ([nth | {"probability": 0.1}], right, "", None),
        ([never], wrong, "'lose' never acted: no message matched it", VerdictError),
        ([acted], wrong, "", VerdictError),
        ([acted, never], wrong, "'lose' never acted: no message matched it", VerdictError),
    ):
        done, lab = ran(monkeypatch, tmp_path, "--faults", str(faults), seen=seen, rules=rules)
        report = json.loads(done.output)
        assert report["untried"] == ([said] if said else []), rules
        assert report["ok"] is (error is None), rules
        assert report["acted"] == (["'lose' acted once"] if acted in rules else []), rules
        assert type(lab.failure) is (error or type(None)), rules
        if error is UserError:
            assert str(lab.failure) == f"{faults}: the rule {said}"
        if error is VerdictError:
            assert ("behind faults that were put in" in str(lab.failure)) is (acted in rules), rules
            assert getattr(lab.failure, "__notes__", []) == ([f"of its faults {said}"] if said else []), rules


def test_a_run_is_good_only_where_every_part_was_tried_and_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, other = (True,) * PARTS, (0x1AF4, 0x10F0)
    for ids, seen, tried, said in (
        (EDU, right, PARTS, ""),
        (other, right, PARTS, ""),
        (EDU, (*right[:-1], False), PARTS, "it read 8"),
        (EDU, (False, *right[1:]), PARTS, "it read 8"),
        (other, (False, *right[1:]), 1, f"{PARTS - 1} other parts not tried"),
    ):
        done = ran(monkeypatch, tmp_path, ids=ids, seen=seen)[0]
        report = json.loads(done.output)
        assert (len(report["parts"]), len(report["left_out"])) == (tried, PARTS - tried), (ids, seen)
        assert report["ok"] is (not said), (ids, seen)
        if said:
            assert isinstance(done.exception, VerdictError)
            told = "\n".join((done.exception.evidence, *getattr(done.exception, "__notes__", ())))
            assert said in told, (ids, seen)
        else:
            assert done.exit_code == 0


class PretendedWork:
    """Work that was begun with a device."""

    def __init__(self, name: str, ok: bool, done: list[str]) -> None:
        self.name, self._ok, self._done = name, ok, done

    def start(self, guest: object, plugged: object) -> PretendedWork:
        self._done.append(f"start {self.name}")
        return self

    def end(self) -> Exercise:
        self._done.append(f"end {self.name}")
        return exercise(self._ok)


def test_work_goes_on_for_a_while_behind_a_migration_and_all_of_it_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("vfio_user.cli.migrate.time.sleep", lambda seconds: done.append(f"{seconds:g} s"))
    monkeypatch.setattr(migrate, "require_migratable", lambda guest: done.append("ask"))
    for mode, works, verdict, wanted in (
        ("auto", [True, True], Verdict.MIGRATED, ["ask", "start 0", "start 1", "migrate", "2.5 s", "end 0", "end 1"]),
        ("auto", [True, False], Verdict.LOST, ["ask", "start 0", "start 1", "migrate", "2.5 s", "end 0", "end 1"]),
        ("auto", [False, True], Verdict.LOST, ["ask", "start 0", "start 1", "migrate", "2.5 s", "end 0", "end 1"]),
        ("direct", [False], Verdict.LOST, ["start 0", "migrate", "2.5 s", "end 0"]),
        ("auto", [None, True], Verdict.MIGRATED, ["ask", "start 1", "migrate", "2.5 s", "end 1"]),
        ("auto", [None], Verdict.MIGRATED, ["ask", "migrate"]),
    ):
        done.clear()
        begun: list[Any] = [
            SimpleNamespace(start=lambda *_: None) if ok is None else PretendedWork(str(number), ok, done)
            for number, ok in enumerate(works)
        ]
        guest: Any = SimpleNamespace(devices=works)

        def migrated(*_: object, **__: object) -> Report:
            done.append("migrate")
            return Report(Mode.AUTO, "a", "b", verdict=Verdict.MIGRATED)

        lab: Any = SimpleNamespace(migrate=migrated, lost_connection="")
        pair = Pair(LOCAL, LOCAL, "both are here")
        report, exercises = migrate._migrated(lab, guest, begun, pair, mode, Plan(), None, 2.5)
        assert done == wanted, (mode, works)
        assert report.verdict is verdict, (mode, works)
        assert [each.ok for each in exercises] == [ok for ok in works if ok is not None]
        assert report.notes == ["both are here"]


def test_what_the_work_comes_to_behind_a_migration_says_nothing_of_the_guest_where_a_host_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = "the SSH connection to b has ended"
    monkeypatch.setattr(migrate, "require_migratable", lambda guest: None)
    report = Report(Mode.AUTO, "a", "b", verdict=Verdict.MIGRATED)
    lab: Any = SimpleNamespace(migrate=lambda *_, **__: report, lost_connection=lost)
    guest: Any = SimpleNamespace(devices=[None])

    def raising() -> Exercise:
        raise GuestFailure("it gives no report")

    def after(end: Callable[[], Exercise]) -> Report:
        work: Any = SimpleNamespace(start=lambda *_: SimpleNamespace(end=end))
        return migrate._migrated(lab, guest, [work], Pair(LOCAL, LOCAL), "auto", Plan(), None, 0)[0]

    with pytest.raises(HostFailure, match=lost) as told:
        after(raising)
    assert "it gives no report" in told.value.evidence
    assert after(lambda: exercise(ok=False)).hindered == lost


class Stream(io.TextIOWrapper):
    """A stream of this process, which is a terminal or is none."""

    def __init__(self, is_terminal: bool) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding="utf-8")
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def test_a_command_that_took_too_long_is_told_beside_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """124 alone may be the command's own."""

    class Pretended(PretendedLab):
        def boot(self, device: object = None, **asked: Any) -> Any:
            return super().boot(device, **asked)

    monkeypatch.setattr(exec, "Lab", lambda *_, **__: Pretended(tmp_path, EDU, ()))
    for timed_out, told in ((False, ""), (True, "error: the command was ended after 1 s, as --timeout says\n")):
        ended = guest.Result("sleep 5", 124, "", "", 1.0, timed_out)
        monkeypatch.setattr(exec, "_result", lambda *_, ended=ended: ended)
        done = CliRunner().invoke(exec.command, ["--quiet", "--timeout", "1", "--", "sleep 5"])
        assert (done.exit_code, done.stderr) == (124, told), timed_out


def test_what_a_command_printed_goes_where_it_printed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes for another program; a terminal is shown their text, of either stream by itself."""
    result: Any = SimpleNamespace(raw=(b"out \xff", b"err \xfe"), stdout="out ?", stderr="err !")
    for out, err in product((False, True), (False, True)):
        streams = Stream(out), Stream(err)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", streams[0])
            patched.setattr(sys, "stderr", streams[1])
            exec._pass_on(result)
        told = [each.raw_bytes.getvalue() for each in streams]
        assert told == [b"out ?" if out else b"out \xff", b"err !" if err else b"err \xfe"], (out, err)
