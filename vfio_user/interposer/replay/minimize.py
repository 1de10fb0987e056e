"""Shrinks a failing trace while it still fails: delta debugging over what the client did.

Zeller, Hildebrandt: Simplifying and Isolating Failure-Inducing Input (2002), the algorithm ddmin.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from userdev.errors import UserError
from vfio_user.interposer.replay.outcome import Difference, What
from vfio_user.interposer.replay.player import PATIENCE_SECONDS, RegisterAddress, replay
from vfio_user.interposer.replay.script import Script, load_script
from vfio_user.interposer.trace import MessageRecord
from vfio_user.wire import Command

Fails = Callable[[Script], bool]
Progress = Callable[[int, int], None]
"""Told of (messages left, replays so far)."""


@dataclass
class Minimized:
    """The smallest script found that still fails."""

    script: Script
    before: int
    """Messages of the client's in the whole trace."""
    after: int
    replays: int
    difference: Difference | None
    """What fails; None where a command of the caller's decided."""


def minimize(
    trace: str | Path,
    server_command: str,
    *,
    check: str | None = None,
    ignore: Collection[RegisterAddress] = (),
    patience: float = PATIENCE_SECONDS,
    progress: Progress = lambda left, replays: None,
) -> Minimized:
    """Shrink a trace whose replay fails.

    check: a command that decides instead of a replay: `{trace}` is the candidate, exit status 0 means that it no
        longer fails; `{server}` is `server_command`.

    Raises:
        UserError: it does not fail to begin with, or cannot be replayed.
    """
    script = load_script(trace)
    difference: Difference | None = None
    if check is not None:
        fails = _checked_by(check, server_command)
        if not fails(script):
            raise UserError(f"{trace} does not fail to begin with: {check} succeeds")
    else:
        difference = replay(script, server_command, ignore=ignore, patience=patience).difference
        if difference is None:
            raise UserError(f"{trace} does not fail to begin with: the server does everything as recorded")
        fails = _fails_alike(difference, server_command, ignore, patience)
    version = script.dialect.number(Command.VERSION)
    numbers = [step.number for step in script.requests]
    always = [
        step.number for step in script.requests if isinstance(step, MessageRecord) and step.message.command == version
    ]
    if difference is not None and difference.what is What.REPLY:
        # Nothing after the request whose reply is wrong can matter, and without it there is no reply.
        numbers = [number for number in numbers if number <= difference.record]
        always.append(difference.record)
    search = _Search(script, fails, always, progress)
    left = search.minimize([number for number in numbers if number not in always])
    kept = sorted({*always, *left})
    return Minimized(script.only(kept), len(script.requests), len(kept), search.replays, difference)


class _Search:
    """ddmin. What was tried is remembered: the algorithm comes back to the same subsets."""

    def __init__(self, script: Script, fails: Fails, always: Sequence[int], progress: Progress) -> None:
        self._script = script
        self._fails = fails
        self._always = always
        self._progress = progress
        self._tried: dict[tuple[int, ...], bool] = {}
        self.replays = 0

    def minimize(self, numbers: list[int]) -> list[int]:
        """A subset that still fails, and of which nothing can be left out by itself."""
        if self._still_fails([]):
            return []
        parts = 2
        while len(numbers) >= 2:
            size = -(-len(numbers) // parts)
            chunks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            for chunk in chunks:
                if len(chunks) > 2 and self._still_fails(chunk):
                    numbers, parts = chunk, 2
                    break
                without = [number for number in numbers if number not in set(chunk)]
                if self._still_fails(without):
                    numbers, parts = without, max(parts - 1, 2)
                    break
            else:
                if parts >= len(numbers):
                    break
                parts = min(parts * 2, len(numbers))
            self._progress(len(numbers) + len(self._always), self.replays)
        return numbers

    def _still_fails(self, numbers: Sequence[int]) -> bool:
        key = tuple(numbers)
        if key not in self._tried:
            self.replays += 1
            self._tried[key] = self._fails(self._script.only([*self._always, *numbers]))
        return self._tried[key]


def _fails_alike(
    difference: Difference, server_command: str, ignore: Collection[RegisterAddress], patience: float
) -> Fails:
    """Whether a shorter script still makes the server do the same wrong thing; what else it does differs, and may."""

    def fails(script: Script) -> bool:
        borne = frozenset(What) - {What.CLOSED, What.NO_REPLY, difference.what}
        if difference.what is What.REPLY:  # other replies may differ as well; the one that counts is looked at below
            borne |= {What.REPLY}
        outcome = replay(script, server_command, ignore=ignore, patience=patience, tolerate=borne)
        found = outcome.difference
        match difference.what:
            case What.REPLY:
                reply = outcome.replies.get(difference.record)
                return reply is not None and (reply.flags, reply.errno, reply.payload) == difference.evidence
            case What.DMA_WRITE | What.DMA_UNEXPECTED:
                return difference.evidence in outcome.dma_writes or difference.evidence == (found and found.evidence)
            case _:
                return found is not None and found.what is difference.what

    return fails


def _checked_by(command: str, server_command: str) -> Fails:
    words = shlex.split(command)

    def fails(script: Script) -> bool:
        with tempfile.TemporaryDirectory(prefix="vfu-") as folder:
            candidate = Path(folder) / "candidate.trace"
            script.write(candidate)
            filled = [word.replace("{trace}", str(candidate)).replace("{server}", server_command) for word in words]
            return subprocess.run(filled, check=False, capture_output=True).returncode != 0

    return fails
