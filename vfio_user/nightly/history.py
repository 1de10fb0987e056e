"""The history of nights: what each case came to, in SQLite beside the nights' folders, so that it outlives those.

It is made of summaries, and of nothing else: where the file is not there, or is no database, it is made again of the
summaries that are.
"""

from __future__ import annotations

import math
import sqlite3
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from userdev.counted import counted
from userdev.errors import UserError, about
from vfio_user.nightly.summary import FILE, Status, Summary, Verdict, read_summary

NAME = "history.sqlite"

KEPT = 400
"""Nights of a plan that are remembered: a year's, and what was run by hand beside them."""

REMEMBERED = 5
"""Nights that are looked at for durations."""

_TABLES = """
CREATE TABLE IF NOT EXISTS nights (
    plan TEXT NOT NULL, night TEXT NOT NULL, began TEXT NOT NULL, status TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (plan, night));
CREATE TABLE IF NOT EXISTS results (
    plan TEXT NOT NULL, night TEXT NOT NULL, id TEXT NOT NULL, test TEXT NOT NULL, verdict TEXT NOT NULL,
    seconds REAL NOT NULL, cause TEXT, PRIMARY KEY (plan, night, id),
    FOREIGN KEY (plan, night) REFERENCES nights ON DELETE CASCADE);
"""

_LATEST = "ORDER BY began > ?, began DESC"
"""The latest first, of now: one that is still to begin is of a clock that was ahead, and older than all others. As the
latest it would be what every night is compared with until then.
"""


@dataclass(frozen=True)
class Past:
    """What a case came to in a night."""

    test: str
    verdict: Verdict
    seconds: float
    cause: str = ""
    """The first cause, where something is wrong; "" too in nights that an earlier version remembered without it."""


Results = Mapping[str, Past]
"""Those of a night, by their ids."""


def results_of(summary: Summary) -> Results:
    """The same of a summary."""
    return {each.id: Past(each.test, each.verdict, each.seconds, each.cause) for each in summary.results}


class History:
    """Nights that were, in the folder of nights `base`; the file is opened for each question and closed after it."""

    def __init__(self, base: Path) -> None:
        """Nothing is looked for before it is asked for."""
        self._base = base
        self._path = base / NAME

    def add(self, summary: Summary) -> None:
        """Remember a night, again if it is known, and forget the oldest of its plan beyond `KEPT`. What was limited to
        some cells is no night with which another can be compared.

        Raises:
            UserError: that cannot be written.
        """
        with self._opened() as database:
            _insert(database, summary)
            _prune(database, summary.plan.name)

    def last_finished(self, plan: str, *, but: str = "") -> tuple[str, Results] | None:
        """The latest finished night of a plan, `but` one, and its results; None: there is none."""
        return next(self._nights(plan, but=but, finished=True), None)

    def latest(self, plan: str, number: int, *, but: str = "") -> list[tuple[str, Results]]:
        """The latest nights of a plan that have results, `but` one, the latest first."""
        return [found for _, found in zip(range(number), self._nights(plan, but=but), strict=False)]

    def _nights(self, plan: str, *, but: str, finished: bool = False) -> Iterator[tuple[str, Results]]:
        if not self._base.is_dir():
            return
        status = (Status.FINISHED,) if finished else (Status.FINISHED, Status.ENDED)
        with self._opened() as database:
            asked = f"SELECT night FROM nights WHERE plan = ? AND night != ? AND status IN ({_marks(status)})"
            for (night,) in database.execute(f"{asked} {_LATEST}", (plan, but, *status, _now())).fetchall():
                asked_of_it = "SELECT id, test, verdict, seconds, cause FROM results WHERE plan = ? AND night = ?"
                rows = database.execute(asked_of_it, (plan, night))
                yield night, {id: Past(test, Verdict(came), took, why or "") for id, test, came, took, why in rows}

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database; the nights whose folders are there and which it does not know are added first."""
        with _told(self._path):
            try:
                database = _connected(self._path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, or not to be had: it is a database
                    raise
                self._path.replace(self._path.with_suffix(".broken"))
                database = _connected(self._path)
            with closing(database), database:
                self._catch_up(database)
                yield database

    def _catch_up(self, database: sqlite3.Connection) -> None:
        whole = "SELECT night FROM nights WHERE status != ? EXCEPT SELECT night FROM results WHERE cause IS NULL"
        known = {night for (night,) in database.execute(whole, (Status.RUNNING,))}
        for file in self._base.glob(f"*/{FILE}"):
            if file.parent.name not in known:
                with suppress(UserError):
                    _insert(database, read_summary(file))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A block in which what is wrong with a database is told with its file."""
    with about(path):
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UserError(f"{path}: {error}") from None


def _connected(path: Path) -> sqlite3.Connection:
    """The database at `path`, whole: its first page may be good where others are none any more.

    Raises:
        sqlite3.DatabaseError: it is not.
    """
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA foreign_keys = ON")
        database.executescript(_TABLES)
        _have_causes(database)
        _require_whole(database)
    except BaseException:
        database.close()
        raise
    return database


def _have_causes(database: sqlite3.Connection) -> None:
    """Add the causes to a history of an earlier version, which remembered verdicts alone."""
    if "cause" not in {column[1] for column in database.execute("PRAGMA table_info(results)")}:
        database.execute("ALTER TABLE results ADD COLUMN cause TEXT")


def _require_whole(database: sqlite3.Connection) -> None:
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()  # 30 ms where there is a year of nights
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _insert(database: sqlite3.Connection, summary: Summary) -> None:
    if summary.only:  # beside it the next whole night would have most of its cases added
        return
    plan, night = summary.plan.name, summary.night
    database.execute("DELETE FROM nights WHERE plan = ? AND night = ?", (plan, night))
    database.execute(
        "INSERT INTO nights VALUES (?, ?, ?, ?, ?)",
        (plan, night, summary.began.astimezone(UTC).isoformat(), summary.status, summary.seconds),
    )
    database.executemany(
        "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (plan, night, case, past.test, past.verdict, past.seconds, past.cause)
            for case, past in results_of(summary).items()
        ],
    )


def _prune(database: sqlite3.Connection, plan: str) -> None:
    database.execute(
        "DELETE FROM nights WHERE plan = ? AND night NOT IN"
        f" (SELECT night FROM nights WHERE plan = ? {_LATEST} LIMIT ?)",
        (plan, plan, _now(), KEPT),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


# -- how long it will take --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """How long cases will take: `seconds` of the machine, of which `known` cases of `cases` are as they took before."""

    seconds: float | None
    """None: nothing like them has run."""
    cases: int
    known: int

    def __str__(self) -> str:
        cases = counted(self.cases, "case")
        if self.seconds is None:
            return f"{cases}; how long that takes is not known before some of this plan have run here"
        return f"{cases}, about {in_words(self.seconds)} ({self.known} of them by what they took before)"


def in_words(seconds: float) -> str:
    """How long that is: seconds below 100 of them, else minutes."""
    return f"{max(1, math.ceil(seconds))} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def estimate(cases: Sequence[tuple[str, str]], nights: Sequence[tuple[str, Results]], parallel: int) -> Estimate:
    """How long `cases` (id, test) will take, so many at once.

    One that never ran takes what its test does in other cells, and of a new test what the others do, in the median.
    """
    by_id: dict[str, float] = {}
    by_test: dict[str, list[float]] = defaultdict(list)
    for _, results in nights:
        for case, past in results.items():
            if past.seconds and past.verdict not in (Verdict.SKIP, Verdict.WEDGED):
                by_id.setdefault(case, past.seconds)
                by_test[past.test].append(past.seconds)
    known = sum(case in by_id for case, _ in cases)
    if not by_id:
        return Estimate(None if cases else 0.0, len(cases), known)
    usual = statistics.median(by_id.values())
    tests = {test: statistics.median(seconds) for test, seconds in by_test.items()}
    each = [by_id.get(case, tests.get(test, usual)) for case, test in cases]
    return Estimate(max(sum(each) / parallel, *each, 0.0), len(cases), known)  # one alone is not run in parts
