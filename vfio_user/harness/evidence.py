"""The evidence of a run that went wrong: what ended first, and everything that was said, behind one index page.

    folder/index.html       the first cause, the deaths, the last lines of everything, all files with digests
    folder/evidence.json    the same for programs
    folder/NAME.core, NAME.backtrace.txt    of what crashed

The first cause is the first program that ended by itself and not in good order; where there is none it is the error of
the run. What the test itself ended before that is named with it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

import vfio_user
from vfio_user.errors import UserError
from vfio_user.harness import core
from vfio_user.harness.process import Child, tail
from vfio_user.interposer.trace.reader import read_trace
from vfio_user.interposer.trace.registers import RegisterMap
from vfio_user.interposer.trace.show import decode_entries, text

INDEX, RECORD = "index.html", "evidence.json"
CRASHES = frozenset({"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"})
LAST_LINES = 40
LAST_MESSAGES = 60
MOST_LINES = {"*.backtrace.txt": 2000}
"""Which thread crashed, and is shown last, is chance when a signal comes from outside."""

# What the page shows the end of: a heading, and the files by their names, in the order of the page.
SECTIONS = (
    ("What the test or the command said", "error.txt"),
    ("QEMU said", "*.qemu.log"),
    ("The last QMP traffic", "*.qmp.log"),
    ("Device servers said", "*.server.log"),
    ("Interposers said", "*.interposer.log"),
    ("The last messages on the wire, as an interposer saw them", "*.trace"),
    ("The last messages on the wire, as QEMU traced them", "*.trace.log"),
    ("Consoles", "*.console.log"),
    ("Kernel logs of guests", "*.dmesg.log"),
    ("Backtraces", "*.backtrace.txt"),
    ("Command lines", "commands.txt"),
    ("Versions", "versions.json"),
)


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

    @property
    def how(self) -> str:
        """The signal's name, or the exit status."""
        return self.fate.rpartition(" ")[2]

    @property
    def sentence(self) -> str:
        """Who, how, and the last that it said."""
        said = self.last_words.strip().splitlines()
        return f"{self.name} {self.fate}" + (f": {said[-1].strip()}" if said else "")


def deaths(folder: Path, children: Sequence[Child]) -> list[Death]:
    """Those that ended by themselves or by a signal, the first one first; cores and backtraces go into `folder`."""
    ended = [child for child in children if not child.running and not child.was_stopped]
    return [_death(folder, child) for child in sorted(ended, key=lambda child: child.ended or 0.0)]


def crashed(children: Sequence[Child]) -> bool:
    """Whether any program ended as only a defect makes it."""
    return any(
        child.fate().rpartition(" ")[2] in CRASHES and not child.was_stopped for child in children if not child.running
    )


def first_cause(dead: Sequence[Death], error: BaseException | None) -> str:
    """In one sentence."""
    bad = [death for death in dead if not death.in_order]
    own = next((death for death in bad if not death.on_request), None)
    parts = [own.sentence if own else f"{_kind(error)}: {error}" if error else ""]
    wanted = [death for death in bad if death.on_request and (own is None or death.when <= own.when)]
    if wanted:
        parts.append("the test itself ended " + ", ".join(f"{death.name} ({death.how})" for death in wanted[-3:]))
    return "; before that ".join(filter(None, parts)) or "nothing went wrong"


def write(
    folder: Path, children: Sequence[Child], error: BaseException | None = None, dead: Sequence[Death] | None = None
) -> str:
    """Write the page and the record of what lies in `folder`; returns the first cause."""
    found = deaths(folder, children) if dead is None else dead
    cause = first_cause(found, error)
    if error is not None:
        (folder / "error.txt").write_text(_described(error))
    programs = {child.argv[0]: _digest(Path(child.argv[0])) for child in children}
    record = {
        "first_cause": cause,
        "deaths": [asdict(death) for death in found],
        "programs": {**programs, "vfio-user": _own_digest()},
        "files": {path.name: _digest(path) for path in _files(folder) if not path.match("*.core*")},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    page = _template().render(
        cause=cause,
        deaths=found,
        sections=[(heading, list(_ends(folder, pattern))) for heading, pattern in SECTIONS],
        files=[(path.name, path.stat().st_size, record["files"].get(path.name, "")) for path in _files(folder)],  # type: ignore[attr-defined]
        programs=record["programs"],
        moment=lambda when: time.strftime("%H:%M:%S", time.localtime(when)) + f".{int(when % 1 * 1000):03d}",
    )
    (folder / INDEX).write_text(page)
    return cause


def cause_of(folder: Path) -> str:
    """The first cause of a run whose evidence is in `folder`; "" where none was written."""
    try:
        return str(json.loads((folder / RECORD).read_text())["first_cause"])
    except (OSError, ValueError, KeyError):
        return ""


def _death(folder: Path, child: Child) -> Death:
    fate = child.fate()
    trace, kept = "", ""
    if fate.rpartition(" ")[2] in CRASHES:
        trace, kept = _autopsy(folder, child)
    return Death(
        name=child.name,
        pid=child.pid,
        when=child.ended or 0.0,
        fate=fate,
        on_request=any(fate.endswith(f" {number.name}") for number in child.signals),
        in_order=child.exit_code == 0,
        last_words=tail(child.log, LAST_LINES),
        core=kept,
        backtrace=trace,
    )


def _autopsy(folder: Path, child: Child) -> tuple[str, str]:
    """Names of the files in `folder` with its backtrace and its core; what there is instead, where there is none."""
    report = folder / f"{child.name}.backtrace.txt"
    target = folder / f"{child.name}.core"
    if report.exists():  # it has been looked at before
        return report.name, next((path.name for path in folder.glob(f"{child.name}.core*")), "")
    found = core.find_core(child.pid, child.began, child.folder)
    if found is None:
        taker = core.who_takes_cores()
        report.write_text(f"(no core: {f'this machine gives cores to {taker}' if taker else 'none was written'})\n")
        return report.name, ""
    report.write_text(core.backtrace(found) + "\n")
    return report.name, core.keep(found, target).name


def _ends(folder: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """The files of a section with the ends of what they say."""
    for path in sorted(folder.glob(pattern)):
        said = _messages(path) if path.suffix == ".trace" else tail(path, MOST_LINES.get(pattern, LAST_LINES))
        if said:
            yield path.name, said


def _messages(path: Path) -> str:
    """The last messages of an interposer's trace."""
    try:
        trace = read_trace(path)
        lines = decode_entries(trace.entries, trace.dialect, RegisterMap())
        return "\n".join(text(line, trace.header.time) for line in deque(lines, LAST_MESSAGES))
    except UserError as error:
        return str(error)


def _described(error: BaseException) -> str:
    more = [getattr(error, name, "") for name in ("evidence", "hint")]  # VerdictError, UserError
    return "\n".join([f"{_kind(error)}: {error}", *filter(None, more)]) + "\n"


def _kind(error: BaseException) -> str:
    """Its class in words: "guest failure"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (INDEX, RECORD)]


def _digest(path: Path) -> str:
    """SHA-256 of a file; "" of what cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _own_digest() -> str:
    """SHA-256 over this package's sources, for those who run a checkout."""
    root = Path(vfio_user.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def _template() -> jinja2.Template:
    source = Path(__file__).with_name("evidence.html").read_text()
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
