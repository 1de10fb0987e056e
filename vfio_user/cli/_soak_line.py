"""How `vfio-user soak` tells how it goes: a line that stays for a terminal, a line for each event elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from threading import Timer
from types import TracebackType
from typing import Any, Self

import click
from rich.progress import BarColumn, Progress, TextColumn

from userdev.counted import counted
from userdev.printable import printable
from vfio_user.cli._console import drawing_console
from vfio_user.soak.failed import Failed
from vfio_user.soak.journal import Journal
from vfio_user.soak.order import Happening
from vfio_user.soak.reduction import Reduction
from vfio_user.soak.until import Done, Until

SILENCE_SECONDS = 60.0
"""Seconds that an event goes on before that is said, where no line shows it."""


class Teller:
    """A `soak.loop.Listener` for people. A context manager, as a terminal's line has to end.

    With `as_json` each event's line of the journal goes to stdout, with `quiet` only failures are told, on stderr.
    """

    def __init__(self, journal: Journal, until: Until, *, quiet: bool, as_json: bool) -> None:
        self.left_out: dict[str, str] = {}
        self._journal, self._until = journal, until
        self._quiet, self._as_json = quiet, as_json
        self._worst = max((line["downtime"] for line in journal.events if line.get("downtime")), default=0.0)
        console = drawing_console(err=True)
        live = console.is_terminal and not quiet and not as_json
        self._progress = Progress(BarColumn(20), TextColumn("{task.description}"), console=console, disable=not live)
        self._is_live = live
        self._task = self._progress.add_task("", total=1.0)
        self._silence: Timer | None = None
        """Until it is said what goes on, where no line shows it."""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over()
        self._progress.stop()

    def begins(self, order: Mapping[str, Sequence[str]], left_out: Mapping[str, str]) -> None:
        """Tell once what cannot happen."""
        for what, why in left_out.items():
            if what not in self.left_out:
                self.say(f"left out: {what}: {why}")
        self.left_out |= left_out

    def happens(self, happening: Happening) -> None:
        """Tell what goes on."""
        self._show(f"now {happening}")
        if not self._quiet and not self._is_live:
            self._silence = Timer(SILENCE_SECONDS, self.say, [f"{happening}: goes on for {SILENCE_SECONDS:g} s now"])
            self._silence.daemon = True
            self._silence.start()

    def _is_over(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def happened(self, facts: Mapping[str, Any]) -> None:
        """Tell of an event that was right."""
        self._is_over()
        self._worst = max(self._worst, facts.get("downtime") or 0.0)
        if self._as_json:
            click.echo(json.dumps(facts, default=str))
        elif not self._quiet and not self._is_live:
            click.echo(event_line(facts))
        self._show("")

    def failed(self, happening: Happening, failure: Failed) -> None:
        """Tell what was lost."""
        self._is_over()
        self.say(f"{happening}: {failure}", anyway=True)

    def tries(self, events: Sequence[Happening]) -> None:
        """Tell what is tried of a failure."""
        self.say(f"trying {len(events)}: {', '.join(map(str, events))}")

    def reduced(self, reduction: Reduction[Happening]) -> None:
        """Tell what it takes."""
        what = ", ".join(map(str, reduction.events))
        more = "" if reduction.minimal else "; fewer might, but --tries allows no more"
        told = f"still fails: {what}{more}" if reduction.reproduced else "did not fail again" if reduction.tries else ""
        untried = f"could not be tried{' any more' if reduction.tries else ''}: {reduction.untried}"
        told = "; ".join(filter(None, (told, untried if reduction.untried else "")))
        self.say(f"after {counted(reduction.tries, 'try', 'tries')}: {told}", anyway=True)

    def say(self, text: str, *, anyway: bool = False) -> None:
        """A line on stderr; `anyway`: also where only failures are told."""
        if anyway or not self._quiet:
            self._progress.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _show(self, now: str) -> None:
        if self._is_live:
            done, run = self._journal.done, self._journal.run_seconds
            last = self._journal.events[-1] if self._journal.events else {}
            rate = self._journal.a_minute
            text = status_line(done, rate, last, self._worst, self._until.left(done, run), now)
            self._progress.update(self._task, completed=self._until.part(done, run), description=printable(text))


def opening(journal: Journal, begins: str = "this one begins anew") -> Iterator[str]:
    """The first lines of a soak: its seed, and how it stands to the last one of its journal."""
    resumed = f", going on after {counted(journal.done.events, 'event')}" * journal.resumed
    yield f"seed {journal.seed}{resumed}"
    if journal.unlike:
        yield f"{begins}: the unfinished soak in {journal.path} was one of other {', '.join(journal.unlike)}"
        yield "  and is not gone on with any more then; --journal FILE gives this one its own"
    elif journal.finished:
        yield f"{begins}: that in {journal.path} ended with {counted(journal.finished, 'event')}"
        yield "  an --until of more events, or more time, goes on with one"


def status_line(
    done: Done, a_minute: float, last: Mapping[str, Any], worst: float, left: float | None, now: str
) -> str:
    """How far a soak is: `last` is the journal's line of its last event, `worst` the longest downtime; seconds."""
    parts = [
        counted(done.events, "event"),
        f"{a_minute:.1f} a minute" if a_minute else "",
        f"worst downtime {worst * 1000:.0f} ms" if worst else "",
        f"{_total(last, 'rss') >> 10} MiB, {counted(_total(last, 'fds'), 'descriptor')}" if last else "",
        counted(done.failures, "failure") if done.failures else "",
        _left(left),
        now,
    ]
    return ", ".join(filter(None, parts))


def event_line(facts: Mapping[str, Any]) -> str:
    """An event for a person, in a line."""
    downtime = facts.get("downtime")
    pause = f", downtime {downtime * 1000:.1f} ms" if downtime is not None else ""
    what = f"{facts['event']} {facts['target']}".strip()
    return f"{facts['number']:>5}  {what:<32} {facts['seconds']:6.2f} s, looked at in {facts['whole']:6.2f} s{pause}"


def _total(facts: Mapping[str, Any], kind: str) -> int:
    return sum(value for name, value in facts.items() if name.endswith(f"_{kind}"))


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes:02} min left" if hours else f"{minutes} min left"
