"""The cache: everything that is downloaded or built once and used by every later run.

Nothing in it is half written: what is made appears under its name by one rename, when it is whole (`publish`), and one
process at a time makes it (`locked`). Deleting the whole folder is always safe.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from userdev.errors import FULL, UserError

ENVIRONMENT = "VFIO_USER_CACHE"
LOCK_SECONDS = 3600.0  # seconds; a slow mirror may hold a lock for long, a dead process never does
LEFTOVER_SECONDS = 86400.0  # seconds after which a temporary folder can only be a killed run's


def cache_dir() -> Path:
    """The cache's folder, made when it is missing: $VFIO_USER_CACHE, or the user's cache folder.

    Raises:
        UserError: it cannot be made or written.
    """
    chosen = os.environ.get(ENVIRONMENT)
    path = Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("vfio-user")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise _unwritable(path, "no permission to write there")
    return path


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock called `name`; while another process has it, say on stderr who, and wait.

    The kernel frees the lock of a process that dies.

    Raises:
        UserError: another process has it for an hour, or the lock's file cannot be written, as another user's.
    """
    from filelock import FileLock, Timeout  # slow to import, and what is there already needs no lock

    folder = cache_dir() / "locks"
    holder = folder / f"{name}.holder"
    lock = FileLock(folder / f"{name}.lock")
    try:
        with _writing(folder):
            folder.mkdir(exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"waiting for {_read(holder) or 'another process'} to finish with {name}", file=sys.stderr)
                lock.acquire(timeout=LOCK_SECONDS, poll_interval=0.2)
    except Timeout:
        who = _read(holder) or "another process"
        raise UserError(
            f"{who} has held the lock on {name} for over {LOCK_SECONDS / 60:.0f} minutes",
            hint="if it hangs, end it and run again",
        ) from None
    try:
        with suppress(OSError):  # a courtesy to whoever waits, not worth failing for on a full disk
            words = f"process {os.getpid()} ({Path(sys.argv[0]).name} {' '.join(sys.argv[1:3])})"
            holder.write_text(words, errors="backslashreplace")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def publish(destination: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `destination`; rename it there when the block succeeds.

    When the block fails the folder is removed, and what was at `destination` before is untouched. A full disk
    becomes a UserError. Callers that replace an existing folder hold a lock.
    """
    with _writing(destination.parent):
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(destination)
        making = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
    try:
        making.chmod(0o755)
        yield making
        _rename_over(making, destination)
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(destination) from error
        raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A block that writes into a folder of the cache, and nothing else: what it may not is the user's to know of."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(folder) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _unwritable(folder, error.strerror or str(error)) from error
        raise


def disk_full(path: Path) -> UserError:
    """What to raise when there was no space left to write `path`."""
    where = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(where).free
    return UserError(
        f"no space left to write {path} ({free / 1e6:.0f} MB free)",
        hint=f"make room, or set {ENVIRONMENT} to a folder on a larger disk",
    )


def _rename_over(made: Path, destination: Path) -> None:
    if not destination.exists():
        made.rename(destination)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
    destination.rename(retired)
    try:
        made.rename(destination)
    except BaseException:
        retired.rename(destination)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _remove_leftovers(destination: Path) -> None:
    for path in destination.parent.glob(f".{destination.name}.*.part"):
        with suppress(FileNotFoundError):
            # not st_mtime, which an unpacked archive may set
            if time.time() - path.stat().st_ctime > LEFTOVER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _unwritable(path: Path, why: str) -> UserError:
    return UserError(
        f"the cache {path} cannot be written: {why}", hint=f"set {ENVIRONMENT} to a folder that you may write"
    )
