"""A guest of a soak without a guest: what happens to it is written down, and it fails when it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vfio_user.soak import Failed, Happening, Journal, Soak, Until
from vfio_user.soak.reduction import Reduction

POSSIBLE = {"hop": [""], "kill": ["edu", "disk"], "pause-qemu": [""], "reboot": [""]}
WEIGHTS = dict.fromkeys(POSSIBLE, 1.0)

Loses = Callable[[Sequence[Happening]], str]
"""What is lost by all that has happened to one guest; nothing: nothing."""


class PretendedGuest:
    """One life; `lived` has what happened, in its order."""

    def __init__(self, loses: Loses) -> None:
        self.possible = {name: [*targets] for name, targets in POSSIBLE.items()}
        self.left_out = {"flr edu": "it has none"}
        self.lived: list[Happening] = []
        self.expected: list[Happening | None] = []
        """What was said to come next, at each event."""
        self.raises: list[str] = []
        """What its servers raise, told once."""
        self.finished = False
        self._loses = loses

    def do(self, happening: Happening, then: Happening | None = None) -> dict[str, Any]:
        self.lived.append(happening)
        self.expected.append(then)
        if lost := self._loses(self.lived):
            raise Failed(lost, "it is gone", evidence="what the guest said")
        downtime = {"downtime": 0.1} if happening.event == "hop" else {}
        return {"seconds": 0.5, "whole": 1.0, "harness_rss": 1000, "harness_fds": 10, **downtime}

    def raised(self) -> list[str]:
        raises, self.raises = self.raises, []
        return raises

    def finish(self) -> None:
        self.finished = True


class Pretended:
    """Fresh guests, and who was told of what."""

    def __init__(self, loses: Loses = lambda _: "") -> None:
        self.loses = loses
        self.guests: list[PretendedGuest] = []
        self.folders: list[str] = []
        self.told: list[str] = []

    @contextmanager
    def __call__(self, folder: Path, *, recorded: bool = False) -> Iterator[PretendedGuest]:
        self.folders.append(folder.name)
        self.guests.append(PretendedGuest(self.loses))
        yield self.guests[-1]

    def begins(self, order: Mapping[str, Sequence[str]], left_out: Mapping[str, str]) -> None:
        self.told.append("begins")

    def happens(self, happening: Happening) -> None: ...

    def happened(self, facts: Mapping[str, Any]) -> None:
        self.told.append("happened")

    def failed(self, happening: Happening, failure: Failed) -> None:
        self.told.append(f"failed: {failure.check}")

    def tries(self, events: Sequence[Happening]) -> None:
        self.told.append(f"tries {len(events)}")

    def reduced(self, reduction: Reduction[Happening]) -> None:
        self.told.append(f"reduced to {len(reduction.events)}")


def soak(path: Path, pretended: Pretended, until: Until, *, seed: int | None = 7, tries: int = 40) -> Soak:
    """A soak of them, whose journal is at `path`."""
    journal = Journal(path, {"devices": ["edu"]}, seed)
    return Soak(pretended, journal, WEIGHTS, until, path.parent, pretended, tries)


def order_of(journal: Journal) -> list[tuple[int, str, str]]:
    return [(line["number"], line["event"], line["target"]) for line in journal.events]
