"""What the commands list that look at no recording and no device: of made-up entries, where the real ones are data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import click
from click.shell_completion import ShellComplete
from packaging.version import Version

from tests.tellings import PROGRAMS, Told, called, said
from tests.test_known_issues import AVOIDED, issue
from userdev.fuzz import Find, Step, Summary
from vfio_user.cli import _fuzzing, doctor, image, known_issues, qemu
from vfio_user.cli._fuzzing import Asked
from vfio_user.harness.doctor import Finding, Readiness
from vfio_user.harness.image import GuestImage

HERE = SimpleNamespace(
    version=Version("11.1.3"),
    version_text="QEMU 11.1.3 (made up)",
    argv=["qemu-system-x86_64", "-L", "a folder"],
    origin="cache",
    digest="d" * 64,
)
ISSUES = [
    issue(),
    issue(id="it-is-wrong", what="It reads 7.", status="untried", tried=[], tests=[], versions="<11", symptom=None),
    issue(id="it-is-kept-from-it", **AVOIDED, workaround="Do not.\nNever.", link="https://example.org/1"),
    issue(id="of-the-guest", component="kernel", versions=">=6", tried=["6.12"]),
    issue(
        id="it-may",
        what="It may do so.",
        status="right",
        symptom=None,
        versions="==11.1.3",
        tests=["a.py:A.one", "b.py:B.two"],
    ),
]
FINDINGS = [
    Finding("well", Readiness.GOOD, "it is there"),
    Finding("later", Readiness.LATER, "not yet", "wait"),
    Finding("absent", Readiness.ABSENT, "missing", "install it"),
    Finding("bad", Readiness.BAD, "broken 7", "mend it"),
]
IMAGES = [
    SimpleNamespace(
        name="minimal",
        description="a kernel",
        size=12_345_678,
        image=SimpleNamespace(**{name: f"the-{name}" for name in GuestImage.__dataclass_fields__}),
    ),
    SimpleNamespace(name="debian", description="all of it", size=0, image=None),
]
QEMUS = {"default": SimpleNamespace(about="the newest"), "old": SimpleNamespace(about="of last year")}


def told(folder: Path) -> Told:
    """Each list, and what a shell is given to complete."""
    found: Told = {}
    with made_up():
        for line in LINES:
            found[line] = said(folder, line)
    for name, program in PROGRAMS.items():
        for words, begun in COMPLETED:
            found[f"{name} {' '.join(words)} {begun}..."] = _completed(program, name, words, begun)
    for protocol in ("vfio-user", "vhost-user"):
        for ci in ("github", "gitlab", "none"):
            line = f"vfio-user new my-nic --protocol {protocol} --ci {ci} --folder {protocol}-{ci} --json"
            found[line] = said(folder, line)
        found[f"names in a project of {protocol}"] = _named(folder / f"{protocol}-github")
    return {**found, "fuzz": _campaigns(folder)}


LINES = (
    "vfio-user known-issues --json",
    "vfio-user known-issues",
    "vfio-user known-issues it-is-kept-from-it it-may",
    "vfio-user known-issues it-is-wrong --json",
    "vfio-user known-issues it-end nothing",
    "vfio-user doctor --json",
    "vfio-user doctor",
    "vfio-user doctor --quiet",
    "vfio-user image list --json",
    "vfio-user image list",
    "vfio-user image build minimal",
    "vfio-user image build minimal --json --quiet",
    "vfio-user qemu install old",
    "vfio-user qemu install old --json",
    "vfio-user qemu list --json",
    "vfio-user qemu list",
    "vfio-user qemu which --json",
    "vfio-user qemu which",
    "vfio-user conformance --list --only version/fits-qemu --only version/no-json",
    "vhost-user conformance --list --only config",
    "vfio-user fuzz --oracles",
    "vhost-user fuzz --oracles",
)
COMPLETED: tuple[tuple[list[str], str], ...] = (
    ([], ""),
    (["trace"], ""),
    (["trace", "show"], "--r"),
    (["conformance", "--device"], ""),
    (["probe"], "--"),
    (["conformance", "--device"], "./my"),
)


def _built(_name: str, progress: Callable[[str], None]) -> Any:
    progress("7 of 8 packages")
    return IMAGES[0].image


def _installed(_name: str, progress: Callable[[str], None]) -> Any:
    progress("8 MiB")
    return HERE


def made_up() -> ExitStack:
    """Have made-up entries in place of the real ones."""
    real = {each.id: each for each in ISSUES}
    changed: Mapping[ModuleType, Mapping[str, Any]] = {
        known_issues: {"known_issues": lambda: real, "find_qemu": lambda *_: HERE},
        doctor: {"examine_machine": lambda: iter(FINDINGS)},
        image: {"list_images": lambda: IMAGES, "build_image": _built},
        qemu: {
            "manifest": lambda: QEMUS,
            "installed_qemu": lambda name: HERE if name == "old" else None,
            "find_qemu": lambda *_: HERE,
            "install_qemu": _installed,
        },
    }
    stack = ExitStack()
    for module, names in changed.items():
        stack.enter_context(patch.multiple(module, **names))
    return stack


def _completed(program: click.Command, name: str, words: list[str], begun: str) -> list[str]:
    found = ShellComplete(program, {}, name, "_COMPLETE").get_completions(words, begun)
    return [f"{each.value}{'' if each.type == 'plain' else f' ({each.type})'}" for each in found]


def _named(folder: Path) -> dict[str, list[str]]:
    """The lines of a project's files that say what it is called."""
    return {
        str(path.relative_to(folder)): [
            line.strip() for line in path.read_text().splitlines() if "nic" in line.lower().replace("technic", "")
        ]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _campaigns(folder: Path) -> Told:
    """What campaigns tell that found something, nothing, and were interrupted."""
    steps = (Step("ping", ()), Step("store", (("offset", 16), ("value", 7))))
    find = Find("vfio-user", "crash", "A server goes on.", "crash: SIGSEGV", "it ended", steps, reproduced=True)
    other = replace(find, oracle="answer", cause="answer: 7", what="it is 7", reproduced=False)
    found: Told = {}
    for name, summary in (
        ("finds", Summary(31, 204, 2.5, False, {each.cause: each for each in (find, other)})),
        ("nothing", Summary(1, 1, 0.0, False, {})),
        ("interrupted", Summary(3, 20, 4.0, True, {}, ignored=2)),
    ):
        for as_json in (True, False):
            asked = replace(ASKED, as_json=as_json)
            found[f"{name}, {'JSON' if as_json else 'text'}"] = called(
                folder, partial(_fuzzing._report, asked, 77, summary), as_json
            )
    return found


ASKED = Asked("s", None, None, 1.0, None, None, Path("finds"), False, 1.0, False, None, False, "must", ())
