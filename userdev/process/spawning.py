"""How every child process is started: in a group of its own, and killed when its owner ends, however that ends."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from userdev.errors import UserError

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def die_with(owner: int) -> None:
    """Have the calling process killed when the thread that forked it ends; it ends now if process `owner` has."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != owner:  # it ended before the line above
        os._exit(1)


def spawn(
    argv: Sequence[str],
    *,
    output: IO[bytes] | int,
    pass_fds: Iterable[int] = (),
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    prepare: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program without stdin, whose stdout and stderr go to `output`; `pass_fds` keep their numbers.

    `prepare` runs in the child before the program does.

    Raises:
        UserError: the program cannot be started.
    """
    # not a closure: it can be pickled, for who forks in this process's place (tests/fork_server.py)
    before = functools.partial(_become_a_child, os.getpid(), prepare)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
            env=environment,
            cwd=folder,
            process_group=0,
            preexec_fn=before,
        )

    try:
        return _nursery.do(start)
    except OSError as error:
        raise _unstartable(argv[0], error, folder or Path.cwd()) from error


def require_program(program: str) -> None:
    """See to it that a program is there that will be started in this folder, before what takes long is done for it.

    Raises:
        UserError: as `spawn` has it.
    """
    if shutil.which(program) is None:
        number = errno.EACCES if "/" in program and Path(program).exists() else errno.ENOENT
        raise _unstartable(program, OSError(number, os.strerror(number)), Path.cwd())


def _unstartable(program: str, error: OSError, folder: Path) -> UserError:
    where = f" in {folder}" if "/" in program and not program.startswith("/") else ""
    hint = _unexecutable(folder / program) if isinstance(error, PermissionError) else ""
    return UserError(f"cannot start {program}{where}: {error.strerror}", hint=hint)


def _unexecutable(program: Path) -> str:
    """What to do about a file that is no program yet; nothing of what is none."""
    is_one = not program.is_file() or os.access(program, os.X_OK)
    return "" if is_one else "it is no program yet: build it, or `chmod +x` makes a script one"


def _become_a_child(owner: int, prepare: Callable[[], None] | None) -> None:
    die_with(owner)
    if prepare is not None:
        prepare()


class _Nursery:
    """Starts every child from one thread that never ends.

    The parent that PR_SET_PDEATHSIG watches is the *thread* that forked (prctl(2)): a child started by a thread of
    a pool would be killed when the pool is closed.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def forget(self) -> None:
        """In a fork, which has no threads but its own: start anew."""
        self.__init__()  # type: ignore[misc]

    def do(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        done: Future[subprocess.Popen[bytes]] = Future()

        def work() -> None:
            try:
                done.set_result(start())
            except BaseException as error:
                done.set_exception(error)

        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="nursery", daemon=True)
                thread.start()  # where there is no room for it: who asks next tries again
                self._thread = thread
            self._work.put(work)
        return done.result()

    def _serve(self) -> None:
        while True:
            self._work.get()()


_nursery = _Nursery()
os.register_at_fork(after_in_child=_nursery.forget)
