"""Why avocado finds no test in a file: it reads files without running them, and is silent where that goes wrong."""

from __future__ import annotations

import ast
import builtins
import importlib.util
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from userdev.errors import meant

BASE = "vfio_user.avocado_test.GuestTest"
_HOW = f"a test is a method test_... of a class that derives from {BASE}"


def why_no_tests(path: str) -> tuple[str, str]:
    """What is wrong with a file in which avocado finds no test, with its line where there is one; and a hint."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except SyntaxError as error:
        return f"{path}:{error.lineno or 1}: {error.msg}", "no test is found in a file that Python cannot read"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"{path} is no Python: {error or 'it is nested too deeply'}", _HOW
    for line, what, hint in _missing_bases(tree, Path(path).parent):
        return f"{path}:{line}: {what}", f"{hint}{_HOW}"
    return f"{path} has no tests", _HOW


def passed_over(path: str) -> list[str]:
    """Classes with tests of a file that avocado passes over in silence, in sentences with their lines.

    They derive from nothing, and nothing in the file from them: what is for others to derive from is no class of tests.
    """
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # which `why_no_tests` tells of
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    bases = {base.id for each in classes for base in each.bases if isinstance(base, ast.Name)}
    return [
        f"{path}:{each.lineno}: no test of {each.name} is run: it derives from no class of tests"
        for each in classes
        if not each.bases and each.name not in bases and any(_is_test(method) for method in each.body)
    ]


def _missing_bases(tree: ast.Module, folder: Path) -> Iterator[tuple[int, str, str]]:
    """Names from which a class with tests derives, and that there are not: line, what is so, what was perhaps meant."""
    names = _names(tree)
    imported = {alias.asname or alias.name: (line, alias) for line in _imports(tree) for alias in line.names}
    for made in tree.body:
        if not isinstance(made, ast.ClassDef) or not any(_is_test(each) for each in made.body):
            continue
        for base in (each.id for each in made.bases if isinstance(each, ast.Name)):
            if base in imported:
                yield from _not_there(*imported[base], folder)
            elif base not in names and not hasattr(builtins, base) and "*" not in imported:
                yield made.lineno, f"{made.name} derives from {base}, which the file has not", meant(base, names)


def _not_there(line: ast.ImportFrom, alias: ast.alias, folder: Path) -> Iterator[tuple[int, str, str]]:
    """What is wrong with the import of a name."""
    module = line.module or ""
    spec = _spec(module, folder)
    if spec is None:
        near = meant(module, [BASE.rpartition(".")[0]])
        yield line.lineno, f"there is no module {module!r}", near
    elif spec.origin and spec.origin.endswith(".py") and not spec.submodule_search_locations:
        names = _names(ast.parse(Path(spec.origin).read_bytes()))
        if not names & {alias.name, "*", "__getattr__"}:
            yield line.lineno, f"{module} has no {alias.name!r}", meant(alias.name, names)


def _spec(module: str, folder: Path) -> ModuleSpec | None:
    """Where a module is; no package on the way is run."""
    top, *below = module.split(".")
    found = PathFinder.find_spec(top, [str(folder)]) or importlib.util.find_spec(top)
    name = top
    for part in below:
        name = f"{name}.{part}"
        if found is None or found.submodule_search_locations is None:
            return None
        found = PathFinder.find_spec(name, list(found.submodule_search_locations))
    return found


def _imports(tree: ast.Module) -> list[ast.ImportFrom]:
    """Those of names of other modules; what a relative one means is not known here."""
    return [line for line in ast.walk(tree) if isinstance(line, ast.ImportFrom) and not line.level]


def _names(tree: ast.Module) -> set[str]:
    """What a module has, as far as it says so without being run; `*`: and what others have."""
    found: set[str] = set()
    for each in ast.walk(tree):
        match each:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(each.name)
            case ast.Import() | ast.ImportFrom():
                found |= {alias.asname or alias.name.partition(".")[0] for alias in each.names}
            case ast.Name(ctx=ast.Store()):
                found.add(each.id)
    return found


def _is_test(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name.startswith("test")
