"""Running the catalogue: one connection and one result per check, whatever the server does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from userdev.errors import UserdevError, UserError
from vfio_user.client.conformance.bench import Bench, Target
from vfio_user.client.conformance.check import Check, CheckFailed, Skip
from vfio_user.wire import Dialect


class Outcome(Enum):
    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@dataclass
class Result:
    """How one check went. `detail` is what the server did, or why the check was skipped."""

    check: Check
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0


def run(
    checks: Sequence[Check],
    target: Target,
    dialect: Dialect,
    *,
    timeout: float = 5.0,
    started: Callable[[Check], None] | None = None,
) -> Iterator[Result]:
    """Run the checks in order, each group against a fresh server where the target has one.

    A server that dies fails the check that it dies of: none begins before the server is done with the one before.
    """
    group = ""
    held: Result | None = None
    for check in checks:
        if check.group != group:
            group = check.group
            target.renew()
        if held is not None:
            yield _blame(held, target)
        if started is not None:
            started(check)
        held = _run(check, target, dialect, timeout)
        if held.outcome is not Outcome.SKIP:
            target.settle(dialect)
    if held is not None:
        target.renew()
        yield _blame(held, target)


def _run(check: Check, target: Target, dialect: Dialect, timeout: float) -> Result:
    if check.dialects is not None and dialect.name not in check.dialects:
        return Result(check, Outcome.SKIP, f"not a rule of {dialect.name}")
    bench = Bench(target, dialect, timeout=timeout)
    begin = time.monotonic()
    try:
        check.run(bench)
        outcome, detail = Outcome.PASS, ""
    except Skip as reason:
        outcome, detail = Outcome.SKIP, str(reason)
    except CheckFailed as failure:
        outcome, detail = Outcome.FAIL, str(failure)
    except UserdevError as error:
        outcome, detail = Outcome.FAIL, _said(error)
    except Exception as error:  # the other checks are worth running all the same
        outcome, detail = Outcome.FAIL, f"the check itself broke: {error!r}"
    finally:
        bench.close()
    return Result(check, outcome, detail, time.monotonic() - begin)


def _said(error: UserdevError) -> str:
    return f"{error} ({error.hint})" if isinstance(error, UserError) and error.hint else str(error)


def _blame(result: Result, target: Target) -> Result:
    """The result, or a failure where the server has died since."""
    crash = target.crashed()
    if crash:
        detail = f"{result.detail}; {crash}" if result.outcome is Outcome.FAIL else crash
        return Result(result.check, Outcome.FAIL, detail, result.seconds)
    return result
