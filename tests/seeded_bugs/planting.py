"""Puts one bug into this process: the module that has it is compiled from the changed text.

`hook/sitecustomize.py` calls this before anything else is imported, in every Python process that finds the two
variables of `environment` in its environment: pytest's own, and the servers and interposers that tests start.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from tests.seeded_bugs.catalogue import ROOT, Bug, CatalogueError, load

VARIABLE = "VFIO_USER_SEEDED_BUG"
HOOK = Path(__file__).parent / "hook"


def environment(bug: Bug | None) -> dict[str, str]:
    """What processes need in their environment to have this bug, or none."""
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if bug is None:
        return clean
    paths = [str(HOOK), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**clean, VARIABLE: bug.id, "PYTHONPATH": os.pathsep.join(paths)}


def plant(id: str) -> None:
    """Have the bug of this id from now on. Raises CatalogueError, or KeyError if there is none of this id."""
    bug = load()[id]
    _ = bug.planted
    if bug.module in sys.modules:
        raise CatalogueError(f"{bug.id}: {bug.module} has been imported without the bug")
    sys.meta_path.insert(0, _Finder(bug))


class _Loader(SourceFileLoader):
    """Compiles the changed text, and leaves the cache of compiled modules alone."""

    def __init__(self, bug: Bug) -> None:
        super().__init__(bug.module, str(bug.path))
        self._bug = bug

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self._bug.planted, str(self._bug.path), "exec", dont_inherit=True)
        return code


class _Finder:
    def __init__(self, bug: Bug) -> None:
        self._bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._bug.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self._bug.path, loader=_Loader(self._bug))
