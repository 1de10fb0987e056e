"""The three families of error, by who has to act.

=================  ======  ==========================================================
family             status  meaning
=================  ======  ==========================================================
`UserError`        2       the run could not be done: wrong input, something missing
`VerdictError`     1       the run was done, and what was under test did wrong
`ProtocolError`    --      a peer broke the protocol; carries the errno to answer with
=================  ======  ==========================================================

The command line prints the first two as one sentence and a hint, never as a traceback. They often quote a guest, a
device or a peer: control characters are written out (`printable`).
"""

from __future__ import annotations

import errno as _errno
import os as _os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from userdev.printable import printable


class UserdevError(Exception):
    """Base of everything this package raises on purpose."""


class UserError(UserdevError):
    """The run could not be done. `hint` says what to do about it, `evidence` is text worth reading; exit status 2."""

    def __init__(self, what: str, *, hint: str = "", evidence: str = "") -> None:
        super().__init__(printable(what))
        self.hint = printable(hint)
        self.evidence = printable(evidence)


class DeclarationError(UserError, ValueError):
    """A device class that does not work: its author's to mend. Says which class and name, and where that is written.

    The hint is a note, so that a traceback shows it too.
    """

    def __init__(self, what: str, *, hint: str) -> None:
        super().__init__(what)
        self.add_note(hint)


class VerdictError(UserdevError):
    """The run was done and the verdict is bad. `evidence` is text worth reading; exit status 1."""

    def __init__(self, what: str, *, evidence: str = "") -> None:
        super().__init__(printable(what))
        self.evidence = printable(evidence)


class ProtocolError(UserdevError):
    """A peer's message is wrong. `errno` is what a server answers it with (docs/protocol.md has the tables).

    `fatal` says that the byte stream can no longer be trusted, so that the connection has to end.
    """

    def __init__(self, what: str, errno: int = _errno.EINVAL, *, fatal: bool = False) -> None:
        super().__init__(what)
        self.errno = errno
        self.fatal = fatal


def errno_name(number: int) -> str:
    """What an errno that a peer gave is called; 0 is none, where a protocol lets an error have none."""
    return _errno.errorcode.get(number, str(number)) if number else "an error without errno"


def errno_in_words(number: int) -> str:
    """The same, and what it means: `ENOENT (No such file or directory)`."""
    return f"{errno_name(number)} ({_os.strerror(number)})" if number else errno_name(number)


FULL = frozenset({_errno.ENOSPC, _errno.EDQUOT})
"""What a disk or a quota says that is full."""

AUTHORS_FAILURES = (Exception, SystemExit)
"""What the code of a device's author may raise. `sys.exit` ends the thread that it is called on and nothing else, and
nobody is told: where a device is served it is a failure as any other, answered and logged."""


@contextmanager
def about(path: str | _os.PathLike[str]) -> Iterator[None]:
    """A block that writes or reads a file: an `OSError` of it that names none is about `path`.

    The kernel names no file where a disk is full, a quota or a limit is reached, or a device fails.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = _os.fspath(path)
        raise


def meant(word: str, words: Collection[str]) -> str:
    """The beginning of a hint for a word that is not among those that there are: the one that is nearest, if any is."""
    from difflib import get_close_matches  # who makes no mistake need not wait for it

    near = get_close_matches(word, words) or [each for each in words if len(word) > 3 and each.startswith(word)]
    return f"did you mean {near[0]!r}? " if near else ""
