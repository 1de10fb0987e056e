"""Puts one change into this process: the module that has it is compiled from the changed text.

`hook/sitecustomize.py` calls this before anything else is imported, in every Python process that finds the two
variables of `environment` in its environment: pytest's own, and the servers and interposers that tests start.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "VFIO_USER_PLANTED"
"""Names a file that has the change, as JSON: nobody who starts reads the whole catalogue."""
HOOK = Path(__file__).parent / "hook"
GUEST_IMAGES = ROOT / "guest_images"
_ROOM = 'ROOM = Path(vfio_user.__file__).parent / "guest_images"\n'
"""The line of `vfio_user.harness.image.recipe` that says what images are made of."""


class PlantingError(Exception):
    """The change cannot be made here."""


class Change(Protocol):
    """A module and what it is to be: a seeded bug, a mutant."""

    @property
    def module(self) -> str:
        """The module's name in `import`."""

    @property
    def path(self) -> Path:
        """The module's file."""

    @property
    def planted(self) -> str:
        """The module's text with the change in it."""


def environment(change: Change | None, folder: Path) -> dict[str, str]:
    """What processes need in their environment to have this change, which is written into `folder`, or none."""
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if change is None:
        return clean
    file = folder / "planted.json"
    planted = [{"module": change.module, "path": str(change.path), "text": change.planted}]
    if change.path.is_relative_to(GUEST_IMAGES):
        planted.append(_images_with(change, folder / GUEST_IMAGES.name))
    file.write_text(json.dumps(planted))
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**clean, VARIABLE: str(file), "PYTHONPATH": os.pathsep.join(paths)}


def _images_with(change: Change, room: Path) -> dict[str, str]:
    """Have images made of a copy with the change: an image is named by all that is in it, as its checkpoints are."""
    shutil.copytree(GUEST_IMAGES, room, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (room / change.path.relative_to(GUEST_IMAGES)).write_text(change.planted)
    recipe = ROOT / "vfio_user/harness/image/recipe.py"
    text = recipe.read_text()
    if text.count(_ROOM) != 1:
        raise PlantingError(f"{recipe} says otherwise than by {_ROOM!r} what images are made of")
    text = text.replace(_ROOM, f"ROOM = Path({str(room)!r})\n")
    return {"module": "vfio_user.harness.image.recipe", "path": str(recipe), "text": text}


def plant(file: str) -> None:
    """Have the change in this file of `environment` from now on.

    Raises:
        OSError: there is no such file.
        PlantingError: the module has been imported without the change.
    """
    change, *images = json.loads(Path(file).read_text())
    if change["module"] in sys.modules:
        raise PlantingError(f"{change['module']} has been imported without the change")
    for each in (change, *images):  # a fork that has imported the other makes no image
        sys.meta_path.insert(0, _Finder(**each))


class _Loader(SourceFileLoader):
    """Compiles the changed text, and leaves the cache of compiled modules alone."""

    def __init__(self, module: str, path: str, text: str) -> None:
        super().__init__(module, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._text, self.path, "exec", dont_inherit=True)
        return code


class _Finder:
    def __init__(self, module: str, path: str, text: str) -> None:
        self._module = module
        self._path = path
        self._text = text

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        loader = _Loader(self._module, self._path, self._text)
        return importlib.util.spec_from_file_location(fullname, self._path, loader=loader)
