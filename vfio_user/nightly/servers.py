"""Servers that a night tries: our own by their names, those of others by the entries of a servers.yaml."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from userdev.written import Written, WrittenDocument, each_once, read_document, unknown
from vfio_user.avocado_job.selection import topic_of
from vfio_user.harness.device import HOST, SCRATCH, SOCKET
from vfio_user.harness.exercises import EXERCISES
from vfio_user.harness.family import FAMILIES, devices, family_of
from vfio_user.harness.known_issues import Pattern
from vfio_user.wire import CURRENT, DIALECTS

PROGRAM, HERE = "{program}", "{here}"
"""In a command: the last line that `prepare` has printed; the folder of servers.yaml."""
_PLACEHOLDERS = (SOCKET, PROGRAM, HERE, SCRATCH, HOST)
_PLACEHOLDER = re.compile(r"(?<!\$)\{[A-Za-z_]\w*\}")  # with a dollar it is a shell's variable

Protocol = Literal["vfio-user", "vhost-user"]

ABILITIES: Mapping[Protocol, Mapping[str, str]] = {
    "vfio-user": {
        "reset": "the client may reset the device",
        "interrupts": "the device has interrupts",
        "migration": "its state can be taken and given",
    },
    "vhost-user": {
        "config": "it has a configuration space",
        "multiqueue": "it has several queues",
        "migration": "it logs what it writes",
    },
}
"""What a test may need of a server (its tag `needs:NAME`), by protocol."""

_VHOST_USER = "vhost-user-"
"""Before a kind in the name of a device of ours."""
_NEAR = 0.55
"""Of difflib: edoo is as near to edu, ivshmem or gpio-sample to none."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class ServerIssue(Written):
    """A fault that a server is known to have: the tests fail with this symptom, and are XFAIL; without it XPASS."""

    id: str
    what: str
    tests: tuple[str, ...] = Field(min_length=1)
    """CLASS.METHOD, or FILE:CLASS.METHOD where a plan may not run it."""
    symptom: Pattern
    """In the first cause."""

    def is_of(self, test: str) -> bool:
        """Whether a test, FILE:CLASS.METHOD, is one of its own."""
        file, _, name = test.rpartition(":")
        return any(
            told == name and topic_of(said or file) == topic_of(file)
            for said, _, told in (each.rpartition(":") for each in self.tests)
        )


class Server(Written):
    """A server, in any language."""

    about: str
    protocol: Protocol
    kind: str
    """What device it is: tests with the tag `kind:NAME` are for it."""
    command: str
    """With {socket} where the path goes at which it is to listen; of `_PLACEHOLDERS` it may have others."""
    prepare: str = ""
    """A shell's command, run once before the night: it fetches or builds. Its last line is {program} in `command`."""
    version: str = ""
    """A shell's command whose last line is the server's version."""
    dialect: str = CURRENT.name
    """vfio-user's, that it speaks."""
    properties: Mapping[str, str | int | bool] = {}
    """Of QEMU's device; for vhost-user `driver` says which that is."""
    supports: tuple[str, ...] | None = None
    """Of `ABILITIES`."""
    probe: bool = False
    """It is asked, in place of `supports`."""
    known_issues: tuple[ServerIssue, ...] = ()

    @field_validator("kind")
    @classmethod
    def _is_no_slip_of_the_pen(cls, kind: str, info: ValidationInfo) -> str:
        known = kinds_of(info.data.get("protocol", ""))
        near = () if kind in known else _near(kind, known)
        for meant in near:
            raise ValueError(
                f"the kind {kind!r} is none that we have; did you mean {meant!r}? If not, say another word"
            )
        return kind

    @field_validator("command")
    @classmethod
    def _has_a_socket(cls, command: str) -> str:
        if SOCKET not in command:
            raise ValueError(f"the command says with {SOCKET} where the socket's path goes")
        for word in shlex.split(command):
            for said in () if " " in word else _PLACEHOLDER.findall(word):  # one with spaces is a script, with its own
                if said not in _PLACEHOLDERS:
                    raise ValueError(unknown("placeholder", said, _PLACEHOLDERS))
        return command

    @field_validator("known_issues")
    @classmethod
    def _have_their_own_ids(cls, issues: tuple[ServerIssue, ...]) -> tuple[ServerIssue, ...]:
        each_once("id", (issue.id for issue in issues))
        return issues

    @field_validator("dialect")
    @classmethod
    def _is_dialect(cls, name: str) -> str:
        if name not in DIALECTS:
            raise ValueError(unknown("dialect", name, DIALECTS))
        return name

    @model_validator(mode="after")
    def _is_whole(self) -> Server:
        if (self.supports is None) != self.probe:
            raise ValueError("either supports: [...] or probe: yes")
        for ability in self.supports or ():
            if ability not in ABILITIES[self.protocol]:
                raise ValueError(unknown(f"ability of {self.protocol}", ability, ABILITIES[self.protocol]))
        if self.protocol == "vhost-user" and "driver" not in self.properties:
            raise ValueError("properties need driver, which says which device of QEMU's has it: vhost-user-blk-pci")
        if PROGRAM in self.command and not self.prepare:
            raise ValueError(f"{PROGRAM} is what prepare prints, and there is no prepare")
        return self

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this project's own."""
        return SOCKET not in self.command

    def device(self, program: str, here: Path) -> str:
        """The text by which the harness knows it (`Device.parse`)."""
        command = self.command.replace(PROGRAM, program).replace(HERE, str(here))
        words = ",".join(f"{name}={_spelt(value)}" for name, value in self.properties.items())
        return f"{command} [{words}]" if words else command


class Servers(Written):
    """A servers.yaml."""

    servers: Mapping[str, Server]

    @field_validator("servers")
    @classmethod
    def _have_names(cls, servers: Mapping[str, Server]) -> Mapping[str, Server]:
        for name in servers:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r}: a server's name has small letters, digits, '.', '_' and '-'")
            if name in devices():
                raise ValueError(f"{name!r} is one of ours already")
        return servers


def read_servers(path: Path) -> WrittenDocument[Servers]:
    """The servers of others in a file.

    Raises:
        UserError: it is not as it should be, with file and line.
    """
    return read_document(Servers, path, "list of servers")


def our_servers() -> dict[str, Server]:
    """The servers of this project, by the names of their devices. They can do all that there is."""
    return {name: _ours(name) for name in devices()}


def kinds_of(protocol: str) -> set[str]:
    """The kinds of this project's devices of a protocol: their tests have a server of such a kind in our place."""
    return {server.kind for server in our_servers().values() if server.protocol == protocol}


def _near(kind: str, known: Collection[str]) -> list[str]:
    """The known kind that was perhaps meant. Any other word may be one, so that the first letter has to be right."""
    word = kind.casefold().removeprefix(_VHOST_USER)
    return get_close_matches(word, [each for each in known if each[0] == word[:1]], 1, _NEAR)


def _ours(name: str) -> Server:
    family = family_of(name) or FAMILIES[0]
    options = EXERCISES[name].options if name in EXERCISES else ()
    protocol: Protocol = "vhost-user" if family.name == "vhost-user" else "vfio-user"
    return Server.model_construct(  # its command is the name of a device of ours, and has no socket
        about=f"our {name}",
        protocol=protocol,
        kind=name.removeprefix(_VHOST_USER),
        command=" ".join((name, *options)),
        supports=tuple(ABILITIES[protocol]),
    )


def _spelt(value: str | int | bool) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
