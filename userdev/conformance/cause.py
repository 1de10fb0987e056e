"""Why a check fails that is tried by itself: of those that it needs the first that does not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic

from userdev.conformance.check import B, Check, Skip, Unmet
from userdev.errors import UserdevError


@dataclass(frozen=True)
class Failure(Generic[B]):
    """A check that has failed, and how."""

    check: Check[B]
    error: UserdevError


def cause_of_failure(
    id: str, catalogue: Mapping[str, Check[B]], attempt: Callable[[Check[B]], None]
) -> Failure[B] | None:
    """Try the check `id`, and where it fails what it needs: what fails first; None where it does not fail.

    attempt: runs one check on a bench of its own; it raises what that does.
    """
    failed = _failure(catalogue[id], catalogue, attempt)
    if failed is None:
        return None
    causes = (cause_of_failure(need, catalogue, attempt) for need in failed.check.needs)
    return next(filter(None, causes), failed)


def _failure(
    check: Check[B], catalogue: Mapping[str, Check[B]], attempt: Callable[[Check[B]], None]
) -> Failure[B] | None:
    try:
        attempt(check)
    except Skip:
        return None
    except Unmet as unmet:
        return Failure(catalogue.get(unmet.id, check), unmet)
    except UserdevError as error:
        return Failure(check, error)
    return None
