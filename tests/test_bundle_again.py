"""What a bundle is of, done once more in each way that can end, and stood still at whatever it is called."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bundle_kit import FAILED, RECIPE, make_bundle, make_results
from tests.traced import REGISTERS, UP, Written
from userdev.errors import UserError, VerdictError
from vfio_user.bundle import Keeping, Outcome, again, standing
from vfio_user.bundle.again import Command, do_again, prepare
from vfio_user.bundle.model import QemuFacts
from vfio_user.bundle.reading import OpenBundle, open_bundle
from vfio_user.bundle.standing import Standing, place_of, run_gdb

# -- doing it again


def test_another_server_leaves_those_of_other_devices(tmp_path: Path) -> None:
    cell = {"servers": {"edu": "./mine {socket}", "nvme": "./fast {socket}"}}
    recipe = RECIPE.model_copy(update={"command": "test-e2e", "arguments": ("dma",), "cell": cell})
    make_bundle(tmp_path / "kept", recipe=recipe)
    command = Command.of(open_bundle(tmp_path / "kept")).with_server("edu=./other {socket}")
    assert command.cell.servers == {"edu": "./other {socket}", "nvme": "./fast {socket}"}


def test_a_bundle_of_tests_that_are_elsewhere_says_so_before_anything_is_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "ensure_qemu", lambda name="", *, progress: pytest.fail("QEMU was asked for"))
    for command, word in (("pytest", "test_mine.py::test_irq"), ("test-e2e", "test_mine.py:Mine.test_irq")):
        files = {"test_mine.py": "0" * 64}
        recipe = RECIPE.model_copy(update={"command": command, "arguments": (word,), "files": files})
        make_bundle(tmp_path / command, recipe=recipe)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"test_mine\.py from /") as refused:
            prepare(open_bundle(tmp_path / command), say=lambda _: None)
        assert "go where they are" in refused.value.hint


def test_the_qemu_that_was_said_comes_before_the_one_that_was_found_and_what_is_here_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that cannot be had is told."""
    for said, named, there, chosen in (
        ("said", "named", {"said", "named"}, "said"),
        ("said", "named", {"named"}, "named"),
        ("said", "named", {""}, ""),
        ("", "named", {"named"}, "named"),
        ("said", "", {"said"}, "said"),
        ("", "", {""}, ""),
    ):

        def ensure(name: str = "", *, progress: Any, there: set[str] = there) -> Any:
            if name not in there:
                raise UserError(f"there is no {name}")
            return SimpleNamespace(name=name)

        monkeypatch.setattr(again, "ensure_qemu", ensure)
        monkeypatch.setattr(again, "qemu_facts", lambda qemu: QemuFacts(version="1", name=qemu.name))
        monkeypatch.setattr(again, "probe_accelerator", lambda qemu: "tcg")
        arguments = (*RECIPE.arguments, *(("--qemu", said) if said else ()))
        recipe = RECIPE.model_copy(update={"arguments": arguments, "qemu": QemuFacts(version="1", name=named)})
        found: Any = SimpleNamespace(bundle=SimpleNamespace(recipe=recipe), arguments=list(arguments))
        told: list[str] = []
        assert prepare(found, say=told.append).command.qemu == chosen
        missed = [each for each in (said, named) if each and each not in there and chosen != said]
        assert [line.partition(",")[0] for line in told] == missed


class Once:
    """A run that leaves a bundle, or nothing."""

    last: Once

    def __init__(self, name: str, argv: list[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self.stopped = 0
        self.environment = environment
        Once.last = self

    def wait(self, seconds: float) -> None:
        return

    def stop(self, seconds: float) -> None:
        self.stopped += 1

    def last_words(self) -> str:
        return "its last words"

    def fate(self) -> str:
        return "ended with status 2"


def test_what_is_done_again_is_ended_whatever_becomes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "kept")
    found = open_bundle(tmp_path / "kept")
    monkeypatch.setattr(again, "Child", Once)

    def raises(error: BaseException) -> Any:
        def meanwhile(_: object) -> None:
            raise error

        return meanwhile

    for number, error in enumerate((VerdictError("no"), OSError(5, "no"), KeyboardInterrupt(), None)):
        meanwhile = raises(error) if error is not None else lambda _: None
        with pytest.raises(type(error) if error is not None else UserError) as ended:
            do_again(found, Command.of(found), tmp_path / str(number), meanwhile=meanwhile, environment={"X": "1"})
        assert Once.last.stopped == 1, error
        assert Once.last.environment["X"] == "1"
        if error is None:
            assert "its last words" in vars(ended.value)["evidence"]


def test_a_bundle_is_found_where_it_was_made_in_the_folder_or_by_its_tests_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "kept")
    found = open_bundle(tmp_path / "kept")
    for number, below in enumerate((".", "a-test")):

        class Leaves(Once):
            def wait(self, seconds: float, below: str = below, number: int = number) -> None:
                make_bundle(tmp_path / str(number) / "bundle" / below, outcome=Outcome(verdict="PASS"))

        monkeypatch.setattr(again, "Child", Leaves)
        attempt = do_again(found, Command.of(found), tmp_path / str(number))
        assert (attempt.verdict, attempt.same) == ("PASS", False), below
        assert attempt.as_dict()["bundle"] == str(tmp_path / str(number) / "bundle" / below), below


def test_programs_are_known_by_their_words(tmp_path: Path) -> None:
    results = make_results(tmp_path / "results", server="./server --name 'a b' s.sock")
    kept = Keeping("always", RECIPE, of="a run")
    programs = open_bundle(kept.make(results, FAILED)).bundle.recipe.programs
    assert [(each.name, each.command[:4]) for each in programs] == [
        ("guest-dev0-edu", ("./server", "--name", "a b", "s.sock")),
        ("guest", (str(results / "qemu-system-x86_64"), "-name", "guest")),
    ]


# -- standing still


def standing_bundle(tmp_path: Path, *servers: str, registers: list[dict[str, Any]] | None = None) -> OpenBundle:
    results = tmp_path / "kept-results"
    results.mkdir()
    for server in servers:
        with Written(results / f"{server}.trace", registers) as trace:
            trace.write(0, 1)
            trace.write(UP, 1)
            trace.read(0, 1)
    make_bundle(tmp_path / "kept")
    return open_bundle(tmp_path / "kept")


def test_a_place_says_where_also_at_the_beginning_of_a_region(tmp_path: Path) -> None:
    found = standing_bundle(tmp_path, "dev")
    said = {number: place_of(found, str(number)).said for number in range(2, 8)}
    assert said == {
        2: "REGION_WRITE BAR0+0x0",
        3: "REGION_WRITE BAR0+0x0 reply",
        4: f"REGION_WRITE BAR0+{UP:#x}",
        5: f"REGION_WRITE BAR0+{UP:#x} reply",
        6: "REGION_READ BAR0+0x0",
        7: "REGION_READ BAR0+0x0 reply",
    }


def test_a_place_is_called_as_its_register_and_its_server_are(tmp_path: Path) -> None:
    names = ("guest.1-dev0", "dev", "a:b")
    found = standing_bundle(tmp_path, *names, registers=REGISTERS)
    assert found.traces.keys() == {*names}
    for name in names:
        place = place_of(found, f"{name}:4")
        assert (place.server, place.said) == (name, "REGION_WRITE up")
        assert place.match["offset"] == UP


def test_processes_that_are_not_there_are_none() -> None:
    processes = {"guest": 7, "guest-b": 8}
    for server, pid, qemu in (("guest-dev0", 5, 7), ("guest-b-dev0", None, 8), ("other-dev0", 0, 7), ("guest-b", 1, 7)):
        control: Any = SimpleNamespace(call=lambda command, pid=pid: {"server_pid": pid})
        standing_there = Standing(processes, server, control)
        assert (standing_there.server_pid, standing_there.qemu_pid) == (pid or 0, qemu), server
    assert Standing({}, "guest-dev0", control).qemu_pid == 0


def test_what_names_no_record_is_refused_and_not_taken_for_one_nearby(tmp_path: Path) -> None:
    found = standing_bundle(tmp_path, "one", "two")
    assert place_of(found, "two:4").server == "two"
    for text in (
        "4",
        ":4",
        "three:4",
        "one:",
        "one:x",
        "one:-4",
        "one:\N{SUPERSCRIPT TWO}",
        "one:0",
        "one:99",
        "one:1",
    ):
        with pytest.raises(UserError):
            place_of(found, text)


def test_a_debugger_leaves_the_interrupt_key_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it cannot be started."""
    control: Any = SimpleNamespace(call=lambda command: called.append(command))
    called: list[str] = []
    monkeypatch.setattr(standing, "_is_traced", lambda pid: True)

    def mine(*_: object) -> None:
        return

    before = signal.signal(signal.SIGINT, mine)
    try:
        run_gdb(Standing({}, "dev", control), 1, ["true"], {})
        assert signal.getsignal(signal.SIGINT) is mine
        assert called == ["resume"], "it goes on once the debugger has it"
        with pytest.raises(OSError, match="nowhere"):
            run_gdb(Standing({}, "dev", control), 1, ["/nowhere/gdb"], {})
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)
