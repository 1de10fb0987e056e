"""Running the catalogue: one connection and one result per check, whatever the server does."""

from __future__ import annotations

import inspect
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

from userdev.conformance.check import Check, Level, Skip, Unmet
from userdev.errors import UserdevError, UserError
from userdev.transport import Stream


class Crash(NamedTuple):
    """The end of a server. `by_itself` where it has ended with a status, as one may that does not go on."""

    text: str
    by_itself: bool = False


class ServerUnderTest(Protocol):
    """The server under test, as whoever runs checks sees it."""

    def renew(self) -> None:
        """Replace the server by a fresh one, where that is possible."""

    def crashed(self) -> Crash | None:
        """How the server died of itself, or came to serve nobody, since this was last asked; None otherwise."""


class Target(ServerUnderTest, Protocol):
    """The same, of whatever protocol, as its checks see it."""

    def connect(self) -> Stream:
        """A new connection; starts the server where it can and has to."""

    def settle(self, stays: Callable[[Stream, float], None] | None = None) -> None:
        """Wait until the server has dealt with what its clients have sent and that they left, or has died of it.

        What it is found out by is one more client, which leaves at once. With `stays` one is greeted by that, with so
        many seconds for each answer, and goes on with the stream: where the server serves nobody, there is none.
        """

    @property
    def pid(self) -> int | None:
        """The server's process, where it is known."""


class Cause(NamedTuple):
    """What a server was seen to do that explains whatever goes wrong: one finding, whichever check meets it."""

    rule: str
    """What it does not keep, as the object of "needs"."""
    said: str
    check: str = ""
    """Id of the check that tries this rule, which is tried before anything else is judged by it."""


class Workbench(Protocol):
    """One check's view of the server."""

    def begin(self) -> None:
        """Begin a conversation with the server, as nearly every check does.

        Raises:
            UserdevError: it lets nobody.
        """

    def hurry(self) -> None:
        """Wait for no answer longer than a server takes that gives it: what the check needs has gone wrong."""

    def cause(self) -> Cause | None:
        """What was seen of the server that explains why the check went wrong, whatever that says; None mostly."""

    def close(self) -> None:
        """Close all that the check has opened."""


B = TypeVar("B", bound=Workbench)


class Outcome(Enum):
    """The outcomes of a check."""

    PASS = "pass"
    FAIL = "fail"
    DIFFERS = "differs"
    """A rule of level OPEN is not kept: no failure, and worth knowing."""
    SKIP = "skip"
    NOT_JUDGED = "not judged"
    """It went wrong, and so did a check that it needs: one finding, not two."""
    BROKEN = "broken"
    """The check's own mistake, told with its line: nothing is known of the server by it."""


_WRONG = frozenset({Outcome.FAIL, Outcome.DIFFERS, Outcome.NOT_JUDGED, Outcome.BROKEN})


@dataclass
class CheckResult(Generic[B]):
    """The result of one check. `detail` is what the server did, or why the check was skipped."""

    check: Check[B]
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0
    relied_on: tuple[str, ...] = ()
    """Ids of checks without whose rules nothing is known of this one's."""
    unmet: str = ""
    """Id of the check whose rule it is that went wrong, before this one's own work."""
    request: str = ""
    """What of the protocol the server did not do, where it is that: one finding, whichever checks need it."""
    crashed: bool = False
    """The server has died of it, which is a finding whatever else is wrong."""
    cause: str = ""
    """Id of the check of the rule that explains it, whatever this one is about."""


def run(
    checks: Sequence[Check[B]],
    target: ServerUnderTest,
    bench: Callable[[], B],
    *,
    dialect: str,
    settle: Callable[[], None],
    started: Callable[[Check[B]], None] | None = None,
) -> Iterator[CheckResult[B]]:
    """Run the checks in order, each on a bench of its own; where there can be a fresh server, the group gets one that
    follows a check that went wrong.

    `settle` waits until the server has dealt with what its clients have sent and that they left, or has died of it: a
    server that dies fails the check that it dies of. `started` is told of each check before it begins.

    A check that goes wrong is not judged where one before it that it needs has gone wrong, or has failed of the same
    request.
    It is tried all the same, in a hurry, as the server may die of it. One whose cause is the rule of a check to come is
    tried again behind that.
    None is tried where one has gone wrong and the server begins no conversation with anybody.
    """
    first = ""  # the check that the server was fresh for
    tainted = False  # one that it has served has gone wrong
    unsound: set[str] = set()
    undone: dict[str, str] = {}  # requests of which a check has failed: which
    speaks = False  # it has begun a conversation since a check went wrong, and has not died since
    mute = ""  # what became of the conversations that it does not begin

    def judged(result: CheckResult[B], since: str = "") -> CheckResult[B]:
        nonlocal first, tainted, speaks, mute
        crash = target.crashed()
        result = _judge(_blame(result, crash, since), unsound, undone)
        if crash is not None:
            first = ""
        if result.outcome in _WRONG:
            tainted = True
            unsound.add(result.check.id)
            if result.outcome is Outcome.FAIL and result.request:
                undone.setdefault(result.request, result.check.id)
            if crash is not None or not speaks:
                refusal = _refusal(bench)
                speaks = refusal is None
                if refusal is not None:
                    mute = f"the server begins no conversation: {refusal}; that is the failure of {result.check.id}"
                    result = _failed_for_all(result, refusal)
        return result

    def judged_last(result: CheckResult[B]) -> CheckResult[B]:
        """The result of the last check that a server gets: how that ends is part of it."""
        nonlocal first, tainted
        target.renew()
        result = judged(result, first)
        first, tainted = "", False
        return result

    held: CheckResult[B] | None = None
    left = deque(checks)
    while left:
        check = left.popleft()
        if held is not None:
            taints = tainted or held.outcome in _WRONG
            yield (judged_last if taints and check.group != held.check.group else judged)(held)
            held = None
        if mute:
            yield CheckResult(check, Outcome.NOT_JUDGED, mute)
            continue
        if started is not None:
            started(check)
        first = first or check.id
        held = _run(check, bench, dialect, hurried=not unsound.isdisjoint(check.needs))
        if held.outcome is not Outcome.SKIP:
            settle()
        cause = next((other for other in left if other.id == held.cause), None)
        if cause is not None and (crash := target.crashed()) is not None:
            held = _blame(held, crash, "")  # or it would be that of the next
        elif cause is not None:
            left.remove(cause)
            left.extendleft((check, cause))
            held = None
    if held is not None:
        yield judged_last(held)


def _run(check: Check[B], bench: Callable[[], B], dialect: str, *, hurried: bool) -> CheckResult[B]:
    if check.dialects is not None and dialect not in check.dialects:
        return CheckResult(check, Outcome.SKIP, f"not a rule of {dialect}")
    own = bench()
    if hurried:
        own.hurry()
    begin = time.monotonic()
    relied_on, unmet, request = check.needs, "", ""
    cause: Cause | None = None
    try:
        check.run(own)
        outcome, detail = Outcome.PASS, ""
    except Skip as reason:
        outcome, detail = Outcome.SKIP, str(reason)
    except Unmet as error:
        outcome, detail, relied_on = _verdict(check), str(error), (error.id, *relied_on)
        unmet, request = error.id, error.request
        cause = own.cause()
    except UserdevError as error:
        outcome, detail = _verdict(check), _said(error)
        request = getattr(error, "request", "")
        cause = own.cause()
    except Exception as error:  # the other checks are worth running all the same
        outcome, detail = Outcome.BROKEN, f"the check itself broke: {error!r}{_line_of(check, error)}"
    finally:
        own.close()
    if cause is not None:
        detail, request = f"{detail}: {cause.said}", cause.rule
    explained = cause.check if cause is not None else ""
    return CheckResult(check, outcome, detail, time.monotonic() - begin, relied_on, unmet, request, cause=explained)


def _refusal(bench: Callable[[], B]) -> str | None:
    """What becomes of a conversation that is begun; None where it goes on. Who may be unlucky once is asked again."""
    for last in (False, True):
        own = bench()
        try:
            own.begin()
        except UserdevError as error:
            if last or isinstance(error, TimeoutError):
                return _said(error)
        else:
            return None
        finally:
            own.close()
    return None


def _failed_for_all(result: CheckResult[B], refusal: str) -> CheckResult[B]:
    """The one failure of a server that begins no conversation, whatever level its check has."""
    detail = result.detail if refusal in result.detail else f"{result.detail}; {refusal}"
    return replace(result, outcome=Outcome.FAIL, detail=detail)


def _line_of(check: Check[B], error: Exception) -> str:
    """Where in the check's function it came from, whatever is around that."""
    inner = traceback.extract_tb(error.__traceback__)[1:]
    code = getattr(inspect.unwrap(check.run), "__code__", None)
    own = [frame for frame in inner if code and (frame.filename, frame.name) == (code.co_filename, code.co_name)]
    at = next(iter((*own, *inner)), None)
    return f" ({at.filename}:{at.lineno})" if at is not None else ""


def _said(error: UserdevError) -> str:
    return f"{error} ({error.hint})" if isinstance(error, UserError) and error.hint else str(error)


def _verdict(check: Check[B]) -> Outcome:
    """What becomes of a check whose rule is not kept."""
    return Outcome.DIFFERS if check.level is Level.OPEN else Outcome.FAIL


def _blame(result: CheckResult[B], crash: Crash | None, since: str) -> CheckResult[B]:
    """The result, or a failure where the server has died since; of which checks, from `since` on, is not known."""
    if crash is not None:
        said = result.detail if result.outcome in (Outcome.FAIL, Outcome.DIFFERS, Outcome.BROKEN) else ""
        outcome = _verdict(result.check) if crash.by_itself else Outcome.FAIL
        detail = f"{said}; {crash.text}" if said else crash.text
        if since.partition("/")[0] not in ("", result.check.group):
            detail += f"\nit had served every check from {since} on: --only GROUP tells whose it is"
        return CheckResult(result.check, outcome, detail, result.seconds, crashed=True)
    return result


def _judge(result: CheckResult[B], unsound: Collection[str], undone: Mapping[str, str]) -> CheckResult[B]:
    """The result, or none where a check that it relies on has gone wrong before, or has failed of the same request.

    A crash is a finding all the same.
    """
    if result.outcome not in (Outcome.FAIL, Outcome.DIFFERS):
        return result
    causes = [id for id in dict.fromkeys(result.relied_on) if id in unsound]
    if causes:
        detail = f"{result.detail}; that needs {', '.join(causes)}, which failed"
    elif result.request in undone:
        detail = f"{result.detail}; that needs {result.request}, of which {undone[result.request]} failed"
    elif result.unmet in ("", result.check.id):
        return result
    else:
        return replace(result, detail=f"{result.detail}; that is the rule of {result.unmet}, which this check needs")
    return replace(result, outcome=Outcome.NOT_JUDGED, detail=detail)
