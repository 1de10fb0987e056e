"""What `from vfio_user import ...` gives, at run time and to a type checker."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfio_user


def told_to_type_checkers() -> Iterator[tuple[str, str]]:
    """Module and name of each import that only a type checker sees."""
    tree = ast.parse(Path(vfio_user.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        yield from ((node.module, alias.name) for alias in node.names)


def test_a_type_checker_is_told_the_public_names_and_no_other() -> None:
    assert sorted(name for _, name in told_to_type_checkers()) == sorted(vfio_user.__all__)


@pytest.mark.parametrize(("module", "name"), list(told_to_type_checkers()))
def test_a_name_is_what_a_type_checker_takes_it_for(module: str, name: str) -> None:
    assert getattr(vfio_user, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", ["Typo", "layout", "declared", "TYPE", "_private"])
def test_what_is_not_public_is_not_there(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(vfio_user, name)


def test_completion_shows_the_public_names() -> None:
    assert dir(vfio_user) == sorted(vfio_user.__all__)


def test_the_package_alone_imports_nothing() -> None:
    """So that `vfio-user --help` waits for no device."""
    program = "import sys, vfio_user; print([name for name in sys.modules if name.startswith('vfio_user.')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
