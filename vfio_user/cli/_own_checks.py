"""Checks of somebody's own, from a file of Python: what `conformance --checks` runs instead of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from userdev.conformance import Check, Group, Workbench, require_known_needs
from userdev.errors import UserError
from userdev.serving.authored import authored
from userdev.serving.modules import module_of_file

B = TypeVar("B", bound=Workbench)
_HOW = "docs/how-to/conformance-check.md has one"


def own_checks(path: Path, catalogue: Sequence[Check[B]]) -> tuple[Check[B], ...]:
    """The checks of all groups of a file, which may need those of the catalogue.

    Raises:
        UserError: it has none, fails, or has one of the catalogue's id, or one that needs a check that there is not.
    """
    module = module_of_file(path, "--checks", hint=_HOW)
    groups = {id(value): value for value in vars(module).values() if isinstance(value, Group)}
    checks = tuple(check for group in groups.values() for check in group if check not in catalogue)
    if not checks:
        raise UserError(f"{path} has no check: a function that a `Group` enters", hint=_HOW)
    theirs = {check.id for check in catalogue}
    taken = next((check.id for check in checks if check.id in theirs), None)
    if taken is not None:
        raise UserError(f"{path}: the catalogue has a check {taken} already", hint="give yours another name, or group")
    with authored(str(path)):
        require_known_needs(checks, catalogue)
    return checks
