"""The modules that may be compiled (setup.py): what mypyc, or its C code, would not take of them."""

from __future__ import annotations

import ast
import builtins
import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["vfio-user"]["compiled"]


@functools.cache
def trees() -> Mapping[str, ast.Module]:
    """By the worker alone that looks at them."""
    return {name: ast.parse((ROOT / name).read_text()) for name in MODULES}


def classes() -> Mapping[str, Sequence[str]]:
    """Their classes with their bases."""
    return {
        each.name: [ast.unparse(base) for base in each.bases]
        for tree in trees().values()
        for each in tree.body
        if isinstance(each, ast.ClassDef)
    }


def test_their_constants_are_final_as_others_are_looked_up_by_name() -> None:
    for name, tree in trees().items():
        for each in tree.body:
            if isinstance(each, ast.Assign):
                constants = [target for target in each.targets if re.fullmatch("[A-Z_, ()]+", ast.unparse(target))]
                assert not constants, f"{name}:{each.lineno}"


def test_their_errors_have_bases_that_compiled_classes_may_have() -> None:
    allowed = {Exception, ValueError}
    for name, bases in classes().items():
        assert {getattr(builtins, base, ValueError) for base in bases} <= allowed, name


def test_nothing_that_is_not_compiled_has_one_of_their_classes_for_a_base() -> None:
    derived = re.compile(rf"^class \w+\(.*\b({'|'.join(classes())})\b", re.MULTILINE)
    for room in ("userdev", "vfio_user", "vhost_user", "servers"):
        for file in (ROOT / room).rglob("*.py"):
            if str(file.relative_to(ROOT)) not in MODULES:
                assert not derived.search(file.read_text()), file
