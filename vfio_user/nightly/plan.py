"""A plan: what a night tries, as people write it in YAML. What is wrong with one is told before anything starts.

A group is tests and the servers that they are run on, with what is varied beside the server; docs/nightly.md has an
example with every key. Names in it are checked here: keys, servers, QEMUs, dialects, files of tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StringConstraints, field_validator

from userdev.errors import UserError
from userdev.written import Place, Written, WrittenDocument, each_once, read_document, unknown
from vfio_user.avocado_job.selection import reference, suite_folder
from vfio_user.avocado_job.surroundings import IMAGES
from vfio_user.harness.image.recipe import recipe_names
from vfio_user.harness.qemu import manifest
from vfio_user.nightly.servers import NAME, Server, Servers, our_servers, read_servers
from vfio_user.wire import CURRENT

USUAL = "usual"
"""The QEMU that a machine takes where nobody says which (`ensure_qemu`)."""

Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
Dialect = Literal["current", "region-migration", "current-dma32", "region-migration-dma32"]
"""Those that some QEMU speaks; the draft of 2020 has other numbers."""
Value = str | int | bool

USUALLY: Mapping[str, Value] = {
    "qemu": USUAL,
    "cpus": 1,
    "memory": 512,
    "iommu": False,
    "interpose": False,
    "dialect": CURRENT.name,
}
"""What may be varied, in the order of a cell's id, and what it is where it is not: that is no part of the id."""

SERVER = "server"
"""The axis that every group has."""


class Varied(Written):
    """What of a guest is varied, beside its server; each has the values that are tried. `memory` is in MiB."""

    qemu: tuple[Name, ...] = (USUAL,)
    cpus: tuple[Annotated[StrictInt, Field(ge=1, le=64)], ...] = (1,)
    memory: tuple[Annotated[StrictInt, Field(ge=128)], ...] = (512,)
    iommu: tuple[StrictBool, ...] = (False,)
    interpose: tuple[StrictBool, ...] = (False,)
    dialect: tuple[Dialect, ...] = (CURRENT.name,)  # type: ignore[assignment]

    @field_validator("*")
    @classmethod
    def _are_values(cls, values: tuple[Value, ...]) -> tuple[Value, ...]:
        if not values or len(set(values)) < len(values):
            raise ValueError("a value twice" if values else "no value")
        return values


class Group(Written):
    """Tests, and the cells in which they are run."""

    tests: tuple[str, ...] = Field(min_length=1)
    """As `test-e2e` takes them: files, or FILE:CLASS.METHOD, but from the plan's folder where that has them.

    Those with tags run where these fit the server.
    """
    servers: tuple[Name, ...] = Field(min_length=1)
    vary: Varied = Varied()
    combine: Literal["pairs", "all"] = "pairs"
    """So that each two values meet, or all do."""
    without: tuple[Mapping[str, str | StrictBool | StrictInt], ...] = ()
    """Combinations that are left out, each by some of its values."""
    nightly: StrictBool = False
    """With tests that have the tag nightly: those that take long."""

    @field_validator("tests", "servers", mode="after")
    @classmethod
    def _are_there_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        each_once("name", names)
        return names

    def axes(self) -> dict[str, tuple[Value, ...]]:
        """The values of what is varied, the server first."""
        return {SERVER: self.servers, **{name: getattr(self.vary, name) for name in USUALLY}}


class SlotText(Written):
    """A machine that runs cases: its SSH server, and what of it is ours."""

    host: str = Field(min_length=1)
    port: Annotated[StrictInt, Field(ge=1, le=65535)] = 22
    user: str = ""
    """"": the one who runs the night."""
    identity: str = ""
    """The file of a private key, from the plan's folder; "": the user's own keys and agent."""
    known_hosts: str = ""
    """The file with the server's public key, from the plan's folder; "": the user's own."""
    folder: Annotated[str, StringConstraints(pattern=r"^/.")]
    """For the package, QEMUs and images there."""
    python: str = "python3"
    """The one there that has what this package needs: `pip install '/path/to/vfio-user[test]'`."""
    parallel: Annotated[StrictInt, Field(ge=1, le=16)] = 1
    """Cases at once."""


class PlanText(Written):
    """The document."""

    name: Name
    """Nights of one name are compared with each other."""
    servers: str = ""
    """The file with the servers of others, from the plan's folder."""
    qemus: Mapping[Name, str] = {}
    """Paths of QEMUs by the names that they have here: they may differ from machine to machine, ids do not."""
    images: tuple[Name, ...] = IMAGES
    """Guest images that the tests boot, to be had before the first case."""
    parallel: Annotated[StrictInt, Field(ge=1, le=16)] = 2
    """Cases at once."""
    slots: Mapping[Name, SlotText] = {}
    """The machines that run the cases; none: this one."""
    groups: Mapping[Name, Group] = Field(min_length=1)

    @property
    def at_once(self) -> int:
        """Cases that run at once, on all machines together."""
        return sum(slot.parallel for slot in self.slots.values()) or self.parallel


@dataclass(frozen=True)
class Plan:
    """A plan, and what its names stand for. `references` are the tests of each group, as avocado takes them.

    `document` is what was written, `others` that of the servers of others.
    """

    document: WrittenDocument[PlanText]
    others: WrittenDocument[Servers] | None
    path: Path
    folder: Path
    """That of the plan, absolute."""
    servers: Mapping[str, Server]
    servers_folder: Path
    references: Mapping[str, tuple[str, ...]]
    content: str
    """Of all the files that it was read from."""

    @property
    def text(self) -> PlanText:
        """What the plan says."""
        return self.document.value

    @property
    def lock_path(self) -> Path:
        """The file that has the combinations which were drawn."""
        return self.path.with_suffix(".lock.json")

    def digest(self, *drawn: str) -> str:
        """SHA-256 of all that decides which cases there are; `drawn` is what of it is no file of the plan's."""
        return hashlib.sha256("\0".join((self.content, *drawn)).encode()).hexdigest()

    def qemu(self, name: str) -> str:
        """The QEMU of a name as the harness takes it: "" for the usual one, a path or a name of the manifest."""
        return "" if name == USUAL else self.text.qemus.get(name, name)


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        UserError: something in it is not as it should be: file and line, and what is allowed.
    """
    document = read_document(PlanText, path, "plan")
    text = document.value
    ours = our_servers()
    others: WrittenDocument[Servers] | None = None
    if text.servers:
        if not (path.parent / text.servers).is_file():
            raise document.refuse(("servers",), f"there is no file {path.parent / text.servers}")
        others = read_servers(path.parent / text.servers)
    servers = {**ours, **(others.value.servers if others else {})}
    problems = [*_problems(text, servers), *_problems_of_slots(text, servers, path.parent)]
    mistakes: list[tuple[Place, str, str]] = [(place, what, "") for place, what in problems]
    references = {name: tuple(_references(text, name, path.parent.absolute(), mistakes)) for name in text.groups}
    if mistakes:
        raise document.refuse_all(mistakes)
    contents = [path.read_text(), *([(path.parent / text.servers).read_text()] if others else [])]
    return Plan(
        document,
        others,
        path,
        path.parent.resolve(),
        servers,
        (path.parent / text.servers).parent.absolute(),
        references,
        "\0".join(contents),
    )


def _references(text: PlanText, group: str, folder: Path, mistakes: list[tuple[Place, str, str]]) -> Iterator[str]:
    """The tests of a group, as avocado takes them; what is wrong with a name is added to the mistakes."""
    for index, test in enumerate(text.groups[group].tests):
        try:
            yield reference(test, suite_folder(), folder)
        except UserError as error:
            mistakes.append((("groups", group, "tests", index), str(error), error.hint))


def _problems(text: PlanText, servers: Mapping[str, Server]) -> Iterator[tuple[Place, str]]:
    """What is wrong with a plan whose keys are all known: where, and what is allowed."""
    qemus = (USUAL, *manifest(), *text.qemus)
    for name in text.qemus:
        if name in (USUAL, *manifest()):
            yield ("qemus", name), f"the QEMU {name!r} is one that there is already"
    for index, image in enumerate(text.images):
        if image not in recipe_names():
            yield ("images", index), unknown("guest image", image, recipe_names())
    for group_name, group in text.groups.items():
        here: Place = ("groups", group_name)
        for index, server in enumerate(group.servers):
            if server not in servers:
                yield (*here, "servers", index), unknown("server", server, servers)
        for index, qemu in enumerate(group.vary.qemu):
            if qemu not in qemus:
                yield (*here, "vary", "qemu", index), unknown("QEMU", qemu, qemus)
        if group.vary.dialect != (CURRENT.name,):
            for index, server in enumerate(group.servers):
                if server in servers and not (servers[server].is_ours and servers[server].protocol == "vfio-user"):
                    yield (
                        (*here, "servers", index),
                        f"{server} speaks what it speaks: a dialect is chosen for our vfio-user servers only",
                    )
        axes = group.axes()
        for index, combination in enumerate(group.without):
            for axis, value in combination.items():
                place = (*here, "without", index, axis)
                if axis not in axes:
                    yield place, unknown("parameter", axis, axes)
                elif not any(value == other and type(value) is type(other) for other in axes[axis]):
                    yield place, f"{axis} has no value {value!r} here; it has: {', '.join(map(str, axes[axis]))}"


def _problems_of_slots(text: PlanText, servers: Mapping[str, Server], base: Path) -> Iterator[tuple[Place, str]]:
    seen: dict[tuple[str, int, str], str] = {}
    for name, slot in text.slots.items():
        for key in ("identity", "known_hosts"):
            given = getattr(slot, key)
            if given and not (base / Path(given).expanduser()).is_file():
                yield ("slots", name, key), f"there is no file {base / Path(given).expanduser()}"
        first = seen.setdefault((slot.host, slot.port, slot.folder), name)
        if first != name:
            yield ("slots", name), f"that is where {first} is already: the same host, port and folder"
    if not text.slots:
        return
    if "parallel" in text.model_fields_set:
        yield ("parallel",), "each slot says for itself how many cases it runs at once"
    for group_name, group in text.groups.items():
        for index, server in enumerate(group.servers):
            if server in servers and not servers[server].is_ours:
                yield (
                    ("groups", group_name, "servers", index),
                    f"{server} is made on this machine, and slots have our own servers only",
                )
