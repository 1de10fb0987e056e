"""Bundles in each case: what is kept, within what bound, what is told from either side, and what is left behind."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bundle_kit import FAILED, RECIPE, make_bundle, make_results
from tests.interposer_bench import write
from tests.traced import CAUSES, REGISTERS, UP, Written
from userdev.errors import UserError, VerdictError
from userdev.trace import View
from vfio_user.bundle import Keeping, Outcome, Secrets, Seen, again, keeping, pack, standing
from vfio_user.bundle.again import Command, do_again, prepare
from vfio_user.bundle.cores import TooLarge, pack_core
from vfio_user.bundle.difference import Difference, made_with_differences, outcome_differences
from vfio_user.bundle.model import QemuFacts
from vfio_user.bundle.of_tests import keeping_test
from vfio_user.bundle.packing import USUAL_MIB, checked_place
from vfio_user.bundle.reading import OpenBundle, open_bundle
from vfio_user.bundle.standing import Standing, place_of, run_gdb
from vfio_user.bundle.wire import wire_differences
from vfio_user.harness.cell import Cell

# -- what is otherwise, from either side


def test_what_is_otherwise_is_the_same_from_either_side(tmp_path: Path) -> None:
    """Also where only one of the two has it."""
    qemu = QemuFacts(version="11.1.3", program="a" * 64, packages="b" * 64, name="default")
    recipes = [
        RECIPE,
        *(
            RECIPE.model_copy(update=update)
            for update in (
                {"qemu": qemu},
                {"qemu": qemu.model_copy(update={"version": "12.0"})},
                {"images": {"minimal": "1" * 64}},
                {"images": {"minimal": "2" * 64, "storage": "3" * 64}},
                {"versions": {"python": "3.11"}},
                {"versions": {"kernel": "6.1", "python": "3.12"}},
                {"accelerator": "kvm"},
                {"files": {"./server": "5" * 64}},
            )
        ),
    ]
    outcomes = [
        Outcome(verdict="PASS"),
        FAILED,
        Outcome(verdict="FAIL", cause="it is another"),
        Outcome(verdict="PASS", saw=(Seen(what="one", ok=True, seen="1"),)),
        Outcome(verdict="PASS", saw=(Seen(what="one", ok=False, seen="1"), Seen(what="two", ok=True))),
        Outcome(verdict="PASS", saw=(Seen(what="two", ok=True),)),
    ]
    tables: list[tuple[Callable[[Any, Any], Iterator[Difference]], list[Any]]] = [
        (made_with_differences, recipes),
        (outcome_differences, outcomes),
    ]
    for compared, each in tables:
        for one, other in product(each, each):
            there = {(found.about, found.what, found.first, found.second) for found in compared(one, other)}
            back = {(found.about, found.what, found.second, found.first) for found in compared(other, one)}
            assert there == back, (one, other)
            assert one is not other or not there
    assert len([*made_with_differences(recipes[3], recipes[4])]) == 2, "an image that only the second has"


def test_what_was_on_the_wire_is_told_from_either_side_and_counted_where_it_went_on(tmp_path: Path) -> None:
    def written(name: str, *values: int, held: int | None = None, extra: bool = False) -> Path:
        with Written(tmp_path / name, REGISTERS) as trace:
            for value in values:
                trace.write(UP, value, posted=True)
            if held is not None:
                asked = _posted(held)
                trace.ask(asked, None, view=View.RECEIVED)
                trace.ask(asked, None, view=View.SENT)
            if extra:
                trace.read(CAUSES, 1)
        return tmp_path / name

    good = written("good", 1, 2, 3)
    for name, other, told in (
        ("same", written("same", 1, 2, 3), []),
        ("held", written("held", 1, 2, held=3), []),
        ("less", written("less", 1, 2), [("dev: REGION_WRITE up, from value 3 on", "0x3", "")]),
        ("more", written("more", 1, 2, 3, extra=True), [("dev: REGION_READ causes", "", "0x1")]),
        ("many", written("many", 1, *range(10, 20)), [("dev: REGION_WRITE up, from value 2 on", "0x2, 0x3", MANY)]),
    ):
        assert [*wire_differences({"dev": good}, {"dev": other})] == told, name
        back = [(what, second, first) for what, first, second in told]
        assert [*wire_differences({"dev": other}, {"dev": good})] == back, name


MANY = "0xa, 0xb, 0xc, 0xd, 0xe, 0xf and 4 more"


def _posted(value: int) -> Any:
    return write(0, UP, value.to_bytes(4, "little"), posted=True)


# -- what is kept


def test_a_bundle_is_kept_where_it_was_wanted_whatever_came_of_it(tmp_path: Path) -> None:
    """What went wrong is raised in any case, and says where the bundle is, or why there is none."""
    failures = (None, VerdictError("wrong"), UserError("no"), KeyboardInterrupt())
    for number, (wanted, failure, fits) in enumerate(product(("", "auto", "always", "there"), failures, (True, False))):
        place = tmp_path / f"there{number}"
        kept = Keeping(str(place) if wanted == "there" else wanted, RECIPE, of="a run", most=1 << 20 if fits else 10)
        raised: BaseException | None = None
        if failure is not None:
            vars(failure).pop("__notes__", None)
        try:
            _run(kept, tmp_path / f"results{number}", failure)
        except BaseException as error:
            raised = error
        due = wanted != "" and not isinstance(failure, KeyboardInterrupt) and not (wanted == "auto" and failure is None)
        case = (wanted, failure, fits)
        if failure is None:
            assert isinstance(raised, UserError) is (due and not fits), case
        else:
            assert raised is failure, case
            words = ("bundle: " if fits else "there is no bundle: ") if due else ""
            assert getattr(failure, "__notes__", []) == [] or words, case
            assert [note.partition(": ")[0] + ": " for note in getattr(failure, "__notes__", [])] == [words] * due, case
        assert (kept.place is not None) is (due and fits), case
        if kept.place is not None:
            assert kept.place == (place if wanted == "there" else tmp_path / f"results{number}" / "bundle"), case


def _run(kept: Keeping, folder: Path, failure: BaseException | None) -> None:
    with kept:
        kept.folder = make_results(folder)
        if failure is not None:
            raise failure


def test_several_bundles_of_one_folder_have_places_of_their_own(tmp_path: Path) -> None:
    for wanted in ("auto", "always"):
        folder = make_results(tmp_path / wanted)
        for number in range(3):
            kept = Keeping(wanted, RECIPE, of="a run")
            kept.make(folder, FAILED)
            assert kept.place == folder / ("bundle" if not number else f"bundle-{number + 1}")
        assert {open_bundle(each).bundle.outcome for each in folder.glob("bundle*")} == {FAILED}


def test_a_scenario_draws_by_its_seed_or_by_0(tmp_path: Path) -> None:
    for said, seed in (("seed: 7\n", 7), ("", 0), ("seed: no\n", 0), ("seed: null\n", 0)):
        scenario = tmp_path / "s.yaml"
        scenario.write_text(f"{said}rules: []\n")
        kept = Keeping("always", RECIPE, of="a run", inputs={"s.yaml": scenario})
        found = open_bundle(kept.make(make_results(tmp_path / "results"), FAILED))
        assert found.bundle.recipe.seeds == {"s.yaml": seed}, said


def test_a_bundle_of_a_test_has_the_bound_of_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[int] = []
    monkeypatch.setattr(keeping, "pack", lambda *_, most, **__: bounds.append(most))
    for size in (0, 1, 300):
        keeping_test("a.py:A.test_it", Cell(bundle="always", bundle_size=size)).make(tmp_path, FAILED)
    assert bounds == [USUAL_MIB << 20, 1 << 20, 300 << 20]


def test_a_bundle_has_a_place_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name, is_free in (
        *(("file", False), ("full", False), ("dangling", False), ("link", False)),
        *(("empty", True), ("new", True), ("new/below", True)),
    ):
        if is_free:
            assert checked_place(tmp_path / name) == tmp_path / name
        else:
            with pytest.raises(UserError, match="is there already"):
                checked_place(tmp_path / name)


# -- bounds


def test_no_bound_is_passed_though_what_is_taken_out_was_shorter_than_what_says_so(tmp_path: Path) -> None:
    secrets = Secrets((), {"A_TOKEN": "abcd"})
    results = make_results(tmp_path / "results")
    (results / "guest.trace.log").write_text("abcd\n" * 2000)
    (results / "guest.qemu.log").write_text("abcd abcd\n" * 300)
    (results / "guest.core").write_bytes(random.Random(1).randbytes(20_000) + bytes(50_000))
    whole = pack(results, tmp_path / "whole", RECIPE, FAILED, of="", secrets=secrets)
    assert {"guest.trace.log", "guest.qemu.log", "guest.core.zst"} <= whole.contents.keys()
    size = _size(tmp_path / "whole")
    fewer = 0
    for number, most in enumerate(range(size, 8000, -7777)):
        made = pack(results, tmp_path / f"b{number}", RECIPE, FAILED, of="", secrets=secrets, most=most)
        assert _size(tmp_path / f"b{number}") <= most, most
        listed = {path.name for path in (tmp_path / f"b{number}").iterdir()} - {"bundle.json"}
        assert listed == made.contents.keys(), "what was left out is not there"
        open_bundle(tmp_path / f"b{number}")
        fewer += len(made.contents) < len(whole.contents)
    assert fewer > 2


def test_what_has_no_room_once_its_secrets_are_out_takes_none_from_what_comes_behind(tmp_path: Path) -> None:
    secrets = Secrets((), {"A_TOKEN": "abcd"})
    results = make_results(tmp_path / "results")
    (results / "guest.trace.log").write_text("abcd\n" * 4000)  # 20,000 bytes, and 36,000 with what stands instead
    (results / "guest.core").write_bytes(random.Random(1).randbytes(4000))
    whole = pack(results, tmp_path / "whole", RECIPE, FAILED, of="", secrets=secrets)
    behind = ("guest.trace.log", "guest.core.zst", "index.html")
    most = sum(each.size for name, each in whole.contents.items() if name not in behind) + 28_000
    made = pack(results, tmp_path / "less", RECIPE, FAILED, of="", secrets=secrets, most=most)
    assert [name for name in behind if name in made.contents] == ["guest.core.zst"]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_core_is_written_where_it_has_room_to_its_last_byte(tmp_path: Path) -> None:
    for name, data in (("small", b"x" * 10), ("sparse", bytes(100_000)), ("dense", random.Random(2).randbytes(50_000))):
        core = tmp_path / name
        core.write_bytes(data)
        pack_core(core, tmp_path / "whole", Secrets((), {}), 1 << 20)
        size = (tmp_path / "whole").stat().st_size
        pack_core(core, tmp_path / "exact", Secrets((), {}), size)
        for room in (size - 1, size // 2, 0):
            with pytest.raises(TooLarge):
                pack_core(core, tmp_path / "less", Secrets((), {}), room)
            assert not (tmp_path / "less").exists(), (name, room)


# -- secrets


def test_a_secret_behind_an_option_is_taken_out_however_options_are_written() -> None:
    secrets = Secrets((), {})
    for option, dashes in product(("token", "api-key", "db-password"), ("-", "--")):
        for words in ([f"{dashes}{option}", "xyz"], [f"{dashes}{option}=xyz"], ["x", f"{dashes}{option}", "xyz", "-v"]):
            told = secrets.words(words)
            assert not any("xyz" in word for word in told), words
            assert len(told) == len(words), words
            assert "xyz" not in secrets.text(" ".join(words)), words
    for words in (["--tokens-file", "--xyz"], ["token", "xyz"], ["--verbose", "xyz"], ["-t", "xyz"]):
        assert secrets.words(words) == words


# -- doing it again


def test_another_server_leaves_those_of_other_devices(tmp_path: Path) -> None:
    cell = {"servers": {"edu": "./mine {socket}", "nvme": "./fast {socket}"}}
    recipe = RECIPE.model_copy(update={"command": "test-e2e", "arguments": ("dma",), "cell": cell})
    make_bundle(tmp_path / "kept", recipe=recipe)
    command = Command.of(open_bundle(tmp_path / "kept")).with_server("edu=./other {socket}")
    assert command.cell.servers == {"edu": "./other {socket}", "nvme": "./fast {socket}"}


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
            assert "its last words" in vars(ended.value)["hint"]


# -- standing still


def standing_bundle(tmp_path: Path, *servers: str) -> OpenBundle:
    results = tmp_path / "kept-results"
    results.mkdir()
    for server in servers:
        with Written(results / f"{server}.trace") as trace:
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
