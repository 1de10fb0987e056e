"""What `from vfio_user import ...` and the harness's face give, at run time and to a type checker."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import vfio_user
import vfio_user.harness
from tests.cases import for_each, for_each_row

FACES = [vfio_user, vfio_user.harness]


def told_to_type_checkers(face: ModuleType) -> Iterator[tuple[str, str]]:
    """Module and name of each import that only a type checker sees."""
    assert face.__file__ is not None
    tree = ast.parse(Path(face.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        yield from ((node.module, alias.name) for alias in node.names)


@for_each(FACES)
def test_a_type_checker_is_told_the_public_names_and_no_other(face: ModuleType) -> None:
    assert sorted(name for _, name in told_to_type_checkers(face)) == sorted(face.__all__)


@for_each_row((face, *told) for face in FACES for told in told_to_type_checkers(face))
def test_a_name_is_what_a_type_checker_takes_it_for(face: ModuleType, module: str, name: str) -> None:
    """Also where a module has been imported that lies beside it: none may have its name."""
    assert getattr(face, name) is getattr(importlib.import_module(module), name)


@for_each(FACES, ["Typo", "layout", "declared", "TYPE", "_private"])
def test_what_is_not_public_is_not_there(face: ModuleType, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(face, name)


@for_each(FACES)
def test_completion_shows_the_public_names(face: ModuleType) -> None:
    assert dir(face) == sorted(face.__all__)


@for_each(FACES)
def test_the_package_alone_imports_nothing(face: ModuleType) -> None:
    """So that `vfio-user --help` waits for no device, and who needs one part of the harness for no other."""
    name = face.__name__
    program = f"import sys, {name}; print([name for name in sys.modules if name.startswith('{name}.')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


@for_each([["interpose", "--help"], ["serve", "userdev_servers.edu:Edu", "--print-capabilities"]])
def test_a_program_starts_without_what_takes_long_to_import(command: list[str]) -> None:
    """importlib.metadata brings e-mail and archives along; only names of installed devices are looked for there."""
    program = (
        f"import sys; sys.argv[1:] = {command!r}\n"
        "from vfio_user.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sys.modules.keys() & {'importlib.metadata', 'yaml', 'pydantic', 'asyncio', 'rich'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_lab_does_not_wait_for_what_only_failures_and_first_runs_need() -> None:
    """SSH, pages of evidence, cores, packages and locks: 0.26 s of 0.68 s of processor time."""
    slow = {"paramiko", "cryptography", "jinja2", "elftools", "zstandard", "filelock", "vfio_user.traces"}
    program = f"import sys, vfio_user.harness.lab; print(sorted({slow!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@for_each(["vhost_user", "userdev"])
def test_a_class_has_its_name_alone(package: str) -> None:
    """Two classes of one name in one package are one too many for whoever reads it."""
    where: dict[str, list[str]] = {}
    for path in sorted((Path(__file__).parent.parent / package).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(path.name)
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}
