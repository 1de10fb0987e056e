"""What was found: where an oracle said no, and after which steps. A find is a file that can be played again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from userdev.conformance import Level
from userdev.errors import UserdevError, UserError, about
from userdev.fuzz.steps import Step
from userdev.process import PRINTED_NOTHING

FORMAT = "userdev fuzz find"
VERSION = 1
MAX_FILE = 16 << 20
"""Bytes of a file that is read: a find has a hundred steps at most, and each is short."""
_NUMBERS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]*\d[0-9a-f]*\b", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
BY_REFERENCE = "reference"
"""The oracle, of every protocol, that another server is."""
CHECK = "check "
"""What the cause of a find begins with that is the failure of a check of conformance, whose id follows."""


@dataclass(frozen=True)
class Oracle:
    """A rule that holds for any server, whatever its device: who says so, and how it is tried."""

    id: str
    rule: str


class Found(UserdevError):
    """The server does what no server may. `cause` is the same for whatever is the same mistake."""

    def __init__(self, oracle: Oracle, cause: str, what: str, *, level: Level = Level.MUST) -> None:
        """`level` is the authority of what it breaks."""
        super().__init__(what)
        self.oracle = oracle
        self.level = level
        self.cause = f"{oracle.id}: {cause}"
        self.begun: int | None = None
        """How many steps had begun; None: that is not known."""

    def at(self, begun: int) -> Found:
        """The same, where it is known how many steps of its sequence had begun."""
        self.begun = begun
        return self

    @property
    def name(self) -> str:
        """That of its find."""
        return name_of(self.oracle.id, self.cause)

    @property
    def headline(self) -> str:
        """One line for people, as that of a `Find`."""
        return _headline(self.oracle.id, self.cause, str(self))


def _headline(oracle: str, cause: str, what: str) -> str:
    seen, *more = what.splitlines() or [""]
    named = cause.removeprefix(f"{oracle}: ")
    if named in cause_of(seen):
        return f"{oracle}: {seen}"
    with_numbers = next((line.strip().rstrip(":") for line in more if named in cause_of(line)), named)
    return f"{oracle}: {with_numbers}: {seen}"


def name_of(oracle: str, cause: str) -> str:
    """A name for a find's file, and for its check: the oracle's, and what tells its causes apart."""
    return f"{oracle}-{hashlib.sha256(cause.encode()).hexdigest()[:10]}"


def cause_of(text: str) -> str:
    """A text without the numbers that differ from one time to the next."""
    return _SPACE.sub(" ", _NUMBERS.sub("#", text)).strip()[:200]


def silence_of(oracle: Oracle, what: str, crash: str) -> Found:
    """The find that a server does not answer: how it has crashed, where it has ("" if not), else `what` was seen."""
    told = [line for line in crash.splitlines() if line.strip() and not line.lstrip().startswith(PRINTED_NOTHING)]
    return Found(oracle, cause_of(told[-1].rstrip(":") if told else what), crash or what)


@dataclass(frozen=True)
class Find:
    """A find as it is kept. `subject` says of what it was found, for people; `times`: sequences that led to it."""

    protocol: str
    oracle: str
    rule: str
    cause: str
    what: str
    steps: tuple[Step, ...]
    seed: int = 0
    sequence: int = 0
    reproduced: bool = False
    """Whether it was seen again with a fresh server and these steps alone."""
    minimal: bool = False
    times: int = 1
    subject: Mapping[str, str] = field(default_factory=dict)
    said: str = ""
    """What a server that was started for it complained of meanwhile: an exception with its line, or a warning."""
    level: str = Level.MUST.name
    """The authority of the rule that was broken, as `Level` names it."""

    @property
    def name(self) -> str:
        """A name for its file, and for its check."""
        return name_of(self.oracle, self.cause)

    @property
    def check(self) -> str:
        """The id of the check of conformance that failed; empty where the find is of another kind."""
        named = self.cause.removeprefix(f"{self.oracle}: {CHECK}")
        return "" if named == self.cause else named

    @property
    def beside_reference(self) -> bool:
        """Whether it is an answer that a reference gave otherwise, which is seen only beside that."""
        return self.oracle == BY_REFERENCE

    @property
    def headline(self) -> str:
        """One line for people: the cause, and what was seen; no more than that where it says the cause too."""
        return _headline(self.oracle, self.cause, self.what)

    def write(self, folder: Path) -> Path:
        """Write it into a folder, which is made; the file's path.

        Raises:
            OSError: that cannot be done.
        """
        path = folder / f"{self.name}.json"
        with about(path):
            folder.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            new.write_text(json.dumps(self.plain(), indent=1) + "\n")
            new.replace(path)
        return path

    def plain(self) -> dict[str, Any]:
        """The find as JSON has it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **{key: value for key, value in vars(self).items() if key not in ("steps", "subject")},
            "subject": dict(self.subject),
            "steps": [step.plain() for step in self.steps],
        }

    @classmethod
    def read(cls, path: Path) -> Find:
        """Read what `write` has written.

        Raises:
            UserError: it is no find, or one of a later version.
        """
        plain = _json(path)
        if plain is None:
            raise UserError(f"{path} is no find of a fuzzer", hint="`fuzz` writes them, and `replay` plays traces too")
        if plain.get("version") != VERSION:
            raise UserError(f"{path}: version {plain.get('version')!r} of finds is not known here: {VERSION} is")
        try:
            steps = tuple(map(Step.from_plain, plain["steps"]))
            texts = {name: str(plain[name]) for name in ("protocol", "oracle", "rule", "cause", "what")}
            numbers = {name: int(plain.get(name, 0)) for name in ("seed", "sequence", "times")}
            texts["said"] = str(plain.get("said", ""))
            texts["level"] = Level(plain.get("level", Level.MUST.name)).name
            facts = {name: bool(plain.get(name)) for name in ("reproduced", "minimal")}
            subject = {str(key): str(value) for key, value in dict(plain.get("subject", {})).items()}
        except (KeyError, TypeError, ValueError, OverflowError, UserError) as error:
            raise UserError(f"{path}: no find can be made of it: {error!s}") from None
        return cls(**texts, steps=steps, **numbers, **facts, subject=subject)  # type: ignore[arg-type]


def is_find(path: Path) -> bool:
    """Whether a file is a find, and not a trace."""
    return _json(path) is not None


def corpus(folder: Path, protocol: str) -> Sequence[tuple[Path, Find]]:
    """The finds of a folder, by their files' names.

    Raises:
        UserError: there is no folder, one of its files is no find, or it has none for this protocol.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", hint="`fuzz --output DIR` writes finds into one")
    finds = [(path, Find.read(path)) for path in sorted(folder.glob("*.json"))]
    ours = [(path, find) for path, find in finds if find.protocol == protocol]
    if not ours:
        others = " and ".join(sorted({find.protocol for _, find in finds}))
        hint = f"`conformance --corpus` of {others} plays them" if finds else "`fuzz --output DIR` writes them"
        only = f", only {len(finds)} for {others}" if finds else ""
        raise UserError(f"{folder} has no finds for {protocol}{only}", hint=hint)
    return ours


def _json(path: Path) -> dict[str, Any] | None:
    with about(path), path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if data.lstrip()[:1] != b"{" or len(data) > MAX_FILE:
        return None
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return plain if isinstance(plain, dict) and plain.get("format") == FORMAT else None
