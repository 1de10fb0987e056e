"""What a mutant is: a small change of one module."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tests.seeded_bugs.catalogue import module_name
from tests.seeded_bugs.planting import ROOT


@dataclass(frozen=True)
class Mutant:
    """One small change: the lines `old` of `file`, of which the first is `line`, become `new`."""

    file: str
    line: int
    last_line: int
    """Of the statement or expression that is changed: a test that reaches any line of it reaches the mutant."""
    old: str
    new: str
    planted: str

    @property
    def module(self) -> str:
        return module_name(self.file)

    @property
    def path(self) -> Path:
        return ROOT / self.file

    @property
    def id(self) -> str:
        """The same as long as the module is."""
        return hashlib.sha256(f"{self.file}\0{self.planted}".encode()).hexdigest()[:12]
