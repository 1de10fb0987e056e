"""Shrinks a trace on which a server goes wrong to the part that it takes, and keeps the cause.

Pieces of what the client did are left out (`reducing`), with all that makes no sense without them (`causes`), as long
as the server goes wrong in the same way (`symptom`) and the rest is right (`explaining`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection
from pathlib import Path
from subprocess import CompletedProcess

from userdev.errors import UserError
from userdev.process import Deadline, OwnedFolder, run_to_end
from vfio_user.interposer.replay.explaining import Explanation, Trial
from vfio_user.interposer.replay.ignoring import Ignored
from vfio_user.interposer.replay.player import PATIENCE_SECONDS
from vfio_user.interposer.replay.reducing import BUDGET_SECONDS, Minimized, Progress, reduce_script
from vfio_user.interposer.replay.script import Script, load_script
from vfio_user.interposer.trace.registers import RegisterMap, registers_of

SERVER = "{server}"
"""In a check: the server's command."""
NO_VERDICT = frozenset({2, 126, 127})
"""Exit statuses that say nothing of a trace: it could not be tried (so many programs say it, and ours), or started."""


def minimize(
    trace: str | Path | Script,
    server_command: str | None,
    *,
    against: str | None = None,
    check: str | None = None,
    record: int | None = None,
    session: int = 1,
    ignore: Ignored | Collection[str] = (),
    registers: RegisterMap | None = None,
    patience: float = PATIENCE_SECONDS,
    beside: float | None = None,
    seconds: float = BUDGET_SECONDS,
    progress: Progress = lambda left, replays, seconds: None,
) -> Minimized:
    """Shrink a trace on which a server goes wrong.

    against: the command of a reference, which does right what the server does wrong. The trace may then be of either.
    check: a command that decides instead of a replay: `{trace}` is the candidate, exit status 0 means that it no
        longer fails, and one of `NO_VERDICT` that it could not be tried; `{server}` is `server_command`, which may
        be None where the check does not name it.
    patience, beside: seconds for what was recorded, as `replay` has them.
    record: the record that is to be explained, where several differ; the first if not given.
    seconds: after which the search ends with the best so far, all replays counted, but for the one that it is in then;
        so does KeyboardInterrupt.

    Raises:
        UserError: there is no server, the trace does not fail to begin with, not each time, not at that record, or
            cannot be replayed, or the check does not say what becomes of it.
    """
    if server_command is None and (check is None or SERVER in check):
        raise UserError("no server to replay against", hint="give its command: it is started anew for every attempt")
    script = trace if isinstance(trace, Script) else load_script(trace, session)
    if check is not None:
        began = time.monotonic()
        ended = _checked_by(check, server_command or "", seconds)
        first = ended(script)
        if first is not None and first.returncode in NO_VERDICT:
            raise UserError(
                f"{check} ended with status {first.returncode}, so that the whole trace could not be tried",
                hint="0 says that a trace does not fail; any other but 2, 126 and 127 says that it does",
                evidence=first.stdout + first.stderr,
            )
        if not _fails(first):
            raise UserError(f"the trace does not fail to begin with: {check} succeeds, or takes all the time there is")
        found = reduce_script(
            script,
            lambda candidate: _fails(ended(candidate)),
            seconds=max(0.0, began + seconds - time.monotonic()),
            progress=lambda left, replays, _: progress(left, replays, time.monotonic() - began),
        )
        if found.ended == "minimal" and found.replays:
            last = ended(found.script)
            found.confirmed = last is None or _fails(last)
            found.ended = "minimal" if last is not None else "time is up"
        found.seconds = time.monotonic() - began
        return found
    assert server_command is not None
    registers = registers or registers_of(script.header)
    ignored = ignore if isinstance(ignore, Ignored) else Ignored.parse(ignore, registers)
    trial = Trial(server_command, against, ignored, registers, patience, patience if beside is None else beside)
    return Explanation(trial, script, record).minimize(seconds, progress)


def _fails(ended: CompletedProcess[str] | None) -> bool:
    """Whether a check says so; what could not be tried, or in time, is not known to fail."""
    return ended is not None and ended.returncode not in {0, *NO_VERDICT}


def _checked_by(command: str, server_command: str, seconds: float) -> Callable[[Script], CompletedProcess[str] | None]:
    """What a check of a candidate came to; None where time is up."""
    words, deadline = shlex.split(command), Deadline(seconds)

    def ended(script: Script) -> CompletedProcess[str] | None:
        with OwnedFolder("vfu-") as folder:
            candidate = folder.path / "candidate.trace"
            script.write(candidate)
            filled = [word.replace("{trace}", str(candidate)).replace(SERVER, server_command) for word in words]
            try:
                return run_to_end(command, filled, deadline.remaining)
            except UserError:
                if deadline.passed:  # the search ends with what it has
                    return None
                raise

    return ended
