"""Checks of any server: what one is, and how a catalogue of them is run."""

from userdev.conformance.check import Check, CheckFailed, Group, Level, Skip, require
from userdev.conformance.runner import Outcome, Result, run

__all__ = ["Check", "CheckFailed", "Group", "Level", "Outcome", "Result", "Skip", "require", "run"]
