"""What tests of both fuzzers share."""

from __future__ import annotations

from pathlib import Path

from userdev.fuzz import Find, Summary


class Quiet:
    """Listens, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def played(self, summary: Summary) -> None:
        self.heard.append("played")

    def found(self, find: Find) -> None:
        self.heard.append(f"found {find.cause}")

    def reducing(self, left: int, tries: int) -> None:
        self.heard.append(f"{left} left")

    def kept(self, find: Find, path: Path | None) -> None:
        self.heard.append(f"kept {find.cause}")
