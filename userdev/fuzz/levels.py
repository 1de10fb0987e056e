"""Which rules a server is held to: what the specification says, or what the reference does beyond it as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from userdev.conformance import Check, Level, cause_of_failure
from userdev.conformance.check import B
from userdev.errors import UserdevError
from userdev.fuzz.finds import CHECK, Find, Found, Oracle

DEFAULT = "reference"
LEVELS: dict[str, frozenset[Level]] = {
    "must": frozenset({Level.MUST}),
    DEFAULT: frozenset({Level.MUST, Level.REFERENCE}),
}
"""By what a command line says. What is open is nobody's find."""


class Tolerated(Exception):
    """The server has done what the rules that it is held to leave to it: what it keeps of the client is not known."""


def level_of(find: Find) -> str:
    """What the server of a find was held to, which it is again where the find is played."""
    said = find.subject.get("level", DEFAULT)
    return said if said in LEVELS else DEFAULT


def judge(
    id: str,
    catalogue: Mapping[str, Check[B]],
    attempt: Callable[[Check[B]], None],
    *,
    level: str,
    oracle: Oracle,
    silence: tuple[type[UserdevError], ...],
) -> None:
    """Have a check of conformance hold. `attempt` runs one, and `silence` is what it raises of a server that is silent.

    Raises:
        Found: it does not, or one that it needs does not, which is the cause then.
        Tolerated: it need not.
        silence: as it was raised.
    """
    failure = cause_of_failure(id, catalogue, attempt)
    if failure is None:
        return
    if isinstance(failure.error, silence):
        raise failure.error
    if failure.check.level not in LEVELS[level]:
        raise Tolerated
    raise Found(oracle, f"{CHECK}{failure.check.id}", str(failure.error), level=failure.check.level) from failure.error
