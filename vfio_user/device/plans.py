"""What a device has planned: work that is done once where handlers run, unless it is cancelled or a reset comes first.

Migration that has stopped the device holds it: what would be done then is not in the state that was saved.
"""

from __future__ import annotations

from collections.abc import Callable

Work = Callable[[], None]


class Planned:
    """One piece of work that `PciDevice.call_later` has planned."""

    __slots__ = ("_forget", "_plans", "_work", "number")

    def __init__(self, plans: Plans, number: int, work: Work) -> None:
        self.number = number
        """Which reset it was planned after."""
        self._plans = plans
        self._work: Work | None = work
        self._forget: Work | None = None

    def cancel(self) -> None:
        """Have it not done, unless it has begun. From any thread; idempotent."""
        self._work = None
        if self._forget is not None:
            self._forget()

    def on_cancel(self, forget: Work) -> None:
        """`forget` is told of `cancel`, by whoever keeps this until its time comes."""
        self._forget = forget

    def due(self) -> None:
        """Its time has come: it is done, or held."""
        self._plans.due(self)

    def do(self) -> None:
        """Do the work, unless it was done or cancelled."""
        work, self._work = self._work, None
        if work is not None:
            work()


class Plans:
    """The plans of one device. `plan` may be called from any thread, all else where handlers run."""

    def __init__(self, may_run: Callable[[], bool]) -> None:
        """What comes due while the device may not run is held."""
        self._may_run = may_run
        self._resets = 0
        self._held: list[Planned] = []

    def plan(self, work: Work) -> Planned:
        """Make a plan; whoever keeps time calls its `due`."""
        return Planned(self, self._resets, work)

    def due(self, planned: Planned) -> None:
        """Do what is due, hold it while the device may not run, or drop it where a reset came since."""
        if planned.number != self._resets:
            return
        if self._may_run():
            planned.do()
        else:
            self._held.append(planned)

    def take_held(self) -> list[Planned]:
        """Take the work that has been held, and is due again."""
        held, self._held = self._held, []
        return held

    def drop(self) -> None:
        """Whatever was planned so far is not done."""
        self._resets += 1
        self._held.clear()
