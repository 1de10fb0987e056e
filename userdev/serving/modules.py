"""Modules of authors: files by their paths, and where what they import is looked for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from userdev.errors import UserError
from userdev.serving.authored import authored


def module_of_file(path: Path, what: str, *, hint: str) -> ModuleType:
    """The module that a file of Python is. `what` is what is wanted of it, and `hint` what else may be given.

    Raises:
        UserError: there is no such file, or it fails, with the line of its author's.
    """
    if path.suffix != ".py" or not path.is_file():
        wrong = "there is no such file" if path.suffix == ".py" else "a file of Python ends in .py"
        raise UserError(f"{what}: {wrong}: {path}", hint=hint)
    path = path.resolve()
    look_in(path.parent)  # for the modules beside it
    known = path.stem if path.stem not in sys.modules else f"{path.stem} ({path})"
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[known] = importlib.util.module_from_spec(spec)
    with authored(f"{what} cannot be loaded"):
        spec.loader.exec_module(module)
    return module


def look_in(folder: Path) -> None:
    """Look for modules in a folder too: last, so that nothing there is taken for what others import."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
