"""Sphinx's extension for the reference: a page for each package that says what is public of it.

Pages are written into `reference/api`, which git ignores, before Sphinx looks for pages. What is public is what
`__all__` says, so that no name can be left out by whoever writes documentation. Docstrings are prose with `code`, no
reStructuredText.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("vfio_user", "vhost_user", "userdev")
INSIDE = {
    "userdev.control",
    "userdev.process",
    "userdev.relay",
    "userdev.trace",
    "userdev.transport",
    "vfio_user.harness.hosts",
    "vfio_user.harness.image",
    "vfio_user.harness.migration",
    "vfio_user.interposer.trace",
    "vfio_user.migration",
    "vfio_user.pci",
    "vfio_user.soak",
}
"""Packages whose names are for other rooms of this project; what is for everybody is given by the others."""

CODE = re.compile(r"(`[^`]+`)|([*|\\]|_\b)")
SECTIONS = ("Raises:", "Returns:", "Yields:", "Args:")


def faces() -> Iterator[tuple[str, list[str]]]:
    """Each package with an `__all__`, and the names in it."""
    for package in PACKAGES:
        for path in (ROOT / package / "testing.py", *sorted((ROOT / package).rglob("__init__.py"))):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if module not in INSIDE and path.exists() and (names := exported(path)):
                yield module, names


def exported(path: Path) -> list[str]:
    """The names in a module's `__all__`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return []


def page(module: str, names: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    """The page of a module: its names, but for those that are on another module's page."""
    own = [f".. auto{kind(module, name)}:: {name}\n" for name in names if name not in elsewhere]
    also = [f"* `{name}`: on the page of {{doc}}`{home}`\n" for name, home in elsewhere.items()]
    return (
        f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :no-index:\n\n.. currentmodule:: {module}\n\n"
        f"{''.join(own)}```\n" + (f"\n## Also here\n\n{''.join(also)}" if also else "")
    )


def kind(module: str, name: str) -> str:
    """What autodoc has for an object."""
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, type):
        return "exception" if issubclass(found, BaseException) else "class"
    return "function" if callable(found) else "data"


def pages() -> Iterator[tuple[str, str]]:
    """File name and text of each page. An object that several packages give is told once, where authors import it."""
    homes: dict[int, str] = {}
    for module, names in faces():
        elsewhere = {}
        for name in names:
            home = homes.setdefault(id(getattr(importlib.import_module(module), name)), module)
            if home != module:
                elsewhere[name] = home
        yield f"{module}.md", page(module, names, elsewhere)


def write_pages(app: Any) -> None:
    """Write the pages of the API, and of nothing that has gone; one that says the same keeps its time."""
    folder = Path(app.confdir) / "reference" / "api"
    folder.mkdir(exist_ok=True)
    made = dict(pages())
    for path in folder.iterdir():
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)


def plain_prose(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Have reStructuredText see no markup in a docstring but `code`, and examples in what is indented."""
    if what == "data" and lines[:1] == (type(obj).__doc__ or "").splitlines()[:1]:
        lines.clear()  # what is said of dict says nothing of a table
    text = CODE.sub(lambda found: found[1] + "\\ " if found[1] else f"\\{found[2]}", "\n".join(lines))
    lines[:] = examples(text.split("\n"))


def examples(lines: Sequence[str]) -> Iterator[str]:
    """Lines in which each indented block that no section of a docstring has is a literal one."""
    section = indented = False
    for line in lines:
        if line.startswith(" ") and not section and not indented:
            yield from ("", "::", "")
        if line and not line.startswith(" "):
            if indented:
                yield ""
            section = line in SECTIONS
        indented = indented if not line else line.startswith(" ") and not section
        yield line


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages, priority=100)
    app.connect("autodoc-process-docstring", plain_prose, priority=100)
    return {"parallel_read_safe": True}
