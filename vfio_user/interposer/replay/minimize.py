"""Shrinks a trace on which a server goes wrong to the part that it takes, and keeps the cause.

Pieces of what the client did are left out (`reducing`), with all that makes no sense without them (`causes`), as long
as the server goes wrong in the same way (`symptom`) and the rest is right (`explaining`).
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Collection
from pathlib import Path

from userdev.errors import UserError
from userdev.process import Deadline, run_to_end
from vfio_user.interposer.replay.explaining import Explanation, Trial
from vfio_user.interposer.replay.ignoring import Ignored
from vfio_user.interposer.replay.player import PATIENCE_SECONDS
from vfio_user.interposer.replay.reducing import BUDGET_SECONDS, Fails, Minimized, Progress, reduce_script
from vfio_user.interposer.replay.script import Script, load_script
from vfio_user.interposer.trace.registers import RegisterMap, registers_of


def minimize(
    trace: str | Path | Script,
    server_command: str,
    *,
    against: str | None = None,
    check: str | None = None,
    record: int | None = None,
    session: int = 1,
    ignore: Ignored | Collection[str] = (),
    registers: RegisterMap | None = None,
    patience: float = PATIENCE_SECONDS,
    seconds: float = BUDGET_SECONDS,
    progress: Progress = lambda left, replays, seconds: None,
) -> Minimized:
    """Shrink a trace on which a server goes wrong.

    against: the command of a reference, which does right what the server does wrong. The trace may then be of either.
    check: a command that decides instead of a replay: `{trace}` is the candidate, exit status 0 means that it no
        longer fails; `{server}` is `server_command`.
    record: the record that is to be explained, where several differ; the first if not given.
    seconds: after which the search ends with the best so far; so does KeyboardInterrupt.

    Raises:
        UserError: it does not fail to begin with, not each time, not at that record, or cannot be replayed.
    """
    script = trace if isinstance(trace, Script) else load_script(trace, session)
    if check is not None:
        fails = _checked_by(check, server_command, seconds)
        if not fails(script):
            raise UserError(f"the trace does not fail to begin with: {check} succeeds, or takes all the time there is")
        return reduce_script(script, fails, seconds=seconds, progress=progress)
    registers = registers or registers_of(script.header)
    ignored = ignore if isinstance(ignore, Ignored) else Ignored.parse(ignore, registers)
    trial = Trial(server_command, against, ignored, registers, patience)
    return Explanation(trial, script, record).minimize(seconds, progress)


def _checked_by(command: str, server_command: str, seconds: float) -> Fails:
    words, deadline = shlex.split(command), Deadline(seconds)

    def fails(script: Script) -> bool:
        with tempfile.TemporaryDirectory(prefix="vfu-") as folder:
            candidate = Path(folder) / "candidate.trace"
            script.write(candidate)
            filled = [word.replace("{trace}", str(candidate)).replace("{server}", server_command) for word in words]
            try:
                return run_to_end(command, filled, deadline.remaining).returncode != 0
            except UserError:
                if deadline.passed:  # the search ends with what it has
                    return False
                raise

    return fails
