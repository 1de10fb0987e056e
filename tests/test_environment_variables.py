"""Each variable of docs/reference/environment.md acts where nothing else is said, and is refused in a sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from userdev.errors import UserError
from vfio_user import cli
from vfio_user.avocado_job.surroundings import prepare_environment
from vfio_user.harness import qemu
from vfio_user.harness.artifacts import results_root
from vfio_user.harness.cache import cache_dir
from vfio_user.harness.timeouts import patience


def chosen() -> tuple[str, ...]:
    """The QEMU that is used where none is named."""
    return qemu.find_qemu().argv


def ended() -> str:
    """How an error of ours is told: as an exception, or in a line."""
    try:
        cli._tell_and_end(KeyError("ours"))
    except KeyError:
        return "raised"
    except SystemExit as end:
        return f"status {end.code}"


# Of each variable what acts, and what it is with it, where it is empty, and where it is not set; None: it is refused.
ACTS: Mapping[str, tuple[Callable[[], Any], Mapping[str | None, Any]]] = {
    "VFIO_USER_RESULTS": (
        lambda: str(results_root()),
        {"kept": "HERE/kept", "/elsewhere": "/elsewhere", "": "HERE/results", None: "HERE/results"},
    ),
    "VFIO_USER_CACHE": (
        lambda: str(cache_dir()),
        {"ours": "HERE/ours", "~/ours": "HERE/home/ours", "": "HERE/home/.cache/vfio-user", "/dev/null/x": None},
    ),
    "VFIO_USER_QEMU": (chosen, {"theirs": ("theirs", "environment"), "": ("usual", "path"), None: ("usual", "path")}),
    "VFIO_USER_TIMEOUT_SCALE": (
        lambda: patience("kvm"),
        {"3": 3.0, "0.5": 0.5, None: 1.0, **dict.fromkeys(("", "x", "0", "-1", "nan", "inf", "1e9"))},
    ),
    "VFIO_USER_TRACEBACK": (ended, {"1": "raised", "": "status 2", None: "status 2"}),
    "NO_COLOR": (cli._is_plain, {"1": True, "0": True, "": False, None: False}),
    "TERM": (cli._is_plain, {"dumb": True, "xterm": False, "": False, None: False}),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a home and a QEMU on PATH, and no variable set."""
    monkeypatch.chdir(tmp_path)
    for name in (*ACTS, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def examined(argv: tuple[str, ...] | str, origin: str) -> Any:
        return qemu.Qemu((argv if isinstance(argv, str) else argv[0], origin), qemu.FIRST_VERSION, "", origin, "")

    monkeypatch.setattr(qemu, "_chosen", examined)
    monkeypatch.setattr(qemu, "examine", examined)
    monkeypatch.setattr("shutil.which", lambda name: "usual" if name == qemu.PROGRAM else None)
    return tmp_path


def test_a_variable_acts_as_it_says_and_one_that_is_wrong_is_refused_by_its_name(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (acts, cases) in ACTS.items():
        for value, wanted in cases.items():
            with monkeypatch.context() as set_so:
                if value is not None:
                    set_so.setenv(name, value)
                if wanted is None:
                    with pytest.raises(UserError) as refused:
                        acts()
                    assert name in f"{refused.value} {refused.value.hint}", (name, value)
                    continue
                place = wanted.replace("HERE", str(here)) if isinstance(wanted, str) else wanted
                assert acts() == place, (name, value)


def test_an_option_comes_before_its_variable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_USER_QEMU", "theirs")
    assert qemu.find_qemu("mine").argv == ("mine", "option")
    assert qemu.ensure_qemu("mine").argv == ("mine", "option")
    for factor, wanted in ((None, 7.0), (1.0, 1.0), (2.5, 2.5)):
        with monkeypatch.context() as within:
            within.setattr(os, "environ", {**os.environ, "VFIO_USER_TIMEOUT_SCALE": "7"})
            within.setattr(sys, "path", [*sys.path])
            prepare_environment(here, factor)
            assert patience("kvm") == wanted, factor
