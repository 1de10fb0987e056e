"""A machine for a checkpoint: whatever host it is on, what it loads is there, and nothing that made it is left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vfio_user.harness import cache, restoring
from vfio_user.harness import lab as harness_lab
from vfio_user.harness.checkpoint import Checkpoint
from vfio_user.harness.command_line import MachineConfig
from vfio_user.harness.guest import GuestFailure, GuestLost
from vfio_user.harness.guest_spec import GuestSpec
from vfio_user.harness.hosts.host import LOCAL, Host
from vfio_user.harness.machine import MachineError
from vfio_user.harness.memory_file import MemoryFile
from vfio_user.harness.mishaps import GuestCrash
from vfio_user.harness.qmp import QmpLost, QmpTimeout
from vfio_user.harness.restoring import load, loadable, waiting_for

MAKING = ["load state", "save"]
SPEC = GuestSpec("guest", cast(Any, None), MachineConfig("q35", "tcg", memory=128))


class Elsewhere:
    """A host that cannot be handed a file."""

    name = "elsewhere"
    shares_memory = False


class Lab:
    """Starts machines, each of which notes what it was asked; one thing fails."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.done: list[str] = []
        self.provided: list[Path] = []

    def __call__(self, spec: GuestSpec, /, *, restore: bool, memory: MemoryFile | None) -> Any:
        assert restore
        self.done.append(f"start on {spec.host.name} {'with' if memory is not None else 'without'} memory")
        if memory is not None:
            memory.close()
        return self

    def provide(self, host: Host, path: Path) -> None:
        self.provided.append(path)

    def load(self, path: Path) -> None:
        self._do(f"load {path.name}")

    def save(self, path: Path) -> None:
        path.write_text("all")
        self._do("save")

    def stop(self) -> None:
        self.done.append("stop")

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what == self.fails:
            raise OSError(what)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path))
    made = Checkpoint("name")

    def write(memory: Path, state: Path) -> None:
        memory.write_bytes(bytes(1 << 20))
        state.write_text("state")

    made.ensure(write)
    return made


def elsewhere() -> GuestSpec:
    return replace(SPEC, host=cast(Any, Elsewhere()))


def test_here_a_machine_has_the_memory_and_loads_the_devices(checkpoint: Checkpoint) -> None:
    lab = Lab()
    waiting_for(checkpoint, SPEC, lab)
    assert loadable(checkpoint, SPEC, lab, lab.provide) == checkpoint.state
    assert (lab.done, lab.provided) == ([f"start on {LOCAL.name} with memory"], [])


def test_elsewhere_it_loads_one_file_which_is_made_here_once(checkpoint: Checkpoint) -> None:
    lab = Lab()
    waiting_for(checkpoint, elsewhere(), lab)
    whole = [loadable(checkpoint, elsewhere(), lab, lab.provide) for _ in range(2)]
    assert lab.done == ["start on elsewhere without memory", f"start on {LOCAL.name} with memory", *MAKING, "stop"]
    assert whole == lab.provided == [checkpoint.folder / "whole"] * 2
    assert whole[0].read_text() == "all"


def test_a_checkpoint_that_was_made_anew_meanwhile_is_not_taken_for_the_one_before(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A guest with the memory of one and the devices of the other would run, and go wrong somewhere."""
    stamp, lab = checkpoint.stamp, Lab()

    def restored(meanwhile: Callable[[], object]) -> None:
        machine: Any = SimpleNamespace(load=lambda _: meanwhile())
        load(machine, checkpoint, stamp, SPEC, lab, lab.provide)

    def made_anew() -> None:
        checkpoint.ensure(lambda memory, state: (memory.write_text("other"), state.write_text("other"), None)[-1])

    restored(lambda: None)
    restored(lambda: checkpoint.folder.rename(tmp_path / "pruned"))
    with pytest.raises(MachineError, match="made anew"):
        restored(made_anew)


def test_a_host_gets_a_file_once_and_again_when_it_was_written_anew(tmp_path: Path) -> None:
    """As the one of a checkpoint that did not load, and was made again."""
    got: list[Path] = []
    host: Any = SimpleNamespace(name="elsewhere", provide=lambda *paths: got.extend(paths))
    lab, file = harness_lab.Lab(folder=tmp_path), tmp_path / "whole"
    for moment in (1, 1, 2):
        file.touch()
        os.utime(file, (moment, moment))
        lab._provide(host, file, tmp_path / "not there")
    lab.close()
    assert got == [tmp_path / "not there", file, file]


def test_a_machine_that_could_not_make_it_is_stopped_and_it_is_made_the_next_time(checkpoint: Checkpoint) -> None:
    for number, fails in enumerate(MAKING, 1):
        lab = Lab(fails)
        with pytest.raises(OSError, match=fails):
            loadable(checkpoint, elsewhere(), lab, lab.provide)
        assert lab.done[1:] == [*MAKING[:number], "stop"]
        assert lab.provided == []
    lab = Lab()
    assert loadable(checkpoint, elsewhere(), lab, lab.provide).read_text() == "all"


def test_a_checkpoint_that_is_not_good_is_made_once_more_whatever_shows_that(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second one that is no better is not to blame, and neither is one that this run has made itself."""
    monkeypatch.setattr(harness_lab, "Checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(harness_lab, "checkpoint_name", lambda *_: "name")
    shown = {
        "QEMU refuses it": MachineError("Not a migration stream"),
        "QEMU ends of it": QmpLost("guest was gone"),
        "QEMU is silent": QmpTimeout("no MIGRATION event"),
        "the guest is silent": GuestLost("no answer"),
        "the guest is reset": GuestCrash("was reset"),
        "the guest's agent is not itself": GuestFailure("could not do 'hello'"),
    }
    for bad, (case, error) in ((bad, item) for bad in (1, 2) for item in shown.items()):
        starts, made = Lab(), list[str]()
        monkeypatch.setattr(restoring, "waiting_for", lambda *_, starts=starts: starts)
        monkeypatch.setattr(starts, "go_on", lambda: None, raising=False)
        lab = harness_lab.Lab(folder=tmp_path / f"{case}{bad}")
        lab.__dict__["qemu"] = SimpleNamespace(digest="q")

        def answering(*_: object, starts: Lab = starts, bad: int = bad, error: Exception = error) -> Any:
            if starts.done.count("load state") <= bad:
                raise error
            return SimpleNamespace(agent=SimpleNamespace(tell_restored=lambda: None))

        def make(memory: Path, state: Path, _: object, made: list[str] = made) -> None:
            made.append("again")
            memory.write_bytes(bytes(1 << 20))
            state.write_text("state")

        monkeypatch.setattr(lab, "_answering", answering)
        monkeypatch.setattr(lab, "_make_checkpoint", make)
        with pytest.raises(type(error)) if bad > 1 else contextlib.nullcontext():
            lab._running(replace(SPEC, image=cast(Any, SimpleNamespace(digest="i", host_key="k"))))
        lab.__dict__.pop("qemu")
        lab.close()
        assert (made, starts.done) == (["again"], ["load state", "stop", "load state"]), (case, bad)
