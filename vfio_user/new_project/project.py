"""The files of a new project, and the names in them."""

from __future__ import annotations

import ast
import keyword
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from importlib.machinery import PathFinder
from pathlib import Path
from string import Template

from userdev.errors import UserError, about

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 30
"""Letters of a name: a line that has both, module and class, is one in the style of the project."""
_TAKEN = frozenset({"device", "test", "tests", "vfio_user", "vhost_user", "userdev", "userdev_servers"})
"""Modules' names that would hide another, or that the project has itself."""

CI: Mapping[str, tuple[str, str]] = {
    "github": (".github/workflows/test.yml", "github.yml"),
    "gitlab": (".gitlab-ci.yml", "gitlab-ci.yml"),
}
"""By service: the file that it reads, and our template of it."""


@dataclass(frozen=True)
class Protocol:
    """What a project says differently for a protocol."""

    command: str
    group: str
    description: str
    marked: str
    """Before MODULE:CLASS, where devices of all protocols are named."""
    guide: str
    """The page for authors of its devices."""


PROTOCOLS: Mapping[str, Protocol] = {
    "vfio-user": Protocol(
        "vfio-user", "vfio_user.devices", "A PCI device that adds up what the guest writes", "", "devices"
    ),
    "vhost-user": Protocol(
        "vhost-user", "vhost_user.devices", "A virtio device that throws dice", "vhost-user:", "vhost-user"
    ),
}


@dataclass(frozen=True)
class Names:
    """What a device is called: my-nic, the project; my_nic, its module; MyNic, its class."""

    project: str
    module: str
    class_name: str

    @classmethod
    def of(cls, name: str) -> Names:
        """From my-nic, or my_nic.

        Raises:
            UserError: it could not be the name of a module, or is that of one that Python or vfio-user has.
        """
        module = name.replace("-", "_")
        if keyword.iskeyword(module):
            raise UserError(f"{name!r} is a word of Python's own, and no module's name", hint="name it otherwise")
        if not _NAME.fullmatch(name) or len(name) > _LONGEST:
            hint = f"up to {_LONGEST} lower-case letters and digits, words with - or _ between: my-nic"
            raise UserError(f"{name!r} cannot be the name of a device's module", hint=hint)
        if module in sys.stdlib_module_names or module in _TAKEN or _is_installed(module):
            raise UserError(
                f"there is a module called {module!r} already, which yours would hide", hint="name it otherwise"
            )
        return cls(name.replace("_", "-"), module, "".join(part.capitalize() for part in module.split("_")))


def _is_installed(module: str) -> bool:
    """Whether there is such a module, not counting what is in the folder that this runs in."""
    elsewhere = [place for place in sys.path if Path(place).resolve() != Path.cwd()]
    found = PathFinder.find_spec(module, elsewhere)
    return found is not None and found.origin is not None  # a mere folder of that name has none


class _Marked(Template):
    """Text with %%{name} in it: $ and {} are what workflows and Python have."""

    delimiter = "%%"


def write_project(folder: Path, names: Names, protocol: str, ci: str | None) -> list[Path]:
    """Write a project into a folder, which is made; the files, relative to it.

    Raises:
        UserError: there is something in the folder already, or something else has one of its names.
        OSError: it cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already", hint="name another folder by --folder, or move that one away")
    spoken = PROTOCOLS[protocol]
    words = {
        **asdict(names),
        **asdict(spoken),
        "protocol": protocol,
        "device": names.project,
        "harness_name": f"{spoken.marked}{names.module}:{names.class_name}",
    }
    files = {
        "README.md": "README.md",
        "pyproject.toml": "pyproject.toml",
        ".gitignore": "gitignore",
        f"{names.module}.py": f"device-{protocol}.py",
        f"tests/test_{names.module}.py": f"test-{protocol}.py",
        **({CI[ci][0]: CI[ci][1]} if ci else {}),
    }
    texts = {name: _filled_in(template, words) for name, template in files.items()}
    _check_names(names, spoken, [text for name, text in texts.items() if name.endswith(".py")])
    for name, text in texts.items():
        path = folder / name
        with about(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return [Path(name) for name in texts]


def _check_names(names: Names, spoken: Protocol, modules: Iterable[str]) -> None:
    """Look whether the class hides what is imported beside it, and whether `serve` has another device of that name.

    Raises:
        UserError: either is so.
    """
    imports = [node for text in modules for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    imported = {each.name for node in imports if node.module != names.module for each in node.names}
    if names.class_name in imported:
        what = f"the class of {names.project!r} would be {names.class_name}, and hide what a device is made of"
        raise UserError(what, hint="name it otherwise")
    if metadata.entry_points(group=spoken.group, name=names.project):
        what = f"there is a device called {names.project!r} already, which `{spoken.command} serve` has by that name"
        raise UserError(what, hint="name it otherwise")


def _filled_in(template: str, words: Mapping[str, str]) -> str:
    text = resources.files(__package__).joinpath("templates", f"{template}.txt").read_text()
    return _Marked(text).substitute(words)
