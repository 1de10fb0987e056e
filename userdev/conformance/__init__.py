"""Checks of any server: what one is, and how a catalogue of them is run."""

from userdev.conformance.check import Check, CheckFailed, Group, Level, Skip, require
from userdev.conformance.runner import CheckResult, Outcome, run

__all__ = ["Check", "CheckFailed", "CheckResult", "Group", "Level", "Outcome", "Skip", "require", "run"]
