"""The scenario language: a YAML document, checked before anything runs; what is wrong is said with its line.

::

    seed: 7
    rules:
      - name: every third one is late, and never the same
        match: {direction: to-server, nth: {every: 3}}
        act:
          - corrupt: {at: 20, xor: 1}
          - delay: 0.5

The models below are what all protocols have in common. A protocol has a `Match`, which knows its messages' names and
more, an `Act`, a `Rule` of the two, and a `Scenario` of such rules, which is the whole language.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from userdev.documents import parse, read_text
from userdev.interposer.faults.use import RuleShown, RuleUse, rule_name
from userdev.relay.direction import DIRECTIONS, Direction
from userdev.trace import Decoded
from userdev.trace.lines import PAYLOAD
from userdev.written import Written, refuse_unmeant, refused, unknown


def one_of(name: str) -> BeforeValidator:
    """Let the act's main value be written alone: `delay: 0.5`; and nothing at all where all has a default."""

    def wrap(value: Any) -> Any:
        if value is None:
            return {}
        return value if isinstance(value, dict | BaseModel) else {name: value}

    return BeforeValidator(wrap)


def parsed_number(value: Any) -> Any:
    """Let a number be written as "0x10"."""
    try:
        return int(value, 0) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f'{value!r:.100} is no number: 16, or "0x10"') from None


def _errno(value: Any) -> Any:
    if isinstance(value, str):
        if value not in errnos.errorcode.values():
            raise ValueError(f"{value!r} is no errno")
        return getattr(errnos, value)
    return value


def _hex(value: Any) -> Any:
    try:
        return bytes.fromhex(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{value!r:.100} are no bytes in hexadecimal digits: 00ff") from None


def listed(value: Any) -> Any:
    """Let one value stand for a list of it."""
    return value if isinstance(value, list) else [value]


class ScenarioModel(Written):
    """A mapping of the document: unknown keys are errors, and a key has a dash where its field has an underscore."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"), populate_by_name=True
    )


Seconds = Annotated[float, Field(ge=0, le=86400)]
Number = Annotated[int, BeforeValidator(parsed_number)]
Hex = Annotated[bytes, BeforeValidator(_hex)]
Count = Annotated[int, BeforeValidator(parsed_number), Field(ge=1)]


class Nth(ScenarioModel):
    """Which of the messages that match otherwise: the `from`th on, and of those every `every`th, up to `until`."""

    every: Count = 1
    from_: Annotated[Count, Field(alias="from")] = 1
    until: Count | None = None

    def includes(self, count: int) -> bool:
        """Whether the `count`th message that matches otherwise is one of these; the first is 1."""
        if count < self.from_ or (self.until is not None and count > self.until):
            return False
        # `every: 3` alone means the third, sixth, ninth.
        return (count - self.from_ + 1) % self.every == 0 if self.from_ == 1 else (count - self.from_) % self.every == 0


class Time(ScenarioModel):
    """Seconds since the session began."""

    after: Seconds = 0
    before: Seconds | None = None


class Match(ScenarioModel):
    """Which messages; what is left out matches all."""

    direction: Literal["to-server", "to-client"] | None = None
    kind: Annotated[list[Literal["request", "posted", "reply", "error"]], BeforeValidator(listed)] | None = None
    nth: Annotated[Nth | list[Count], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)] = (
        Nth()
    )
    time: Time = Time()
    state: list[str] | None = None
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0

    def fits(self, direction: Direction, decoded: Decoded, state: str, seconds: float) -> bool:
        """Whether a message is one of these, their number and probability aside; `state` is the session's, `seconds`
        those since it began.
        """
        if self.direction is not None and DIRECTIONS[self.direction] is not direction:
            return False
        if self.kind is not None and decoded.kind not in self.kind:
            return False
        if self.state is not None and state not in self.state:
            return False
        return seconds >= self.time.after and (self.time.before is None or seconds < self.time.before)

    def includes(self, count: int) -> bool:
        """Whether the `count`th message (from 1) that matches otherwise is meant."""
        return count in self.nth if isinstance(self.nth, list) else self.nth.includes(count)


class Nothing(ScenarioModel):
    """An act without parameters."""


class Delay(ScenarioModel):
    """Later, and everything behind it in its direction too; with `overtake` the others pass it."""

    seconds: Seconds
    jitter: Seconds = 0
    """Up to so much more, at random."""
    overtake: bool = False


class Duplicate(ScenarioModel):
    """`times` more of it, right behind."""

    times: Annotated[Count, Field(le=1000)] = 1


class Reorder(ScenarioModel):
    """Behind the next `after` messages of its direction; alone after `within` seconds where fewer come."""

    after: Count = 1
    within: Seconds = 1.0


class Corrupt(ScenarioModel):
    """Change a field (of the header, or of the command's structure), or the bytes at an offset of the message.

    Where both have one, as `flags` and `size`, `payload.flags` is the structure's.
    """

    field: str | None = None
    at: Annotated[int, BeforeValidator(parsed_number), Field(ge=0)] | None = None
    value: Number | None = None
    xor: Number | None = None
    bytes: Hex | None = None
    random: bool = False

    known_fields: ClassVar[frozenset[str]] = frozenset()
    """The names of all fields that a message of the protocol can have."""

    @model_validator(mode="after")
    def _complete(self) -> Corrupt:
        if (self.field is None) == (self.at is None):
            raise ValueError("say what to corrupt: field, or at")
        if self.field is not None and self.field.removeprefix(PAYLOAD) not in self.known_fields:
            raise ValueError(f"{self.field!r} is a field of no message: {', '.join(sorted(self.known_fields))}")
        given = [self.value is not None, self.xor is not None, self.bytes is not None, self.random]
        if given.count(True) != 1:
            raise ValueError("say how to corrupt it, in one way: value, xor, bytes, or random")
        return self


class Truncate(ScenarioModel):
    """Cut the message to `to` bytes, its header included; `size` keep leaves the old size in its header."""

    to: Annotated[int, Field(ge=0)]
    size: Literal["adjust", "keep"] = "adjust"


class WrongSize(ScenarioModel):
    """Another size in the header than the message has."""

    size: Annotated[int, BeforeValidator(parsed_number), Field(ge=0, le=0xFFFFFFFF)] | None = None
    by: Number | None = None

    @model_validator(mode="after")
    def _complete(self) -> WrongSize:
        if (self.size is None) == (self.by is None):
            raise ValueError("say which size: size, or by (so many bytes more)")
        return self


class ExtraFd(ScenarioModel):
    """More descriptors than it had, `count` of them, of an empty memfd."""

    count: Annotated[Count, Field(le=253)] = 1


class MissingFd(ScenarioModel):
    """Without its descriptors, or without the one of this index."""

    index: Annotated[int, Field(ge=0)] | None = None


class ErrorReply(ScenarioModel):
    """Answer the request with this errno ourselves; the other side never sees it."""

    errno: Annotated[int, BeforeValidator(_errno), Field(ge=0, le=4095)]


class Stall(ScenarioModel):
    """Send the header of what goes to the server, and nothing more in this direction for so long, or ever again."""

    seconds: Seconds | None = None


class Split(ScenarioModel):
    """Send so many bytes of the header first, and the rest after a pause."""

    at: Annotated[int, Field(ge=1, le=15)] = 8
    seconds: Seconds = 0.01


class Close(ScenarioModel):
    """Close the connection: of either side, full or half (no more reading, or no more writing, by us).

    Behind the message where something else is done to that, else before it.
    """

    side: Literal["client", "server", "both"] = "both"
    how: Literal["full", "read", "write"] = "full"


class Signal(ScenarioModel):
    """Signal the server at once; with `seconds` SIGCONT follows."""

    signal: Literal["SIGSTOP", "SIGCONT", "SIGKILL", "SIGTERM"]
    seconds: Seconds | None = None


class Hold(ScenarioModel):
    """Let it wait, and all requests of the client with it, until `resume` on the control socket."""


class Act(ScenarioModel):
    """One thing to do, named by its key."""

    drop: Annotated[Nothing | None, one_of("")] = None
    delay: Annotated[Delay | None, one_of("seconds")] = None
    duplicate: Annotated[Duplicate | None, one_of("times")] = None
    reorder: Annotated[Reorder | None, one_of("after")] = None
    corrupt: Annotated[Corrupt | None, one_of("field")] = None
    truncate: Annotated[Truncate | None, one_of("to")] = None
    wrong_size: Annotated[WrongSize | None, one_of("size")] = None
    extra_fd: Annotated[ExtraFd | None, one_of("count")] = None
    missing_fd: Annotated[MissingFd | None, one_of("index")] = None
    reply: Annotated[ErrorReply | None, one_of("errno")] = None
    stall_after_header: Annotated[Stall | None, one_of("seconds")] = None
    split_header: Annotated[Split | None, one_of("at")] = None
    close: Annotated[Close | None, one_of("side")] = None
    signal: Annotated[Signal | None, one_of("signal")] = None
    hold: Annotated[Hold | None, one_of("")] = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """`drop` alone is `{drop: {}}`."""
        value = {value: {}} if isinstance(value, str) else value
        known = [name.replace("_", "-") for name in cls.model_fields]
        for name in value if isinstance(value, dict) else ():
            if name not in known:
                raise ValueError(unknown("act", name, known))
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Act:
        if len(self.model_fields_set) != 1:
            raise ValueError("an act has exactly one name; several acts are a list")
        return self

    @property
    def name(self) -> str:
        """The act's name, as it is written."""
        return next(iter(self.model_fields_set)).replace("_", "-")

    @property
    def what(self) -> ScenarioModel:
        """The act's own model."""
        found: ScenarioModel = getattr(self, next(iter(self.model_fields_set)))
        return found


_BESIDE = frozenset({"hold", "close", "signal"})
"""Acts that do something to the session, whatever becomes of the message."""
_ONLY_WITH: Mapping[str, tuple[frozenset[str], str]] = {
    "drop": (_BESIDE, "nothing of a message that is dropped is sent"),
    "reply": (_BESIDE | {"delay", "reorder"}, "nothing of a request that is answered here is sent on"),
}
"""Acts that most others could do nothing beside: those that can, and why the others cannot."""
_ONCE = frozenset({"reorder", "truncate", "wrong-id", "wrong-size", "stall-after-header", "split-header", "hold"})
"""Acts of which a second one would undo the first."""


def clash(act: str, others: Iterable[str]) -> str:
    """Why an act and one of `others` cannot both be done to a message; "" where they can."""
    for other in others:
        if act == other and act in (*_ONLY_WITH, *_ONCE):
            return f"{act} is done once to a message"
        for one, another in ((act, other), (other, act)):
            if one in _ONLY_WITH and another not in _ONLY_WITH[one][0]:
                return f"no {another} with {one}: {_ONLY_WITH[one][1]}"
        if {act, other} == {"duplicate", "stall-after-header"}:
            return "no duplicate with stall-after-header: nothing goes on behind half a message"
    return ""


def _all_done(acts: list[Any]) -> list[Any]:
    for number, act in enumerate(acts):
        if why := clash(act.name, [before.name for before in acts[:number]]):
            raise ValueError(why)
    return acts


MatchT = TypeVar("MatchT", bound=Match)
ActT = TypeVar("ActT", bound=Act)


class Rule(ScenarioModel, Generic[MatchT, ActT]):
    """What to match, and what to do then, in order."""

    name: str = ""
    match: MatchT
    act: Annotated[list[ActT], BeforeValidator(listed), AfterValidator(_all_done), Field(min_length=1)]
    times: Count | None = None
    """How often at most; without it as often as it matches."""


RuleT = TypeVar("RuleT", bound=Rule[Any, Any])


class Scenario(ScenarioModel, Generic[RuleT]):
    """A whole document. `seed` fixes everything that is random."""

    seed: int = 0
    rules: list[RuleT]
    _uses: list[RuleUse] = PrivateAttr(default_factory=list)

    def model_post_init(self, context: Any) -> None:
        """Begin to count: sessions come and go, and a scenario happens to each of them."""
        self._uses = [RuleUse() for _ in self.rules]

    @property
    def uses(self) -> Sequence[RuleUse]:
        """How often each of its rules has acted, over all sessions."""
        return self._uses

    def shown(self) -> list[RuleShown]:
        """Its rules, and that of them."""
        return [
            {
                "name": rule_name(number, rule.name),
                "matched": use.matched,
                "acted": use.acted,
                "in_vain": use.in_vain,
                "probability": rule.match.probability,
            }
            for number, (rule, use) in enumerate(zip(self.rules, self._uses, strict=True))
        ]


AnyScenario = Scenario[Any]
ScenarioT = TypeVar("ScenarioT", bound=AnyScenario)


def parse_scenario(language: type[ScenarioT], text: str, source: str) -> ScenarioT:
    """The scenario of a protocol's in a YAML text; `source` is its name in errors.

    Raises:
        UserError: it is wrong; with line and reason, each thing that is wrong on a line of its own.
    """
    document, root = parse(text, source)
    if root is not None:
        refuse_unmeant(source, root)
    try:
        return language.model_validate(document)
    except ValidationError as error:
        raise refused(source, root, error.errors()) from None


def load_scenario(language: type[ScenarioT], path: str | Path) -> ScenarioT:
    """The scenario of a protocol's in a file.

    Raises:
        UserError: it cannot be read, or is wrong.
    """
    return parse_scenario(language, read_text(path, "scenario"), str(path))
