"""Checks of any server: what one is, and how a catalogue of them is run."""

from userdev.conformance.cause import Failure, cause_of_failure
from userdev.conformance.check import (
    Check,
    CheckFailed,
    Group,
    Level,
    Skip,
    Unmet,
    relying,
    require,
    require_known_needs,
)
from userdev.conformance.runner import Cause, CheckResult, Crash, Outcome, Target, Workbench, run

__all__ = [
    "Cause",
    "Check",
    "CheckFailed",
    "CheckResult",
    "Crash",
    "Failure",
    "Group",
    "Level",
    "Outcome",
    "Skip",
    "Target",
    "Unmet",
    "Workbench",
    "cause_of_failure",
    "relying",
    "require",
    "require_known_needs",
    "run",
]
