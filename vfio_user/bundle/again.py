"""Doing again what a bundle is of: the command that does, with what this machine has, and what came of it."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from userdev.errors import UserError
from userdev.process import Child
from vfio_user.bundle.difference import Difference, differences, made_with_differences
from vfio_user.bundle.made_with import named_files, own_versions, qemu_facts
from vfio_user.bundle.model import MANIFEST, Recipe, without_option
from vfio_user.bundle.reading import OpenBundle, open_bundle
from vfio_user.bundle.secrets import SECRET
from vfio_user.harness.accelerator import probe_accelerator
from vfio_user.harness.artifacts import RESULTS_VARIABLE
from vfio_user.harness.cell import Cell, parse_servers
from vfio_user.harness.debian import Progress
from vfio_user.harness.device import Device, command_line
from vfio_user.harness.image import ensure_image
from vfio_user.harness.qemu import Qemu, ensure_qemu

_ENDING_SECONDS = 60.0
"""Seconds that a run has to end its guests, once it is told to."""

_TESTS = ("test-e2e", "pytest")
_OF_SERVER: Mapping[str, str] = {"run": "--server", "migrate": "--device", "soak": "--device"}
"""The option that names the server, by command."""


@dataclass(frozen=True)
class Command:
    """A command line of a recipe: `arguments` are without those that `cell` says in their place."""

    name: str
    arguments: tuple[str, ...]
    cell: Cell

    @classmethod
    def of(cls, found: OpenBundle) -> Command:
        """The one that a bundle has."""
        recipe = found.bundle.recipe
        known = {name: value for name, value in recipe.cell.items() if name in Cell.__dataclass_fields__}
        return cls(recipe.command, tuple(found.arguments), Cell(**known))

    def with_server(self, server: str) -> Command:
        """The same with another server.

        Raises:
            UserError: that is not said where this command says it.
        """
        if self.name == "pytest":
            raise UserError(
                "a test of pytest says by itself which server it has", hint="leave out --server and --device"
            )
        if self.name in _TESTS:
            return replace(self, cell=replace(self.cell, servers={**self.cell.servers, **parse_servers([server])}))
        option = _OF_SERVER[self.name]
        return replace(self, arguments=(*without_option(self.arguments, option), option, server))

    def with_device(self, device: str) -> Command:
        """The same with the server of a device, said as where guests have devices.

        Raises:
            UserError: there is no such device, or it has no server.
        """
        if _OF_SERVER.get(self.name) == "--device":
            return self.with_server(device)
        wanted = Device.parse(device)
        line = command_line(wanted)
        return self.with_server(f"{wanted.served}={line}" if self.name in _TESTS else line)

    def with_qemu(self, qemu: str) -> Command:
        """The same with another QEMU; "": the one that is found here."""
        if self.name == "test-e2e":
            return replace(self, cell=replace(self.cell, qemu=qemu))
        return replace(self, arguments=(*without_option(self.arguments, "--qemu"), *(("--qemu", qemu) if qemu else ())))

    @property
    def qemu(self) -> str:
        """The QEMU that it says; "" for the one that is found."""
        words = list(self.arguments)
        return words[words.index("--qemu") + 1] if "--qemu" in words[:-1] else self.cell.qemu

    def argv(self, place: Path) -> list[str]:
        """The whole of it, to keep a bundle at `place`.

        Raises:
            UserError: it has a secret that the bundle does not.
        """
        if any(SECRET in word for word in (*self.arguments, self.cell.text)):
            raise UserError(
                "the command line had a secret, which is in no bundle",
                hint="--server-command says the server with it; `vfio-user bundle show` has the rest",
            )
        cell = ("--cell", self.cell.text) if self.name == "test-e2e" else ()
        if self.name == "pytest":  # what its tests leave is beside the new bundle, and not where it was before
            words = (*without_option(self.arguments, "--vfio-results"), "--vfio-results", str(place.parent / "results"))
            return [sys.executable, "-P", "-m", "pytest", *words, "--bundle", str(place)]
        return [sys.executable, "-P", "-m", "vfio_user", self.name, *self.arguments, *cell, "--bundle", str(place)]


@dataclass(frozen=True)
class Prepared:
    """What is done again, and what is otherwise here than where it was done."""

    command: Command
    here: list[Difference]


def prepare(found: OpenBundle, *, server: str = "", device: str = "", qemu: str = "", say: Progress) -> Prepared:
    """Have QEMU and images, and compare them with what the bundle was made with, before anything starts.

    Raises:
        UserError: they cannot be had, or what the command names is not here.
    """
    command, recipe = Command.of(found), found.bundle.recipe
    if server:
        command = command.with_server(server)
    if device:
        command = command.with_device(device)
    _require_tests(command, recipe)
    chosen, used = _provided(command, recipe, qemu, say)
    command = command.with_qemu(chosen)
    images = {name: ensure_image(name, progress=say).digest for name in recipe.images}
    files = named_files(command.arguments)
    here = recipe.model_copy(
        update={
            "qemu": qemu_facts(used) if recipe.qemu else None,
            "images": images,
            "files": {name: files.get(name, "") for name in recipe.files if name in files or not (server or device)},
            "versions": own_versions(),
            "accelerator": probe_accelerator(used) if recipe.accelerator else "",
        }
    )
    return Prepared(command, list(made_with_differences(recipe, here)))


def _require_tests(command: Command, recipe: Recipe) -> None:
    """Look whether tests are here that a bundle is of: it has neither them nor what they import."""
    if command.name in _TESTS and (missing := [name for name in recipe.files if not Path(name).exists()]):
        raise UserError(
            f"the bundle is of tests that are not here: {', '.join(missing)} from {Path.cwd()}",
            hint="a bundle has neither tests nor what they import: go where they are, or to a copy of it",
        )


def _provided(command: Command, recipe: Recipe, explicit: str, say: Progress) -> tuple[str, Qemu]:
    """The QEMU as the command is to be told of it, and what it is: the bundle's, where this machine can have it."""
    if explicit:
        return explicit, ensure_qemu(explicit, progress=say)
    name = recipe.qemu.name if recipe.qemu is not None else ""
    for choice in filter(None, (command.qemu, name)):
        try:
            return choice, ensure_qemu(choice, progress=say)
        except UserError as error:
            say(f"{choice}, which the bundle was made with, cannot be had: {error}")
    return "", ensure_qemu(progress=say)


@dataclass(frozen=True)
class Attempt:
    """It was done once more: with what bundle, and what is otherwise in it."""

    found: OpenBundle
    differences: list[Difference]
    seconds: float

    @property
    def same(self) -> bool:
        """Whether the same came of it."""
        return not any(difference.of_outcome for difference in self.differences)

    @property
    def verdict(self) -> str:
        """The verdict this time."""
        return self.found.bundle.outcome.verdict

    def as_dict(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "verdict": self.verdict,
            "same": self.same,
            "seconds": round(self.seconds, 3),
            "bundle": str(self.found.folder),
            "differences": [difference.as_dict() for difference in self.differences],
        }


def do_again(
    found: OpenBundle,
    command: Command,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[Child], None] = lambda _: None,
) -> Attempt:
    """Do it once, with results and a bundle in `folder`, which is made; `meanwhile` is called while it goes on.

    Raises:
        UserError: it did not come as far as a bundle.
    """
    folder.mkdir(parents=True)
    place, began = folder / "bundle", time.monotonic()
    child = Child(
        "repro",
        command.argv(place),
        log=folder / "repro.log",
        environment={**os.environ, RESULTS_VARIABLE: str(folder), **(environment or {})},
    )
    try:
        meanwhile(child)
        child.wait(math.inf)
    finally:
        child.stop(_ENDING_SECONDS)
    made = _made(place)
    if made is None:
        said = child.last_words()
        elsewhere = "where a server's program is elsewhere here, --server-command says where"
        raise UserError(
            f"what the bundle is of could not be done again: it {child.fate()}",
            hint=elsewhere if "cannot start" in said else "",
            evidence=f"its last lines:\n{said}",
        )
    again = open_bundle(made)
    return Attempt(again, differences(found, again), time.monotonic() - began)


def _made(place: Path) -> Path | None:
    """The bundle there: of tests it is in a folder by the test's name."""
    return next((path.parent for path in (*place.glob(MANIFEST), *place.glob(f"*/{MANIFEST}"))), None)
