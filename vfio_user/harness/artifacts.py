"""The evidence of a run: one folder with everything that was said and done, and a timeline of the steps."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from userdev.errors import UserError, about

RESULTS_VARIABLE = "VFIO_USER_RESULTS"


def results_root() -> Path:
    """Where the folders of results are: $VFIO_USER_RESULTS, or `results` in the current folder."""
    return Path(os.environ.get(RESULTS_VARIABLE) or "results").absolute()


def results_folder(name: str, base: Path | None = None) -> Path:
    """A new folder NAME-DATE-TIME in `base`: by default `results_root`."""
    parent = base or results_root()
    stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for attempt in range(1000):
        folder = parent / (f"{stamp}-{attempt}" if attempt else stamp)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _no_folder(folder, error) from error
        return folder
    raise UserError(f"{parent} has a thousand folders called {stamp}")


def from_here(path: Path) -> str:
    """A path as people are told of it: short, where it is in the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def drop_results(folder: Path) -> None:
    """Remove a folder that `results_folder` has made, and `results` around it where nothing else is in that."""
    shutil.rmtree(folder, ignore_errors=True)
    if not os.environ.get(RESULTS_VARIABLE):
        with suppress(OSError):
            folder.parent.rmdir()


def made_folder(folder: Path) -> Path:
    """A folder that is there when this returns, by its absolute path.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(folder, error) from error
    return folder.absolute()


def _no_folder(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"no folder for the logs can be made at {folder}: {error.strerror}",
        hint=f"set {RESULTS_VARIABLE} to a folder that you may write",
    )


def installed_version() -> str:
    """The version of vfio-user that is installed; where it is only a folder, "not installed"."""
    try:
        return version("vfio-user") or "not installed"  # None where its metadata says none
    except PackageNotFoundError:
        return "not installed"


def record_versions(folder: Path, facts: Mapping[str, object]) -> None:
    """Write versions.json: what this run was made of."""
    host = {"vfio-user": installed_version(), "python": platform.python_version(), "kernel": platform.release()}
    text = json.dumps({**host, **facts}, indent=2, default=str)
    write_text(folder / "versions.json", text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file; a failure names it, also that of a full disk. Bytes of a file's name that are no UTF-8 are told."""
    with about(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class Step:
    """A step that was done: `began` and `seconds` are on the clock of the timeline, `when` is seconds since 1970."""

    what: str
    began: float
    seconds: float
    error: str = ""
    when: float = 0.0


class Timeline:
    """The steps of a run, in the order of their ends."""

    def __init__(self) -> None:
        self._origin = time.monotonic()
        self.steps: list[Step] = []
        self.begun: Callable[[str], None] = lambda what: None
        """Called with what each step is, when it begins."""

    @property
    def now(self) -> float:
        """Seconds since the beginning of the run."""
        return time.monotonic() - self._origin

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Record what is done in the block, and how it failed if it did."""
        began, error, when = self.now, "", time.time()
        self.begun(what)
        try:
            yield
        except BaseException as caught:
            error = f"{type(caught).__name__}: {caught}"
            raise
        finally:
            self.steps.append(Step(what, began, self.now - began, error, when))

    def write(self, path: Path) -> None:
        """Write the steps as JSON."""
        write_text(path, json.dumps([asdict(step) for step in self.steps], indent=2) + "\n")
