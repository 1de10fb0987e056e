"""What befalls a guest though nobody asked for it: its kernel panics or oopses, it reboots, it powers itself off.

QEMU tells of it by events (QAPI's run-state.json: GUEST_PANICKED, which pvpanic causes, RESET, SHUTDOWN; char.json:
VSERPORT_CHANGE), the kernel on the console. Whoever waits for an answer of the guest is told at once, for none will
come.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vfio_user.harness.command_line import AGENT
from vfio_user.harness.console import Console, ConsoleError
from vfio_user.harness.guest import GuestFailure
from vfio_user.harness.qmp import EventLog


class Kind(StrEnum):
    """The kinds of mishap, as the end of a sentence about a guest."""

    PANIC = "panicked"
    OOPS = "oopsed"
    RESET = "was reset, which nobody had asked for"
    POWERED_OFF = "powered itself off"
    AGENT_ENDED = "lost its agent, whose process ended"


@dataclass(frozen=True)
class Mishap:
    """One of them. `said` are the kernel's words or QEMU's reason, `moment` is time.monotonic()'s."""

    kind: Kind
    said: str
    moment: float

    @property
    def silences(self) -> bool:
        """Whether nothing in the guest answers any more. After an oops most things still do."""
        return self.kind is not Kind.OOPS


class GuestCrash(GuestFailure):
    """A mishap, where somebody wanted something of the guest. The evidence is the console's end."""


# What the kernel says, behind its own time: without that it may be anybody's text. "BUG:" stands for much that is none
# of a guest's fault on a busy host: lockups are what a virtual processor sees that got no time.
_KERNEL = re.compile(
    rb"\[ *\d+\.\d{6}\](?:\[[^]]*\])? (?:"
    rb"(?P<panic>Kernel panic - not syncing.*)"
    rb"|(?P<oops>(?:Oops: |kernel BUG at |BUG: (?!workqueue lockup)).*))"
)
_LONGEST_LINE = 4096
_CONSOLE_SECONDS = 0.5  # seconds that the console may come after the event which the same panic caused
_POWER_OFF_SECONDS = 5.0  # seconds between the end of a guest's programs and that of a guest which powers itself off


class Mishaps:
    """Those of one machine. Only once a guest is up is a reset one of them: before, a firmware resets as it likes."""

    def __init__(self, name: str, console: Console, events: EventLog) -> None:
        self._name = name
        self._console = console
        self._events = events
        self._changed = threading.Lock()
        self._is_up = False
        self._happened: dict[Kind, Mishap] = {}
        self._told: set[Kind] = set()
        self._listeners: list[Callable[[Mishap], None]] = []
        self._line = b""
        console.listen(self._hear)
        events.listen(self._on_event)

    def __contains__(self, kind: Kind) -> bool:
        return kind in self._happened

    def listen(self, listener: Callable[[Mishap], None]) -> None:
        """Call `listener` with each to come, in a thread of its own: of a kind the first, but each end of an agent."""
        self._listeners.append(listener)

    def begin(self) -> None:
        """The guest is up: what was told of before is over, and so are resets."""
        with self._changed:
            over = self._told | {Kind.RESET}
            self._happened = {kind: mishap for kind, mishap in self._happened.items() if kind not in over}
            self._told.clear()
            self._is_up = True

    def expect_reset(self) -> None:
        """Somebody has the machine reset: until `begin` no reset is a mishap."""
        self._is_up = False

    def inherit(self, before: Mishaps) -> None:
        """The guest has come from another machine, with all that had befallen it there."""
        with self._changed:
            self._is_up = before._is_up
            self._happened |= before._happened
            self._told |= before._told

    def check(self) -> None:
        """Raise `GuestCrash` for what silences the guest, again and again, and for an oops once."""
        with self._changed:
            wanted = [one for kind, one in self._happened.items() if one.silences or kind not in self._told]
            if not wanted:
                return
            first = min(wanted, key=lambda one: (not one.silences, one.moment))
            self._told.add(first.kind)
        raise self._crash(first)

    def untold(self) -> GuestCrash | None:
        """A panic or an oops that nobody was told of."""
        untold = [one for kind, one in self._happened.items() if kind in {Kind.PANIC, Kind.OOPS} - self._told]
        return self._crash(untold[0]) if untold else None

    def _crash(self, mishap: Mishap) -> GuestCrash:
        said = mishap.said
        if mishap.kind is Kind.PANIC and not said:
            with suppress(ConsoleError):
                said = _text(self._console.wait_for(rb"Kernel panic[^\r\n]*(?=\r?\n)", _CONSOLE_SECONDS)[0])
        return GuestCrash(
            f"the guest {self._name!r} {mishap.kind}" + (f": {said}" if said else ""),
            evidence=f"console, last lines:\n{self._console.last_lines()}",
        )

    def _befall(self, kind: Kind, said: str = "") -> None:
        with self._changed:
            if kind in self._happened or (kind is Kind.RESET and not self._is_up):
                return
            mishap = self._happened[kind] = Mishap(kind, said, time.monotonic())
        self._events.wake()
        # Not in the thread that reads events or the console: a listener may wait for one that cannot send.
        for listener in self._listeners:
            threading.Thread(target=listener, args=(mishap,), name="mishap", daemon=True).start()

    def _lose_agent(self) -> None:
        """Tell of it once there was time for what else may have ended it; it is started again, and may end again."""
        mishap = Mishap(Kind.AGENT_ENDED, "", time.monotonic())
        for listener in self._listeners:
            timer = threading.Timer(_POWER_OFF_SECONDS, listener, (mishap,))
            timer.daemon = True
            timer.start()

    def _on_event(self, event: Mapping[str, Any]) -> None:
        data = event.get("data", {})
        match event["event"]:
            case "GUEST_PANICKED" | "GUEST_CRASHLOADED":
                self._befall(Kind.PANIC)
            case "RESET":
                self._befall(Kind.RESET, data.get("reason", ""))
            case "SHUTDOWN" if data.get("guest") and self._is_up:
                self._befall(Kind.POWERED_OFF, data.get("reason", ""))
            case "VSERPORT_CHANGE" if data.get("id") == AGENT and not data.get("open") and self._is_up:
                self._lose_agent()

    def _hear(self, data: bytes) -> None:
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[-_LONGEST_LINE:]
        for line in lines:
            if found := _KERNEL.search(line):
                kind = Kind.PANIC if found["panic"] else Kind.OOPS
                self._befall(kind, _text(found["panic"] or found["oops"]))


def _text(line: bytes) -> str:
    return line.decode(errors="replace").strip()
