"""A run's folder and its steps: what is made, what of it goes again, and when each step was."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vfio_user.harness import artifacts
from vfio_user.harness.artifacts import RESULTS_VARIABLE, Timeline, drop_results, results_folder


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = [results_folder("run", tmp_path) for _ in range(3)]
    assert len({*folders}) == 3
    assert all(folder.is_dir() and folder.name.startswith("run-") for folder in folders)


def test_results_that_are_dropped_leave_the_folder_of_all_where_it_is_somebodys_or_has_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for named, others, stays in ((True, False, True), (False, True, True), (False, False, False)):
        if named:
            monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path / "results"))
        else:
            monkeypatch.delenv(RESULTS_VARIABLE, raising=False)
        folder = results_folder("run")
        (folder / "log").write_text("said")
        other = results_folder("other") if others else None
        drop_results(folder)
        assert (tmp_path / "results").is_dir() is stays, (named, others)
        assert not folder.exists()
        if other is not None:
            other.rmdir()


def test_steps_are_told_with_when_they_began_how_long_they_took_and_how_they_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(50.0, 2.0)
    clock = SimpleNamespace(monotonic=lambda: next(now), time=lambda: 1e9)
    monkeypatch.setattr(artifacts, "time", clock)
    timeline, begun = Timeline(), list[str]()  # at 50
    timeline.begun = begun.append
    with timeline.step("boot"):  # from 52 to 54
        pass
    with pytest.raises(ValueError, match="gone"), timeline.step("plug"):  # from 56 to 58
        raise ValueError("gone")
    timeline.write(tmp_path / "timeline.json")
    told = json.loads((tmp_path / "timeline.json").read_text())
    usual = {"seconds": 2.0, "when": 1e9}
    assert told == [
        {"what": "boot", "began": 2.0, "error": "", **usual},
        {"what": "plug", "began": 6.0, "error": "ValueError: gone", **usual},
    ]
    assert begun == ["boot", "plug"]
