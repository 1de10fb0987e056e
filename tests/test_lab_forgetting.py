"""A lab that goes on for a night lets go of the machines that its guest has left; in the end it lets go of all."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.cases import for_each
from userdev.errors import UserError
from userdev.process import Child
from vfio_user.harness.artifacts import write_text
from vfio_user.harness.lab import Lab
from vfio_user.harness.records import Records, belongs_to


@for_each(["guest", "guest-dev0-edu", "guest.qmp.log", "guest-dev0-edu.server.log"])
def test_processes_and_logs_belong_to_a_machine(name: str) -> None:
    assert belongs_to("guest", name)
    assert not belongs_to("guest.1", name)


@for_each(["guest.1", "guest.1-guest-dev0", "guest.1.qmp.log", "guests", "other.qmp.log"])
def test_those_of_its_next_machine_do_not(name: str) -> None:
    assert not belongs_to("guest", name)
    assert not belongs_to("guest.10", name)


def test_what_has_ended_and_is_forgotten_leaves_nothing_but_its_command(tmp_path: Path) -> None:
    with Lab(folder=tmp_path) as lab:
        first, second = (lab.serve("edu", name) for name in ("guest-dev0-edu", "guest.1-guest-dev0"))
        lab.records.forget("guest")
        assert first.log.exists(), "it runs"
        lab.end(None, [first])
        lab.records.forget("guest")
        assert not first.log.exists()
        assert second.log.exists()
        gone = weakref.ref(first.child)
        del first
        gc.collect()
        assert gone() is None
    assert all(name in (tmp_path / "commands.txt").read_text() for name in ("guest-dev0-edu", "guest.1-guest-dev0"))


def test_a_server_whose_program_is_not_there_is_told_before_an_image_is_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-program").touch()
    for command, why in (("./nothing {socket}", "No such file"), ("./no-program {socket}", "Permission denied")):
        with Lab(folder=tmp_path / "lab") as lab, pytest.raises(UserError, match=why):
            lab.boot(command, image="no-such-image")


def test_a_lab_ends_all_else_where_one_thing_cannot_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(folder=tmp_path)
    first, second = (lab.serve("edu", name) for name in ("one", "two"))
    scratch = first.path.parent
    stop = first.stop

    def stop_and_fail() -> None:
        stop()
        raise UserError("its interposer says nothing")

    monkeypatch.setattr(first, "stop", stop_and_fail)
    with pytest.raises(UserError, match="says nothing"):
        lab.close()
    assert not second.child.running
    assert not scratch.exists()
    assert (tmp_path / "timeline.json").exists()


def test_hosts_end_behind_all_that_runs_on_them_and_before_what_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    @contextmanager
    def hosts(kind: str) -> Iterator[SimpleNamespace]:
        try:
            yield SimpleNamespace(ways="")
        finally:
            ended.append(kind)
        if kind == "second":
            raise UserError("it stays")

    def noting(name: str) -> SimpleNamespace:
        child = SimpleNamespace(group_is_alive=lambda: ended.append(f"look at {name}"))
        return SimpleNamespace(stop=lambda: ended.append(name), child=child, name=name)

    monkeypatch.setattr("vfio_user.harness.lab.two_hosts", hosts)
    monkeypatch.setattr(Lab, "_write_records", lambda lab: ended.append("records"))
    lab = Lab(folder=tmp_path)
    for kind in ("first", "second"):
        lab.hosts(kind)
    lab.servers += [noting("one"), noting("two")]  # type: ignore[list-item]
    with pytest.raises(UserError, match="it stays"):
        lab.close()
    assert ended == ["one", "two", "look at one", "look at two", "second", "first", "records"]


def test_a_file_is_put_on_a_host_once_and_again_where_that_failed(tmp_path: Path) -> None:
    put: list[tuple[Path, ...]] = []
    fails = True

    def provide(*paths: Path) -> None:
        put.append(paths)
        if fails:
            raise UserError("the host is gone")

    host = SimpleNamespace(name="a", provide=provide)
    other = SimpleNamespace(name="b", provide=provide)
    one, two = tmp_path / "1", tmp_path / "2"
    lab = Lab(folder=tmp_path)
    with pytest.raises(UserError):
        lab._provide(host, one)
    fails = False
    for where, paths in ((host, (one,)), (host, (one, two)), (other, (one,)), (host, (two, one))):
        lab._provide(where, *paths)
    assert put == [(one,), (one,), (two,), (one,)]
    lab.close()


def test_what_ends_while_it_is_looked_for_was_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(psutil.Process):
        def __init__(self) -> None:
            super().__init__()

        def cmdline(self) -> list[str]:
            raise psutil.NoSuchProcess(self.pid)

        def kill(self) -> None:
            raise AssertionError("it has another's number by now")

    monkeypatch.setattr("vfio_user.harness.lab.processes_of", lambda _: [Ended()])
    Lab(folder=tmp_path).close()


def test_a_command_that_is_no_utf8_is_written_down_all_the_same(tmp_path: Path) -> None:
    word = os.fsdecode(b"\xff")
    child = Child("named", ["/bin/true", word], log=tmp_path / "named.log")
    Records(tmp_path).note(child)
    child.stop()
    write_text(tmp_path / "error.txt", word)
    assert "\\udcff" in (tmp_path / "commands.txt").read_text()
    assert "\\udcff" in (tmp_path / "error.txt").read_text()


def test_of_a_machine_that_is_forgotten_those_stay_that_run_or_crashed_with_their_files(tmp_path: Path) -> None:
    def child(name: str, **state: object) -> SimpleNamespace:
        usual = {"running": False, "crashed": False, "was_stopped": False}
        return SimpleNamespace(name=name, **{**usual, **state})

    for states, stays in (
        ([{}, {}], False),
        ([{}, {"running": True}], True),
        ([{"crashed": True}, {}], True),
        ([{"crashed": True, "was_stopped": True}, {}], False),
    ):
        records = Records(tmp_path)
        ours = [child(f"guest-{number}", **state) for number, state in enumerate(states)]
        other = child("guest.1-dev0")
        records.children = [*ours, other]  # type: ignore[list-item]
        for name in ("guest.qmp.log", "guest.1.qmp.log"):
            (tmp_path / name).touch()
        records.forget("guest")
        kept = [one for one in ours if one.running or (one.crashed and not one.was_stopped)]
        assert records.children == [*kept, other], states
        assert (tmp_path / "guest.qmp.log").exists() is stays, states
        assert (tmp_path / "guest.1.qmp.log").exists()
