"""The evidence of a run that went wrong: what ended first, and everything that was said, behind one index page.

    folder/index.html       the first cause, what ran and when, what ended with the stacks of crashes, all that happened
                            on one axis, the last lines of everything, all files with digests (`vfio_user.page`)
    folder/evidence.json    the same for programs
    folder/NAME-PID.core, NAME-PID.backtrace.txt    of what crashed

The first cause is the first program that ended by itself and not in good order, or the first exception that a server
logged, whichever came first; where there is neither it is the error of the run. What the test itself ended before that
is named with it, and what came of an exception. Faults that an interposer put in are told before all of these: what
comes of them is no device's doing.
"""

from __future__ import annotations

import json
import math
import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from userdev.counted import counted
from userdev.errors import UserError, VerdictError
from userdev.process import Child, tail
from vfio_user.harness import coredump
from vfio_user.harness.artifacts import write_text
from vfio_user.harness.digests import file_digest, sources_digest
from vfio_user.harness.last_words import end_of, fate_of
from vfio_user.harness.server_exceptions import LoggedException, logged_exceptions, still_at_work
from vfio_user.page.names import INDEX, RECORD
from vfio_user.page.texts import json_of, text_of
from vfio_user.page.versions import versions_of

FAULTS_NAMED = 3
"""Rules that acted, by name in the first cause; of more their number."""
LAST_LINES = 40
STACK = 30
"""Lines of the stack that are shown with the first cause."""


@dataclass(frozen=True)
class Death:
    """A program that ended before its run did. `fate` is a sentence; `last_words` the end of its log."""

    name: str
    pid: int
    when: float
    fate: str
    on_request: bool
    in_order: bool
    last_words: str
    core: str = ""
    backtrace: str = ""
    stack: str = ""
    """Of the thread that crashed."""

    @property
    def how(self) -> str:
        """The signal's name, or the exit status."""
        return self.fate.rpartition(" ")[2]

    @property
    def sentence(self) -> str:
        """Who, how, and the last that it said."""
        return end_of(self.name, self.fate, self.last_words)


@dataclass(frozen=True)
class Ends:
    """What went wrong with programs of a run by itself, before everything was ended; each the first one first."""

    deaths: Sequence[Death] = ()
    exceptions: Sequence[LoggedException] = ()
    faults: Sequence[str] = ()
    """Rules of scenarios that have acted before servers, as sentences."""

    @property
    def are_causes(self) -> bool:
        """Whether something of it may have led to what a run said."""
        return bool(self.exceptions or self.faults) or any(not death.in_order for death in self.deaths)


def ends(folder: Path, children: Sequence[Child]) -> Ends:
    """Those of these programs, so far; cores and backtraces go into `folder`."""
    return Ends(deaths(folder, children), logged_exceptions(children))


def deaths(folder: Path, children: Sequence[Child]) -> list[Death]:
    """Those that ended by themselves or by a signal, the first one first; cores and backtraces go into `folder`."""
    ended = [child for child in children if not child.running and not child.was_stopped]
    return [_death(folder, child) for child in sorted(ended, key=lambda child: child.ended or 0.0)]


def crashed(children: Sequence[Child]) -> bool:
    """Whether any program ended as only a defect makes it."""
    return any(child.crashed and not child.was_stopped for child in children)


def say_where(error: BaseException, folder: Path) -> None:
    """Add to an error where its page is, or its logs where there is none."""
    page = folder / INDEX
    error.add_note(f"page: {page}" if page.exists() else f"logs: {folder}")


def first_cause(ended: Ends, error: BaseException | None) -> str:
    """In one sentence."""
    bad = [death for death in ended.deaths if not death.in_order]
    own = next((death for death in bad if not death.on_request), None)
    raised = next((one for one in ended.exceptions if own is None or one.when < own.when), None)
    came = own.sentence if own else _sentence(error) if error else ""
    first = "; after that ".join(filter(None, [raised.sentence, came])) if raised else came
    if raised and own is None and raised.sentence in str(error):  # it tells the whole itself
        first = str(error).partition("\n")[0]
    if first and ended.faults:
        first = f"{_put_in(ended.faults)}; after that {first}"
    when = raised.when if raised else own.when if own else math.inf
    wanted = [death for death in bad if death.on_request and death.when <= when]
    by_test = "the test itself ended " + ", ".join(f"{death.name} ({death.how})" for death in wanted[-3:])
    return "; before that ".join(filter(None, [first, by_test if wanted else ""])) or "nothing went wrong"


def _put_in(faults: Sequence[str]) -> str:
    """Whose doing the faults of a scenario are, and which of them acted."""
    more = len(faults) - FAULTS_NAMED
    named = ", ".join([*faults[:FAULTS_NAMED], *([f"{counted(more, 'other rule')} too"] if more > 0 else [])])
    return f"the interposer put faults in, which are not the device's: {named}"


def write(
    folder: Path,
    children: Sequence[Child],
    error: BaseException | None = None,
    ended: Ends | None = None,
    *,
    name: str = "",
) -> str:
    """Write the page and the record of what lies in `folder`; returns the first cause. `name` says what was run.

    `ended` is what was wrong before everything was ended.
    """
    found = ended or Ends(deaths(folder, children))
    cause = first_cause(found, error)
    if error is not None and (stays := still_at_work(children)):
        cause = f"{cause}; {stays}"
    if error is not None:
        write_text(folder / "error.txt", _described(error))
    programs = {child.argv[0]: file_digest(Path(child.argv[0])) for child in children}
    record = {
        "of": name,
        "when": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": versions_of(folder),
        "first_cause": cause,
        "deaths": [asdict(death) for death in found.deaths],
        "exceptions": [asdict(exception) for exception in found.exceptions],
        "programs": {**programs, "vfio-user": sources_digest()},
        "files": {path.name: file_digest(path) for path in _files(folder) if not path.match("*.core*")},
    }
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    # what it needs is slow to import, and only what went wrong has a page
    from vfio_user.page.document import write_page

    write_page(folder, folder / INDEX)
    return cause


def cause_of(folder: Path) -> str:
    """The first cause of a run whose evidence is in `folder`; "" where none was written."""
    record = json_of(text_of(folder / RECORD))
    return str(record.get("first_cause") or "") if isinstance(record, dict) else ""


def _death(folder: Path, child: Child) -> Death:
    when = child.ended or 0.0  # from now on its core is known
    trace = _autopsy(folder, child) if child.crashed else ""
    return Death(
        name=child.name,
        pid=child.pid,
        when=when,
        fate=fate_of(child),
        on_request=child.ended_on_request,
        in_order=child.exit_code == 0,
        last_words=tail(child.log, LAST_LINES),
        core=child.core.name if child.core else "",
        backtrace=trace,
        stack=_stack(folder / trace) if trace else "",
    )


def _autopsy(folder: Path, child: Child) -> str:
    """The name of the file in `folder` with its backtrace, or with what there is instead."""
    report = folder / f"{child.name}-{child.pid}.backtrace.txt"
    if report.exists():  # it has been looked at before
        return report.name
    if child.core is not None:
        write_text(report, coredump.backtrace(child.core) + "\n")
    else:
        taker = coredump.who_takes_cores()
        write_text(report, f"(no core: {f'this machine gives cores to {taker}' if taker else 'none was written'})\n")
    return report.name


def _stack(report: Path) -> str:
    """The stack of the thread that crashed, which is the first of a backtrace."""
    first = report.read_text(errors="replace").strip().split("\n\n")[0]
    return "\n".join(first.splitlines()[:STACK])


def _described(error: BaseException) -> str:
    """All that an error says, and where it came from."""
    more = [getattr(error, name, "") for name in ("evidence", "hint")]  # VerdictError, UserError
    words = "\n".join([f"{_kind(error)}: {error}", *getattr(error, "__notes__", ()), *filter(None, more)])
    raised = "".join(traceback.format_tb(error.__traceback__))
    return f"{words}\n\nraised at (most recent call last):\n{raised}" if raised else f"{words}\n"


def _sentence(error: BaseException) -> str:
    """Its kind, where it has one, and the first line of what it says; of a plain `assert`, which says nothing, that of
    the source.
    """
    kind = "" if type(error) in (UserError, VerdictError) else f"{_kind(error)}: "
    return f"{kind}{str(error) or raised_by(error)}".partition("\n")[0]


def raised_by(error: BaseException) -> str:
    """The line of the source that raised it, with file and number."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"{frames[-1].line} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else "it does not say why"
    )


def _kind(error: BaseException) -> str:
    """Its class in words: "guest failure"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (INDEX, RECORD)]
