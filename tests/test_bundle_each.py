"""Bundles in each case: what is kept, within what bound, what is told from either side, and what is left behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.bundle_kit import FAILED, RECIPE, make_results
from tests.interposer_bench import write
from tests.traced import CAUSES, REGISTERS, UP, Written
from userdev.errors import UserError, VerdictError
from userdev.trace import View
from vfio_user.bundle import Keeping, Outcome, Secrets, Seen, keeping, pack
from vfio_user.bundle.cores import TooLarge, pack_core
from vfio_user.bundle.difference import Difference, made_with_differences, outcome_differences
from vfio_user.bundle.model import QemuFacts
from vfio_user.bundle.of_tests import keeping_test
from vfio_user.bundle.packing import USUAL_MIB, checked_place
from vfio_user.bundle.reading import open_bundle
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


def test_packages_of_somebodys_own_qemu_are_no_difference() -> None:
    """They are no more than what it was found among."""
    for name, told in (("", []), ("default", ["QEMU's packages"])):
        one, other = (QemuFacts(version="1", program="a" * 64, packages=each, name=name) for each in ("x", "y"))
        recipes = [RECIPE.model_copy(update={"qemu": each}) for each in (one, other)]
        assert [each.what for each in made_with_differences(*recipes)] == told, name


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


def test_a_test_is_done_again_as_its_cell_says_but_for_what_the_run_wanted_of_it() -> None:
    cell = Cell(qemu="q", interpose=True, dialect="current", device="nvme", trace=True, capture_dma=True)
    cell = replace(cell, bundle="always", bundle_size=3, servers={"edu": "./s {socket}"}, hardware={"cpus": 2})
    told = keeping_test("a.py:A.test_it", cell).recipe.cell
    assert Cell(**told) == replace(cell, bundle="", bundle_size=0, trace=False)


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
    for words in (
        ["--token", "--verbose"],
        ["--api-key", "-v", "run"],
        ["--tokens-file", "--xyz"],
        ["token", "xyz"],
        ["--verbose", "xyz"],
        ["-t", "xyz"],
    ):
        assert secrets.words(words) == words
