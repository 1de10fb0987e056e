"""The files of a new project, and the names in them."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
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
        if module in sys.stdlib_module_names or module in _TAKEN:
            raise UserError(
                f"there is a module called {module!r} already, which yours would hide", hint="name it otherwise"
            )
        return cls(name.replace("_", "-"), module, "".join(part.capitalize() for part in module.split("_")))


class _Marked(Template):
    """Text with %%{name} in it: $ and {} are what workflows and Python have."""

    delimiter = "%%"


def write_project(folder: Path, names: Names, protocol: str, ci: str | None) -> list[Path]:
    """Write a project into a folder, which is made; the files, relative to it.

    Raises:
        UserError: there is something in the folder already.
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
    for name, template in files.items():
        path = folder / name
        with about(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled_in(template, words))
    return [Path(name) for name in files]


def _filled_in(template: str, words: Mapping[str, str]) -> str:
    text = resources.files(__package__).joinpath("templates", f"{template}.txt").read_text()
    return _Marked(text).substitute(words)
