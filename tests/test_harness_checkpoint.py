"""A checkpoint is used for exactly the guest it was made of, and made again when it is not good."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cases import for_each
from vfio_user.harness import cache, checkpoint, command_line
from vfio_user.harness.checkpoint import Checkpoint, checkpoint_name, checkpoints
from vfio_user.harness.command_line import MachineConfig

CONFIG = MachineConfig("pc-q35-11.1", "tcg")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path))


@for_each(
    [
        {"machine": "pc-q35-10.1"},
        {"accelerator": "kvm"},
        {"cpu": "max"},
        {"cpus": 2},
        {"memory": 1024},
        {"slots": 7},
        {"iommu": True},
        {"modules": ("uio",)},
        {"kernel_options": ("quiet",)},
        {"devices": ("edu",)},
    ]
)
def test_every_part_of_the_hardware_is_in_the_name(change: dict[str, object]) -> None:
    changed = replace(CONFIG, **change)  # type: ignore[arg-type]
    assert checkpoint_name("image", "qemu", changed) != checkpoint_name("image", "qemu", CONFIG)


def test_so_is_what_every_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device more in the command line, and no checkpoint of before fits."""
    before = checkpoint_name("i", "q", CONFIG)
    monkeypatch.setattr(command_line, "SLOT_MEMORY_64", 512)
    assert checkpoint_name("i", "q", CONFIG) != before


def test_image_and_qemu_are_in_the_name() -> None:
    names = {checkpoint_name(*parts, CONFIG) for parts in (("a", "b"), ("b", "a"), ("a", "a"))}
    assert len(names) == 3


def test_the_name_is_the_same_for_a_processor_named_or_meant() -> None:
    assert checkpoint_name("i", "q", CONFIG) == checkpoint_name("i", "q", replace(CONFIG, cpu="qemu64"))


def test_a_new_format_makes_every_name_new(monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint_name("i", "q", CONFIG)
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    assert checkpoint_name("i", "q", CONFIG) != before


def writing(text: str) -> Callable[[Path, Path], None]:
    def write(memory: Path, state: Path) -> None:
        memory.write_text(text)
        state.write_text("state")

    return write


def test_it_is_made_once() -> None:
    made = Checkpoint("one")
    assert made.ensure(writing("memory"))
    assert made.memory.read_text() == "memory"
    assert not made.ensure(lambda *_: pytest.fail("made again"))


@pytest.mark.parametrize("part", ["memory", "state"])
def test_a_cut_off_one_is_made_again(part: str) -> None:
    made = Checkpoint("one")
    made.ensure(writing("memory"))
    (made.folder / part).write_text("cut")
    assert made.ensure(writing("again"))
    assert (made.memory.read_text(), made.state.read_text()) == ("again", "state")


def test_that_for_another_host_is_made_once_and_goes_with_the_others() -> None:
    made = Checkpoint("one")
    made.ensure(writing("memory"))

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("the guest died")

    def all_of(text: str) -> Callable[[Path], None]:
        return lambda path: writing(text)(path, path.with_suffix(".state"))

    with pytest.raises(RuntimeError):
        made.whole(fail)
    assert made.whole(all_of("all")).read_text() == "all"
    assert made.whole(fail).read_text() == "all"
    made.discard(made.stamp)
    made.ensure(writing("memory"))
    assert made.whole(all_of("of now")).read_text() == "of now"


def test_a_failure_to_make_it_leaves_nothing() -> None:
    made = Checkpoint("one")

    def fail(memory: Path, _state: Path) -> None:
        memory.write_text("half")
        raise RuntimeError("the guest died")

    with pytest.raises(RuntimeError):
        made.ensure(fail)
    assert not made.is_valid()
    assert not made.folder.exists()


def test_two_runs_at_once_make_it_once() -> None:
    count = []

    def make(memory: Path, state: Path) -> None:
        count.append(1)
        writing("memory")(memory, state)

    threads = [threading.Thread(target=Checkpoint("one").ensure, args=(make,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [1]


def test_discarding_a_bad_one_spares_the_one_that_replaced_it() -> None:
    made = Checkpoint("one")
    made.ensure(writing("bad"))
    seen = made.stamp
    made.discard(seen)
    assert not made.is_valid()
    made.ensure(writing("good"))
    made.discard(seen)
    assert made.is_valid()


def test_those_not_used_for_longest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_KEPT", 2)
    for name in ("one", "two"):
        Checkpoint(name).ensure(writing("memory"))
    Checkpoint("one").ensure(lambda *_: pytest.fail("made again"))
    Checkpoint("three").ensure(writing("memory"))
    assert [name for name in ("one", "two", "three") if Checkpoint(name).is_valid()] == ["one", "three"]


def test_one_that_was_just_made_stays_though_all_others_are_of_a_clock_that_was_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And where there are two of it, neither has to go for one that nobody has used since."""
    monkeypatch.setattr(checkpoint, "_KEPT", 2)
    for name in ("one", "two"):
        Checkpoint(name).ensure(writing("memory"))
        os.utime(Checkpoint(name).folder, (2 << 31, 2 << 31))
    for name in ("three", "four"):
        Checkpoint(name).ensure(writing("memory"))
        assert Checkpoint(name).is_valid(), name
    assert [name for name in ("one", "two", "three", "four") if Checkpoint(name).is_valid()] == ["three", "four"]


def test_what_others_are_making_is_not_among_those_that_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts for none either, though it is the newest."""
    monkeypatch.setattr(checkpoint, "_KEPT", 2)
    Checkpoint("one").ensure(writing("memory"))
    makings = [Checkpoint("one").folder.parent / f".{name}.1.part" for name in ("old", "new", "newest")]
    for making, age in zip(makings, (1, 2 << 30, 2 << 30), strict=True):
        making.mkdir()
        os.utime(making, (age, age))
    Checkpoint("two").ensure(writing("memory"))
    assert all(making.exists() for making in makings)
    assert all(Checkpoint(name).is_valid() for name in ("one", "two"))


def test_what_a_killed_run_left_of_a_whole_file_is_no_part_of_it() -> None:
    made = Checkpoint("name")
    made.folder.mkdir(parents=True)
    left = made.folder / "whole.making"
    left.write_text("half of another")

    def appends(path: Path) -> None:
        with path.open("a") as file:
            file.write("all")

    assert made.whole(appends).read_text() == "all"
    assert not left.exists()


def test_what_is_still_being_made_is_no_checkpoint_yet(tmp_path: Path) -> None:
    named: list[list[str]] = []

    def look(memory: Path, state: Path) -> None:
        named.append([each.name for each in checkpoints()])
        writing("memory")(memory, state)

    for name in ("one", "two"):
        Checkpoint(name).ensure(look)
    assert named == [[], ["one"]]
    assert [each.name for each in checkpoints()] == ["one", "two"]
