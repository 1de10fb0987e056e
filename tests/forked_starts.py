"""Has `subprocess` fork our programs from `fork_server.py` instead of starting an interpreter for each.

Others too where a function is called before (`preexec_fn`): a worker with all its tests would be forked for that.

For the tests a child is what it always was: a child of their process, with a number of its own and the same arguments,
environment, descriptors and end. Only where that could not be so an interpreter is started: with other settings of
Python's, other limits, a function to be called before that cannot be sent. A pytest process starts the first few
programs plainly too, since a server of forks pays from the third on; and tests of a program's own start always
(`plain_starts` in conftest.py).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.fork_server import LATER, ROOT, Start, is_ours_alone

MODULES = frozenset({"vfio_user", "vhost_user", "tests.one_client_server", "tests.program", *LATER})
ENOUGH = 2
"""Programs that were started plainly before a server of forks is worth its start."""
SECONDS = 120
"""When a server that does not answer is given up: what hangs."""
LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_CORE)
DECISIVE = ("PYTHON", "LANG", "LC_", "LD_", "COVERAGE", "VFIO_USER_PLANTED")
"""How variables begin that decide how an interpreter is, or what it imports."""
NAMES = (
    *("executables", "close", "keep", "folder", "environment"),
    *("stdin_read", "stdin_write", "stdout_read", "stdout_write", "stderr_read", "stderr_write"),
    *("error_read", "error_write", "signals", "session", "group", "gid", "gids", "uid", "umask", "before"),
)
"""The arguments of `_posixsubprocess.fork_exec` behind the command line."""


class ForkedStarts:
    """Takes the place of `subprocess`'s system call. `starts` counts what can be forked, `forks` what has been."""

    def __init__(self, asked: socket.socket | None = None) -> None:
        """`asked`: the socket of a server that there is already."""
        self.forks = 0
        self.starts = 0
        self._plain: Callable[..., int] = subprocess._fork_exec  # type: ignore[attr-defined]
        self._server = _Server(asked) if asked is not None else None

    def install(self) -> None:
        """Fork from now on."""
        subprocess._fork_exec = self  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Each program has an interpreter of its own."""
        subprocess._fork_exec = self._plain  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.install()

    def prepare(self) -> None:
        """Start the server if it is worth it: between two tests, as some count descriptors."""
        if self._server is not None or self.starts < ENOUGH or "COVERAGE_PROCESS_START" in os.environ:
            return  # what a program does is measured by test, from its beginning
        self._server = _started()
        if self._server is not None:
            atexit.register(self.close)
        else:
            self.starts = -sys.maxsize

    def close(self) -> None:
        """Fork no more; what has been forked goes on."""
        subprocess._fork_exec = self._plain  # type: ignore[attr-defined]
        if self._server is not None:
            self._server.close()
            self._server = None

    def __call__(self, arguments: Sequence[Any], *rest: Any) -> int:
        """fork_exec of `_posixsubprocess`, which these are the arguments of."""
        asked = dict(zip(NAMES, rest, strict=False))
        words = [os.fsdecode(word) for word in arguments]
        ours = is_ours(words, asked)
        if not (ours or asked["before"] is not None) or not can_be_sent(asked):
            return self._plain(arguments, *rest)
        self.starts += 1
        sent = self._start(words[1:] if ours else words, asked, executed=not ours)
        if sent is None or self._server is None or self._server.settings != settings(sent[0].environment):
            return self._plain(arguments, *rest)
        self.forks += 1
        return self._server.fork(*sent)

    def _start(self, arguments: list[str], asked: dict[str, Any], *, executed: bool) -> tuple[Start, list[int]] | None:
        """What the server is told, and the descriptors that go with it; None: it cannot be sent."""
        passed = [fd for fd in asked["keep"] if fd > 2 and fd != asked["error_write"]]  # those below are its pipes
        passed += [asked["error_write"]] if executed else []
        pipes = (asked["stdin_read"], asked["stdout_write"], asked["stderr_write"])
        given = asked["environment"]
        start = Start(
            arguments=arguments,
            environment=dict(os.environ) if given is None else dict(map(_variable, given)),
            folder=str(Path.cwd() / os.fsdecode(asked["folder"] or "")),
            numbers=[0, 1, 2, *passed],
            session=asked["session"],
            group=os.getpgrp() if asked["group"] < 0 and not asked["session"] else asked["group"],
            umask=asked["umask"],
            before=b"",
            executables=tuple(map(os.fsdecode, asked["executables"])) if executed else (),
            restores_signals=asked["signals"],
        )
        with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):
            before = pickle.dumps(asked["before"]) if asked["before"] is not None else b""
            standard = [number if pipe < 0 else pipe for number, pipe in enumerate(pipes)]
            return start._replace(before=before), [*standard, *passed]
        return None


class _Server:
    """The process that forks, as it is seen from here."""

    def __init__(self, asked: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        """`process`: itself, where it ends with this."""
        self.settings = settings(dict(os.environ))
        self._process = process
        self._asked = asked
        self._asked.settimeout(SECONDS)
        self._lock = threading.Lock()

    def fork(self, start: Start, fds: Sequence[int]) -> int:
        """Start a program; its number."""
        with self._lock:
            socket.send_fds(self._asked, [pickle.dumps(start)], fds)
            return int(self._asked.recv(16))

    def close(self) -> None:
        """End it; what it has forked goes on."""
        self._asked.close()
        if self._process is not None:
            self._process.wait()


def _started() -> _Server | None:
    """A server that has imported what it forks; None: it cannot, which the program itself says best."""
    asked, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.fork_server", str(its.fileno())]
    with its:
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    server = _Server(asked, process)
    if asked.recv(16):
        return server
    server.close()
    return None


def is_ours(words: Sequence[str], asked: dict[str, Any]) -> bool:
    """Whether this is a program that can be forked."""
    own = words[2:] if words[1:2] == ["-P"] else words[1:]
    return (
        asked["executables"] == (os.fsencode(sys.executable),)
        and words[0] == sys.executable
        and own[:1] == ["-m"]
        and own[1] in MODULES
    )


def can_be_sent(asked: dict[str, Any]) -> bool:
    """Whether it is asked for as a server can have it, which changes no user and has a folder to begin in."""
    return (
        asked["close"]
        and (asked["gid"], asked["gids"], asked["uid"]) == (None, None, None)
        and os.path.isdir(asked["folder"] or ".")  # noqa: PTH112 - as bytes too
    )


def settings(environment: dict[str, str]) -> tuple[object, ...]:
    """What a fork cannot change, so that it must be the same in the server; this checkout's folder it finds anyway."""
    own = sorted(
        (name, value)
        for name, value in environment.items()
        if name.startswith(DECISIVE) and not (name == "PYTHONPATH" and is_ours_alone(value))
    )
    return os.getpid(), own, [resource.getrlimit(limit) for limit in LIMITS]


def _variable(text: bytes) -> tuple[str, str]:
    name, _, value = text.partition(b"=")
    return os.fsdecode(name), os.fsdecode(value)
