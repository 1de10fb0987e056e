"""What stands where the commands would start something, while it is told what they hand to it."""

from __future__ import annotations

import gc
import os
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from packaging.version import Version

from userdev.conformance.targets import CommandServer, RunningServer
from userdev.control.client import ControlClient
from userdev.serving import command_line as serving
from vfio_user.bundle import Keeping
from vfio_user.cli import (
    _fuzzing,
    _trace_cut,
    _trace_stats,
    boot,
    bundle,
    conformance,
    docs,
    doctor,
    image,
    interpose,
    known_issues,
    migrate,
    minimize,
    new,
    nightly,
    probe,
    qemu,
    reference,
    replay,
    repro,
    run,
    soak,
    test_e2e,
    vhost_conformance,
    vhost_interpose,
    vhost_peer,
    vhost_probe,
)
from vfio_user.fuzz import VfioUserSubject
from vfio_user.harness.artifacts import RESULTS_VARIABLE
from vfio_user.harness.hosts import NamespaceHost, pair
from vfio_user.harness.lab import Lab
from vfio_user.harness.migration.workload import Assignment
from vfio_user.nightly.night import Night
from vfio_user.server import command_line as vfio_user_serve
from vfio_user.soak import Soak
from vhost_user.backend import command_line as vhost_user_serve
from vhost_user.fuzz import VhostUserSubject


class Handed(BaseException):
    """The command has come to where it hands over; no `Exception`, so that it comes through."""


def instead_of(real: Callable[..., Any], does: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is given what another one would be, and does something else; `Border` tells of the other one."""

    def stand_in(*given: Any, **said: Any) -> Any:
        return (real, does(*given, **said))[1]  # `Border` finds the other one in here

    return stand_in


def returns(value: Any = None) -> Callable[..., Any]:
    """A function that does nothing else."""
    return lambda *_given, **_said: value


def ends(*_given: Any, **_said: Any) -> Any:
    """Be the last that is called."""
    raise Handed


class Guest:
    """A booted one."""

    device = SimpleNamespace(address="01:00.0", vendor=1, device=2)
    devices = (device,)
    patience = 2.0

    def put(self, data: bytes, path: str) -> None:
        """Be given a file."""

    def start(self, command: object, seconds: float) -> None:
        """Be given a command."""
        ends()


def _attempt(*_: Any, meanwhile: Callable[..., None] | None = None, **_said: Any) -> Any:
    if meanwhile is not None:
        meanwhile("a child")
    found = SimpleNamespace(folder="a folder")
    return SimpleNamespace(verdict="PASS", same=True, seconds=1.0, found=found, differences=(), as_dict=dict)


def _looked_at(_child: Any, _breakpoint: Any, look: Callable[[Any], None]) -> bool:
    look(SimpleNamespace(server_pid=1, qemu_pid=2))
    return True


def _words(*, quiet: bool) -> Any:
    return nullcontext("kept" if quiet else "shown")


PLACE = SimpleNamespace(breakpoint=lambda _folder: SimpleNamespace(exported=dict))
BUNDLE = SimpleNamespace(bundle=SimpleNamespace(outcome=SimpleNamespace(verdict="FAIL"), of="a run", document=bytes))
PREPARED = SimpleNamespace(here=(), command="a command")
QEMU = SimpleNamespace(version=Version("11.1.3"), argv=["qemu"], version_text="QEMU", origin="cache", digest="d")
WORK = SimpleNamespace(end=returns())
IMAGE = SimpleNamespace(kernel=Path("a kernel"), initramfs=Path("an initramfs"))
DONE = SimpleNamespace(first=1, last=2, began=0.0, ended=1.0, truncated="")
# Of each module or class what is not done, and what is done in its place.
_NOT_DONE: Mapping[Any, Mapping[str, Callable[..., Any]]] = {
    Lab: {"boot": returns(Guest()), "migrate": ends},
    Assignment: {"start": returns(WORK)},
    CommandServer: {"try_out": returns(""), "connect": returns()},
    RunningServer: {"try_out": returns(""), "connect": returns()},
    VfioUserSubject: {"prepare": returns([]), "kinds": returns([])},
    VhostUserSubject: {"prepare": returns([]), "kinds": returns([])},
    ControlClient: {"__init__": returns(), "call": ends},
    Soak: {"run": ends, "repeat": ends},
    Night: {"run": ends},
    gc: {"freeze": returns(), "enable": returns()},
    serving: {"log_to_stderr": returns()},
    vfio_user_serve: {"serve": ends},
    vhost_user_serve: {"serve": ends},
    _fuzzing: {"Campaign": ends, "corpus_checks": returns(())},
    boot: {
        "attach": returns(True),
        "_directions": returns(""),
        "ensure_qemu": returns(QEMU),
        "probe_accelerator": returns("tcg"),
        "ensure_image": returns(IMAGE),
    },
    _trace_cut: {"cut_out": returns(DONE)},
    _trace_stats: {"_watch": ends, "text": returns(())},
    bundle: {"open_bundle": returns(BUNDLE), "differences": ends, "_lines": ends},
    conformance: {"_refusal": returns(), "own_checks": returns(()), "run": ends},
    docs: {"_file": returns(Path("/a/page"))},
    doctor: {"examine_machine": returns([]), "treat": returns([])},
    image: {"build_image": ends, "list_images": ends},
    interpose: {"Interposer": ends},
    known_issues: {"find_qemu": ends},
    migrate: {"require_migratable": returns()},
    minimize: {"played_of": returns(), "minimize": ends},
    new: {"write_project": returns(())},
    nightly: {"prepare_environment": returns(), "commit_of": returns("a commit"), "end_those_killed": returns()},
    probe: {"Client": ends},
    qemu: {"find_qemu": ends, "install_qemu": ends, "installed_qemu": ends},
    reference: {"reference_program": ends},
    replay: {"played_of": returns(), "words_of_server": _words, "replay": ends},
    repro: {
        "open_bundle": returns(BUNDLE),
        "place_of": returns(PLACE),
        "first_place": returns(PLACE),
        "prepare": returns(PREPARED),
        "do_again": _attempt,
        "stand": _looked_at,
        "run_gdb": returns(),
        "gdb_command": returns((["gdb"], {})),
    },
    run: {"exercise": ends},
    run._Printer: {"machine": returns()},
    soak: {"require_hosts": returns()},
    test_e2e: {name: returns() for name in ("prepare_environment", "provision", "check_tags", "name_tests")}
    | {"make_job": returns(SimpleNamespace(test_suites=["a suite"])), "chosen_tests": returns([]), "_run": ends},
    vhost_conformance: {"own_checks": returns(()), "run": ends},
    vhost_interpose: {"Interposer": ends},
    vhost_peer: {"install_peer": ends},
    vhost_probe: {"FrontEnd": ends},
    webbrowser: {"open": returns(True)},
}


@contextmanager
def _namespaces() -> Iterator[tuple[NamespaceHost, NamespaceHost, None]]:
    """Two that nobody has made."""
    yield NamespaceHost.__new__(NamespaceHost), NamespaceHost.__new__(NamespaceHost), None


@contextmanager
def stand_ins(folder: Path) -> Iterator[None]:
    """A block in a folder, in which nothing is started and nobody is asked."""
    (folder / "man").mkdir()
    for program in ("vfio-user", "vhost-user"):
        (folder / "man" / f"{program}.1").touch()
    with ExitStack() as stack:
        for of, names in _NOT_DONE.items():
            for name, does in names.items():
                stack.enter_context(patch.object(of, name, instead_of(getattr(of, name), does)))
        for of in (Keeping, ControlClient):
            stack.enter_context(patch.object(of, "__exit__", lambda *_: None))
        stack.enter_context(patch.object(Lab, "__exit__", lambda lab, *_: lab._scratch.close()))
        stack.enter_context(patch.dict(os.environ, {RESULTS_VARIABLE: str(folder / "results")}))
        stack.enter_context(patch.object(docs, "PAGES", folder))
        stack.enter_context(patch.object(repro, "sys", SimpleNamespace(stdin=None)))
        # as root has them, whoever asks
        stack.enter_context(patch.object(pair, "can_make_namespaces", lambda: True))
        stack.enter_context(patch.object(pair, "joined_namespaces", _namespaces))
        stack.enter_context(chdir(folder))
        yield
