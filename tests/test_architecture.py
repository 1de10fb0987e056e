"""The rooms keep to the import table of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `([\w/.]+)` \| [^|]+ \| ([^|]+) \|$")
DEVICE_AUTHORS = ("wire", "transport", "pci", "device", "migration", "server", "client")


def rooms() -> dict[str, set[str]]:
    """Room: the rooms it may import, as ARCHITECTURE.md says."""
    table = {}
    for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines():
        if found := ROW.match(line):
            path, allowed = found.groups()
            table[path.rstrip("/").removeprefix("vfio_user/").removesuffix(".py")] = {
                word.strip(" `") for word in allowed.split(",")
            }
    return table


def imports(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, also those for typing only and inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "vfio_user" and len(parts) > 1 else None


@pytest.mark.parametrize("room", sorted(room for room in rooms() if (ROOT / "vfio_user" / room).is_dir()))
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = rooms()[room] | {room}
    if "everything" in allowed:
        return
    outside = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / "vfio_user" / room).rglob("*.py")
        for module in imports(path)
        if (found := room_of(module)) and (ROOT / "vfio_user" / found).exists() and found not in allowed
    }
    assert not outside


@pytest.mark.parametrize("room", DEVICE_AUTHORS)
def test_the_device_authors_half_needs_only_the_standard_library(room: str) -> None:
    foreign = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / "vfio_user" / room).rglob("*.py")
        for module in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names | {"vfio_user"}
    }
    assert not foreign


def test_device_programs_import_only_the_public_interface() -> None:
    inside = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / "servers").rglob("*.py")
        for module in imports(path)
        if (found := room_of(module)) and (ROOT / "vfio_user" / found).is_dir() and found != "device"
    }
    assert not inside


def imported_at_once(path: Path, modules: Collection[str]) -> Iterator[str]:
    """Those of `modules` that a file imports when it is imported: not within functions, not for types."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                within = f"{node.module}.{alias.name}"
                name = within if within in modules else node.module
                if name in modules:
                    yield name
        waiting += ast.iter_child_nodes(node)


def test_no_module_needs_itself_to_be_imported() -> None:
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for room in ("vfio_user", "servers")
        for path in (ROOT / room).rglob("*.py")
    }
    needed = {module: set(imported_at_once(path, paths)) for module, path in paths.items()}
    while free := [module for module, others in needed.items() if not others & needed.keys() - {module}]:
        for module in free:
            del needed[module]
    assert not needed, f"a circle of imports among {sorted(needed)}"
