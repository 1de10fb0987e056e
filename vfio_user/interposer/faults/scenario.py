"""The scenario language of vfio-user: `userdev.interposer.faults.scenario` with its commands, regions and states.

`vfio-user interpose --print-faults-schema` prints it as JSON schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from userdev.errors import UserError
from userdev.interposer.faults import scenario
from userdev.interposer.faults.scenario import ScenarioModel, listed, one_of, parsed_number
from userdev.relay.direction import Direction
from userdev.trace import Decoded
from vfio_user.interposer.faults.fields import known_fields
from vfio_user.interposer.trace.decode import DecodedMessage
from vfio_user.interposer.trace.show import parse_offsets, parse_region
from vfio_user.wire import Command
from vfio_user.wire.constants import MigrationState

STATES = ("before-version", "set-up", "running", *MigrationState.__members__)


def _region(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return parse_region(value)
        except UserError as error:
            raise ValueError(f"{error}: {error.hint}") from None
    return value


def _offsets(value: Any) -> Any:
    if isinstance(value, int):
        return value, value
    if isinstance(value, str):
        try:
            return parse_offsets(value)
        except UserError as error:
            raise ValueError(f"{error}: {error.hint}") from None
    return value


def _command(value: Any) -> Any:
    for known in Command:
        if isinstance(value, str) and value.upper() in (known.name, known.value):
            return known
    raise ValueError(f"{value!r} is no command: {', '.join(command.value for command in Command)}")


class Match(scenario.Match):
    """Which messages; what is left out matches all."""

    command: Annotated[list[Annotated[Command, BeforeValidator(_command)]], BeforeValidator(listed)] | None = None
    region: Annotated[int, BeforeValidator(_region)] | None = None
    offset: Annotated[tuple[int, int], BeforeValidator(_offsets)] | None = None
    state: Annotated[list[Literal[STATES]], BeforeValidator(listed)] | None = None  # type: ignore[valid-type]

    def fits(self, direction: Direction, decoded: Decoded, state: str, seconds: float) -> bool:
        """Whether a message is one of these, an access by where it is too; see the base class."""
        assert isinstance(decoded, DecodedMessage)
        if self.command is not None and decoded.command not in [command.value for command in self.command]:
            return False
        if self.region is not None and decoded.region != self.region:
            return False
        if self.offset is not None:
            first, last = self.offset
            if decoded.offset is None or not (decoded.offset <= last and decoded.offset + (decoded.size or 1) > first):
                return False
        return super().fits(direction, decoded, state, seconds)


class Corrupt(scenario.Corrupt):
    """Change a field (of the header, or of the command's structure), or the bytes at an offset of the message.

    Where both have one, as `flags` and `size`, `payload.flags` is the structure's.
    """

    known_fields: ClassVar[frozenset[str]] = known_fields()


class WrongId(ScenarioModel):
    """Another message ID: this one, or a random one."""

    id: Annotated[int, BeforeValidator(parsed_number), Field(ge=0, le=0xFFFF)] | None = None


class Act(scenario.Act):
    """One thing to do, named by its key."""

    corrupt: Annotated[Corrupt | None, one_of("field")] = None
    wrong_id: Annotated[WrongId | None, one_of("id")] = None


class Rule(scenario.Rule[Match, Act]):
    """What to match, and what to do then, in order."""

    match: Match = Match()

    @model_validator(mode="after")
    def _spares_the_client(self) -> Rule:
        if self.match.direction != "to-server" and any(act.stall_after_header is not None for act in self.act):
            raise ValueError(
                "stall-after-header is for `match: {direction: to-server}`: a client may not survive it"
                " (`vfio-user known-issues reply-crash`)"
            )
        return self


class Scenario(scenario.Scenario[Rule]):
    """A whole document. `seed` fixes everything that is random."""


def parse_scenario(text: str, source: str) -> Scenario:
    """The scenario in a YAML text; `source` is its name in errors.

    Raises:
        UserError: it is wrong; with line and reason, each thing that is wrong on a line of its own.
    """
    return scenario.parse_scenario(Scenario, text, source)


def load_scenario(path: str | Path) -> Scenario:
    """The scenario in a file.

    Raises:
        UserError: it cannot be read, or is wrong.
    """
    return scenario.load_scenario(Scenario, path)
