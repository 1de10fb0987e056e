"""The rooms keep to the import table of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.cases import for_each, for_each_row

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `([\w/.]+)` \| [^|]+ \| ([^|]+) \|$")
SERVERS = ROOT / "servers"
PACKAGES = ("userdev", "vfio_user", "vhost_user")
BY_FACE = " by its face"
"""Rooms that programs beside ours may import, beside `vfio_user` itself and the modules of both packages."""
WITH_EXTRAS = (
    "userdev/documents.py",
    "userdev/written.py",
    "userdev/fuzz/drawing.py",
    "userdev/interposer",
    "vhost_user/interposer",
)
"""What of the packages that use the standard library only does not."""
DEVICE_AUTHORS = ("wire", "pci", "device", "migration", "server", "client")


def rooms() -> dict[str, set[str]]:
    """Room, such as `vfio_user/wire`: the rooms and packages it may import, as ARCHITECTURE.md says."""
    table = {}
    for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines():
        if found := ROW.match(line):
            path, allowed = found.groups()
            words = {word.strip(" `").removesuffix(BY_FACE) for word in allowed.split(",")}
            package = path.partition("/")[0]
            home = package if package in PACKAGES else "vfio_user"
            table[path.rstrip("/")] = {
                word.replace(".", "/") if word.partition(".")[0] in PACKAGES else f"{home}/{word}" for word in words
            }
    return table


def by_face() -> list[tuple[str, str]]:
    """Rooms, and others of which they may import no module, only the names that it exports."""
    rows = filter(None, map(ROW.match, (ROOT / "ARCHITECTURE.md").read_text().splitlines()))
    return [
        (row[1].rstrip("/"), word.strip(" `").removesuffix(BY_FACE))
        for row in rows
        for word in row[2].split(",")
        if word.endswith(BY_FACE)
    ]


def files(room: str) -> list[Path]:
    path = ROOT / room
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def statements_in(node: ast.AST) -> Iterator[ast.AST]:
    """The statements right within another; expressions, which are most of a tree, have none."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        yield from getattr(node, part, ())


@functools.cache
def import_statements(path: Path) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Those of a file, and whether each is done when the file is imported: not within functions, not for types."""
    found: list[tuple[ast.Import | ast.ImportFrom, bool]] = []
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text()), True)]
    while waiting:
        node, at_once = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append((node, at_once))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += [(each, False) for each in node.body] + [(each, at_once) for each in node.orelse]
        else:
            at_once = at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            waiting += [(each, at_once) for each in statements_in(node)]
    return found


@functools.cache
def imports(path: Path) -> Collection[str]:
    """Absolute names of the modules that a file imports, also those for typing only and inside functions."""
    names: list[str] = []
    for node, _ in import_statements(path):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif node.module:
            names += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return names


def room_of(module: str) -> str | None:
    """`vfio_user/wire` for all that is in it."""
    package, _, within = module.partition(".")
    name = within.partition(".")[0]
    if package in PACKAGES and ((ROOT / package / name).is_dir() or (ROOT / package / f"{name}.py").exists()):
        return f"{package}/{name}" if name else None
    return None


@for_each(sorted(rooms()))
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = {word.removesuffix(".py") for word in rooms()[room]} | {room.removesuffix(".py")}
    if "vfio_user/everything" in allowed:
        return
    outside = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(room)
        for module in imports(path)
        if (found := room_of(module)) and found not in allowed and found.partition("/")[0] not in allowed
    }
    assert not outside


@for_each(PACKAGES)
def test_every_room_has_a_row_in_the_table(package: str) -> None:
    found = {
        f"{package}/{path.name}"
        for path in (ROOT / package).iterdir()
        if not path.name.startswith("_") and not path.is_symlink() and (path.is_dir() or path.suffix == ".py")
    }
    assert found <= rooms().keys()


@for_each(["userdev", "vhost_user", *(f"vfio_user/{room}" for room in DEVICE_AUTHORS)])
def test_the_device_authors_half_needs_only_the_standard_library(room: str) -> None:
    foreign = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(room)
        if not any(path.is_relative_to(ROOT / other) for other in WITH_EXTRAS)
        for module in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names | {*PACKAGES}
    }
    assert not foreign


@for_each_row(by_face())
def test_a_room_imports_another_by_its_face(room: str, other: str) -> None:
    face = {f"vfio_user.{other}", *(f"vfio_user.{other}.{name}" for name in exported(other))}
    inside = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(room)
        for module in imports(path)
        if room_of(module) == f"vfio_user/{other}" and module not in face
    }
    assert not inside


def exported(room: str) -> list[str]:
    names: list[str] = importlib.import_module(f"vfio_user.{room}").__all__
    return names


def imported_modules(path: Path, modules: Collection[str], *, at_once: bool) -> Iterator[str]:
    """Those of `modules` that a file imports; `at_once`: when it is imported, not within functions, not for types."""
    for node, is_at_once in import_statements(path):
        if at_once and not is_at_once:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif node.module:
            for alias in node.names:
                within = f"{node.module}.{alias.name}"
                name = within if within in modules else node.module
                if name in modules:
                    yield name


def in_circles(folders: Collection[Path], *, at_once: bool) -> list[str]:
    """The modules below these folders that are in a circle of imports, or behind one."""
    paths = {
        ".".join(
            path.relative_to(SERVERS if path.is_relative_to(SERVERS) else ROOT).with_suffix("").parts
        ).removesuffix(".__init__"): path
        for folder in folders
        for path in folder.rglob("*.py")
    }
    needed = {module: set(imported_modules(path, paths, at_once=at_once)) for module, path in paths.items()}
    while free := [module for module, others in needed.items() if not others & needed.keys() - {module}]:
        for module in free:
            del needed[module]
    return sorted(needed)


def test_no_module_needs_itself_to_be_imported() -> None:
    folders = [*(ROOT / package for package in PACKAGES), SERVERS / "userdev_servers"]
    assert not in_circles(folders, at_once=True)


WITHOUT_CIRCLES = (
    "userdev",
    "vfio_user/migration",
    "vfio_user/interposer",
    "vfio_user/wire",
    "vfio_user/pci",
    "vfio_user/device",
    "vfio_user/server",
    "vhost_user",
    "vfio_user/harness",
    "vfio_user/cli",
    "servers/userdev_servers",
)


@for_each(WITHOUT_CIRCLES)
def test_no_module_needs_itself_for_types_either(room: str) -> None:
    assert not in_circles([ROOT / room], at_once=False)


DECISIONS = ROOT / "docs" / "decisions"


def test_every_decision_has_its_row_its_number_and_its_date() -> None:
    rows = re.findall(
        r"^\| \[(\d+)\]\((.+?)\) \| (.+?) \| (.+?) \|$", (DECISIONS / "index.md").read_text(), re.MULTILINE
    )
    told = {name: (number, title, date) for number, name, title, date in rows}
    found = {}
    for path in DECISIONS.glob("[0-9]*.md"):
        heading, date = path.read_text().split("\n\n")[:2]
        number, _, title = heading.removeprefix("# ").partition(". ")
        assert path.name.startswith(f"{int(number):04d}-"), path.name
        found[path.name] = (number, title, date)
    assert found == told
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))


def test_a_decision_that_is_named_is_there() -> None:
    there = {path.name.partition("-")[0].lstrip("0") for path in DECISIONS.glob("[0-9]*.md")}
    pages = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if "api" not in path.parts]
    named = {number for path in pages for number in re.findall(r"\bdecision \[?(\d+)", path.read_text())}
    assert named
    assert named <= there
