"""An author's module or class that fails is the author's to mend: what happened, in which line, and what to do."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from userdev.errors import UserError

PACKAGES = ("userdev", "vfio_user", "vhost_user")
OURS = tuple(f"{Path(__file__).parents[2] / package}/" for package in PACKAGES)
"""The packages of this project: the line at fault is none of theirs."""
INSTALLED = "site-packages"
HINT = "VFIO_USER_TRACEBACK=1 shows all of it"


@contextmanager
def authored(what: str) -> Iterator[None]:
    """Run code of an author's. `what` says what cannot be done if it fails.

    Raises:
        UserError: what the code raised, with the line of the author's that led to it; UserErrors as they are. OSErrors
            of a file by its name pass: they say all.
    """
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        place = f" ({error.filename}:{error.lineno})" if error.filename else _at(error)  # bytes of zero have no line
        raise UserError(f"{what}: {error.msg}{place}", hint=(error.text or "").strip()) from error
    except SystemExit as error:
        hint = 'a module that is also a program begins that with: if __name__ == "__main__":'
        raise UserError(f"{what}: it ends the program, by SystemExit({error.code!r}){_at(error)}", hint=hint) from error
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(f"{what}: {_said(error)}{_at(error)}", hint=HINT) from error


def _said(error: Exception) -> str:
    """The message; with the type where that is not ours to know."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    plain = isinstance(error, ValueError) and innermost.filename.startswith(OURS)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def _at(error: BaseException) -> str:
    """The innermost line that is neither ours nor Python's, with its function."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_authors(frame.filename):
            return f" ({frame.filename}:{frame.lineno}, in {frame.name})"
    return ""


def at_work(thread: threading.Thread) -> str:
    """The line of an author's that a thread is at, or one that it waits for; nothing where there is none.

    " (FILE:LINE, in FUNCTION)". The main thread's is another program's that serves the device.
    """
    frames = sys._current_frames()
    main = threading.main_thread().ident
    first = frames.pop(thread.ident, None) if thread.ident is not None else None
    for frame in (first, *(frame for number, frame in frames.items() if number not in (main, threading.get_ident()))):
        at = frame
        while at is not None:
            if is_authors(at.f_code.co_filename):
                return f" ({at.f_code.co_filename}:{at.f_lineno}, in {at.f_code.co_name})"
            at = at.f_back
    return ""


def is_authors(file: str) -> bool:
    """Whether a file is neither this project's nor Python's own."""
    return not (file.startswith((*OURS, "<")) or _of_python(file))


def _of_python(file: str) -> bool:
    import sysconfig  # needed by nobody who makes no mistake

    return file.startswith(sysconfig.get_path("stdlib")) and INSTALLED not in file
