"""What servers raise beside events that went right: no guest has lost anything by it, and its author wants to know."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from userdev.process import Child
from vfio_user.harness.server_exceptions import logged_exceptions


class Raised:
    """The exceptions in the logs of a guest's programs, each place of them once."""

    def __init__(self) -> None:
        self._read: dict[Child, float] = {}
        """Bytes of each log when it was read last; infinite of a program whose first exception is known."""
        self._places: set[str] = set()

    def told_by(self, children: Iterable[Child]) -> list[str]:
        """What is new in their logs: the first exception of each, in a sentence.

        Logs that have not grown are not read again, and programs that are not among them any more are forgotten.
        """
        sizes = {child: float(_size(child.log)) for child in children}
        grown = [child for child, size in sizes.items() if size > self._read.get(child, 0.0)]
        self._read = {child: max(size, self._read.get(child, 0.0)) for child, size in sizes.items()}
        found = []
        for child in grown:
            for exception in logged_exceptions([child]):
                self._read[child] = math.inf
                if (place := exception.place or exception.what) not in self._places:
                    self._places.add(place)
                    where = f" ({exception.place})" if exception.place else ""
                    found.append(f"a server's own code failed beside events that went right: {exception.what}{where}")
        return found


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:  # it is not there yet, or was let go of
        return 0
