"""The scenario language of vhost-user: `userdev.interposer.faults.scenario` with its messages, rings and states.

`vhost-user interpose --print-faults-schema` prints it as JSON schema.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from userdev.interposer.faults import scenario
from userdev.interposer.faults.scenario import listed, one_of, parsed_number
from userdev.relay.direction import Direction
from userdev.trace import Decoded
from vhost_user.interposer.asker import request_named
from vhost_user.interposer.decode import DecodedMessage, known_fields
from vhost_user.interposer.session_model import STATES
from vhost_user.wire import VRING_MASK


def _command(value: Any) -> str:
    return request_named(str(value))


class Match(scenario.Match):
    """Which messages; what is left out matches all. `command` is a request's name, BACKEND_... of the back-end's."""

    command: Annotated[list[Annotated[str, BeforeValidator(_command)]], BeforeValidator(listed)] | None = None
    ring: Annotated[int, BeforeValidator(parsed_number), Field(ge=0, le=VRING_MASK)] | None = None
    state: Annotated[list[Literal[STATES]], BeforeValidator(listed)] | None = None  # type: ignore[valid-type]

    def fits(self, direction: Direction, decoded: Decoded, state: str, seconds: float) -> bool:
        """Whether a message is one of these, by its ring too; see the base class."""
        assert isinstance(decoded, DecodedMessage)
        if self.command is not None and decoded.command not in self.command:
            return False
        if self.ring is not None and decoded.ring != self.ring:
            return False
        return super().fits(direction, decoded, state, seconds)


class Corrupt(scenario.Corrupt):
    """Change a field (of the header, or of the payload's structure), or the bytes at an offset of the message.

    Where both have one, as `flags` and `size`, `payload.flags` is the payload's.
    """

    known_fields: ClassVar[frozenset[str]] = known_fields()


class Act(scenario.Act):
    """One thing to do, named by its key."""

    corrupt: Annotated[Corrupt | None, one_of("field")] = None


class Rule(scenario.Rule[Match, Act]):
    """What to match, and what to do then, in order."""

    match: Match = Match()


class Scenario(scenario.Scenario[Rule]):
    """A whole document. `seed` fixes everything that is random."""


def parse_scenario(text: str, source: str) -> Scenario:
    """The scenario in a YAML text; `source` is its name in errors.

    Raises:
        UserError: it is wrong; with line and reason, each thing that is wrong on a line of its own.
    """
    return scenario.parse_scenario(Scenario, text, source)
