"""What a bundle says of itself: how to do it again, what it was made with, what came of it, and what is in it.

`bundle.json` is one `Bundle`; docs/bundles.md tells of each part, docs/reference/json/bundle.json is its schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vfio_user.bundle.secrets import Secrets

FORMAT = 1
"""Of what this version writes, and the newest that it reads."""

MANIFEST = "bundle.json"
INPUTS = "inputs"
"""The folder with the files that the command line named."""

OWN_INPUTS = "{inputs}"
"""In the arguments of a recipe: the path of that folder."""

COMMANDS = ("run", "test-e2e", "migrate", "soak", "pytest")
"""What a recipe may do: each a subcommand, but for pytest."""

Verdict = Literal["PASS", "FAIL", "ERROR"]
"""ERROR: it could not be done, which says nothing of the device."""


def _within(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is no place in a bundle")
    return name


Name = Annotated[str, AfterValidator(_within)]
"""A path from the bundle's folder, which does not lead out of it."""


class Part(BaseModel):
    """A table of the document; keys of it that are not known yet are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class QemuFacts(Part):
    """A QEMU. `program` is the SHA-256 of the executable, `packages` identifies what it was installed from."""

    version: str
    program: str = ""
    packages: str = ""
    name: str = ""
    """The name by which `vfio-user qemu install` has it; "" where it is somebody's own."""


class Program(Part):
    """A process that took part; its command line is without secrets."""

    name: str
    command: tuple[str, ...]


class Recipe(Part):
    """What does it again: `vfio-user COMMAND ARGUMENTS`, and all that it was done with."""

    command: Literal[COMMANDS]  # type: ignore[valid-type]
    arguments: tuple[str, ...] = ()
    """Words of the command line; `{inputs}` stands for the folder of that name, `{secret}` for what was left out."""
    cell: Mapping[str, Any] = Field(default_factory=dict)
    """What the run said of this test's guests: the fields of a `Cell`."""
    seeds: Mapping[str, int] = Field(default_factory=dict)
    """All that is random, by what draws it: `soak`, or a scenario's file."""
    devices: Mapping[str, Any] = Field(default_factory=dict)
    """The devices that guests had, by their servers' names: what each is, and its options."""
    programs: tuple[Program, ...] = ()
    files: Mapping[str, str] = Field(default_factory=dict)
    """SHA-256 of programs and sources that the command names, by their paths as written."""
    qemu: QemuFacts | None = None
    accelerator: str = ""
    images: Mapping[str, str] = Field(default_factory=dict)
    """Digests of guest images, by name."""
    versions: Mapping[str, str] = Field(default_factory=dict)
    """Of vfio-user (and the digest of its sources), Python, the host's kernel."""


class Seen(Part):
    """A thing that was looked at: whether it was right, and what was seen."""

    what: str
    ok: bool
    seen: str = ""


class Outcome(Part):
    """What came of it: `cause` is the first cause in a sentence, `saw` what the guest saw."""

    verdict: Verdict
    cause: str = ""
    saw: tuple[Seen, ...] = ()


class Content(Part):
    """A file of the bundle."""

    size: int
    sha256: str


class Bundle(Part):
    """A whole bundle.json."""

    format: int = FORMAT
    of: str
    """What was run, for people."""
    made: str
    """When, as ISO 8601."""
    outcome: Outcome
    recipe: Recipe
    contents: Mapping[Name, Content] = Field(default_factory=dict)
    left_out: Mapping[str, str] = Field(default_factory=dict)
    """What was there and is not in it, by name: why."""

    def document(self) -> bytes:
        """The text of its bundle.json. Bytes of a command line that are no UTF-8 are in it as JSON can have them."""
        text = json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n"
        return text.encode(errors="backslashreplace")


def without_option(words: Sequence[str], option: str) -> tuple[str, ...]:
    """A recipe's arguments without an option and its value."""
    kept = list(words)
    while option in kept:
        at = kept.index(option)
        del kept[at : at + 2]
    return tuple(kept)


P = TypeVar("P", bound=Part)


def without_secrets(part: P, secrets: Secrets) -> P:
    """The same, its texts and command lines without secrets."""
    return type(part).model_validate(secrets.values(part.model_dump()))


def schema() -> dict[str, Any]:
    """The JSON schema of bundle.json."""
    return Bundle.model_json_schema()
