"""Forks programs of ours from a process that has imported them: 15 ms of processor time for a start, and not 150.

And what a function is called in before it is another program, where `subprocess` would fork a worker with all its
tests: 5 ms, and not 25.

    python -m tests.fork_server SOCKET

SOCKET is the number of an inherited SOCK_SEQPACKET socket (`forked_starts.py` has its other end): a pickled `Start`
comes with its descriptors; a process says its number once it is what was asked for. Each is a child of whoever started
this program, as if that had forked it: with its arguments, environment, folder, descriptors and group, and it ends as
an interpreter does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib.metadata
import io
import os
import pickle
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from userdev.leaving import leave

IMPORTED = (
    *(f"vfio_user.cli.{name}" for name in ("serve", "interpose", "conformance", "trace")),
    *(f"vfio_user.cli.vhost_{name}" for name in ("serve", "interpose", "conformance", "trace")),
    *(f"userdev_servers.{name}" for name in ("edu", "gpio", "nvme", "blk", "net", "rng")),
    # what an interposer imports once somebody controls it
    "userdev.interposer.control.server",
    *(f"{package}.interposer.control.commands" for package in ("vfio_user", "vhost_user")),
    *(f"{package}.interposer.faults.scenario" for package in ("vfio_user", "vhost_user")),
    "vfio_user.interposer.control.controlled",
    "tests.flag",
    "tests.vhost_frontend",
    "tests.forked_starts",
    "difflib",
)
"""What the programs that tests start need."""

PLUGINS = (
    *("archive", "assets", "beaker_result", "bystatus", "dependency", "human", "jobscripts", "journal", "jsonresult"),
    *("run", "runner_nrunner", "spawners.lxc", "spawners.podman", "sysinfo", "tap", "testlogs", "teststmpdir"),
    *("tmtresult", "xunit"),
)
JOB = (
    *("vfio_user.avocado_job.job", "vfio_user.avocado_job.forks", "avocado.core.suite", "avocado.core.sysinfo"),
    *(f"avocado.plugins.{name}" for name in PLUGINS),
    *("avocado_result_html", "avocado_varianter_cit.varianter_cit", "avocado_varianter_cit.Cit"),
    *(f"multiprocessing.{name}" for name in ("popen_fork", "queues", "synchronize")),
)
"""Of avocado, which looks for its plugins when a job begins."""
FORKS = "vfio_user.avocado_job.forks"
"""What a job has its tests forked by."""
LATER = {
    FORKS: (*JOB, "vfio_user.avocado_test"),
    "tests.avocado_job": (*JOB, "vfio_user.avocado_test"),
    "tests.night_of_plan": (
        *(*JOB, "vfio_user.avocado_test"),
        *(f"vfio_user.nightly.{name}" for name in ("night", "place", "slots", "staging")),
    ),
}
"""What these need is imported when one is started first: a second for each, and few test files start them."""
STARTERS = frozenset(LATER) - {FORKS}
"""What these start is forked too."""

ROOT = str(Path(__file__).parent.parent)


def is_ours_alone(path: str) -> bool:
    """Whether a PYTHONPATH leads to this checkout, however often, and nowhere else."""
    return set(path.split(os.pathsep)) == {ROOT}


MOST_BYTES = 1 << 17
"""Of a `Start`: arguments and an environment."""
MOST_DESCRIPTORS = 250  # SCM_MAX_FD is 253


class Start(NamedTuple):
    """A start of a program, as `subprocess` asks for it."""

    arguments: list[str]
    """[-P] -m MODULE, and its own."""
    environment: dict[str, str]
    folder: str | None
    numbers: list[int]
    """What the descriptors that come with this are in the child; the first three are stdin, stdout and stderr."""
    session: bool
    group: int
    """-1: a new session's."""
    umask: int
    """-1: that of whoever starts it."""
    before: bytes
    """A pickled function to be called before the program; nothing: none."""
    executables: tuple[str, ...] = ()
    """Files of which the first that can be is executed with these arguments; none: they are ours, and forked."""
    restores_signals: bool = False
    """Whether signals that Python ignores are not ignored in what is executed."""

    @property
    def is_safe(self) -> bool:
        """Whether nothing is imported from the folder (-P)."""
        return self.arguments[0] == "-P"

    @property
    def module(self) -> str:
        """What is run."""
        return self.arguments[self.is_safe + 1]


class _CloneArguments(ctypes.Structure):
    """struct clone_args of clone3(2)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls")
    ]


class Fork:
    """fork(2), but for the parent, who is the caller's own (CLONE_PARENT).

    Raises:
        OSError: where the C library keeps a thread's number is not to be found.
    """

    _CLONE3 = 435  # on every architecture
    _PARENT, _SET_TID, _CLEAR_TID = 0x8000, 0x1000000, 0x200000

    def __init__(self) -> None:
        self._libc = ctypes.PyDLL(None, use_errno=True)  # which keeps the interpreter's lock
        self._libc.syscall.restype = ctypes.c_long
        self._libc.pthread_self.restype = ctypes.c_void_p
        tid = self._own_number()
        self._arguments = _CloneArguments(flags=self._PARENT | self._SET_TID | self._CLEAR_TID, child_tid=tid)

    def __call__(self) -> int:
        """The child's number; 0 in the child.

        Raises:
            OSError: the kernel refuses.
        """
        api = ctypes.pythonapi
        api.PyOS_BeforeFork()
        pid = int(self._libc.syscall(self._CLONE3, ctypes.byref(self._arguments), ctypes.sizeof(self._arguments)))
        (api.PyOS_AfterFork_Parent if pid else api.PyOS_AfterFork_Child)()
        if pid < 0:
            raise OSError(ctypes.get_errno(), "clone3")
        return pid

    def _own_number(self) -> int:
        """The address of the calling thread's number, which the kernel writes anew in the child, as for fork()."""
        thread = self._libc.pthread_self()
        words = memoryview(ctypes.string_at(thread, 2048)).cast("i")
        found = [thread + at * words.itemsize for at, word in enumerate(words) if word == threading.get_native_id()]
        if len(found) != 1:
            raise OSError("the number of a thread cannot be found in what the C library keeps of it")
        return int(found[0])


def main() -> None:
    """Import what is needed, and serve."""
    sys.path.pop(0)  # the folder that this was started in
    asked = socket.socket(fileno=int(sys.argv[1]))
    fork = Fork()
    _import_what_lasts(IMPORTED)
    importlib.metadata.entry_points()  # which keeps what it has read
    asked.send(b"ready")
    serve(asked, fork)


def _import_what_lasts(names: Iterable[str]) -> None:
    """Import what no collector of garbage is to look at, here or in what is forked."""
    gc.disable()
    for name in names:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()


def serve(asked: socket.socket, fork: Fork) -> None:
    """Fork what is asked for until the other end is closed; in a child, be the program."""
    while True:
        message, fds, _, _ = socket.recv_fds(asked, MOST_BYTES, MOST_DESCRIPTORS)
        if not message:
            return
        start: Start = pickle.loads(message)
        if not start.executables and start.module in LATER:
            _import_what_lasts(LATER[start.module])
        if not fork():
            break
        for fd in fds:
            os.close(fd)
    if start.executables:
        _execute(start, fds, asked.detach())
    _become(start, fds, asked.detach())
    if start.module in STARTERS:
        _have_forked(fork)
    _run(start)


def _have_forked(fork: Fork) -> None:
    """Have what this process starts forked by another such server, which is this process as it is now."""
    from tests.forked_starts import ForkedStarts

    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        its.close()
        ForkedStarts(ours).install()
        return
    os.setpgid(0, 0)  # a terminal's Ctrl-C is for the program
    serve(socket.socket(fileno=_take([], [], its.detach())), fork)
    os._exit(0)


def _become(start: Start, fds: Sequence[int], asked: int) -> None:
    """What `subprocess` does between fork and exec, in its order; then whoever asked is told, as `Popen` returns.

    Told sooner, it might look for a group that is not there yet.
    """
    asked = _take(fds, start.numbers, asked)
    try:
        _change(start)
    finally:
        os.write(asked, str(os.getpid()).encode())
        os.close(asked)


def _execute(start: Start, fds: Sequence[int], asked: int) -> NoReturn:
    """Be another program; where that cannot be, the last descriptor is told why, as by `subprocess`."""
    told = start.numbers[-1]
    why = "SubprocessError:0:Exception occurred in preexec_fn."
    try:
        _become(start, fds, asked)
        os.set_inheritable(told, False)
        for number in (signal.SIGPIPE, signal.SIGXFSZ) if start.restores_signals else ():
            signal.signal(number, signal.SIG_DFL)
        failed = errno.ENOENT
        for path in start.executables:
            try:
                os.execve(path, start.arguments, start.environment)
            except OSError as error:
                failed = failed if error.errno in (errno.ENOENT, errno.ENOTDIR, None) else error.errno
        why = f"OSError:{failed:x}:"
    finally:
        os.write(told, why.encode())
        os._exit(255)


def _change(start: Start) -> None:
    if start.folder is not None:
        os.chdir(start.folder)
    if start.umask >= 0:
        os.umask(start.umask)
    if start.session:
        os.setsid()
    if start.group >= 0:
        os.setpgid(0, start.group)
    coerced = {name: value for name, value in os.environ.items() if name == "LC_CTYPE"}  # by the interpreter (PEP 538)
    os.environ.clear()
    os.environ.update(coerced | start.environment)
    if start.before:
        pickle.loads(start.before)()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty() and not sys.stdout.write_through)


def _take(fds: Sequence[int], numbers: Sequence[int], asked: int) -> int:
    """Have the descriptors under these numbers, and no other but `asked`, whose number is returned."""
    above = max((*fds, *numbers, asked)) + 1
    for at, fd in enumerate((*fds, asked)):
        os.dup2(fd, above + at)
    for at, number in enumerate(numbers):
        os.dup2(above + at, number)
    kept = sorted((*numbers, above + len(fds)))
    for low, high in zip([-1, *kept], [*kept, os.sysconf("SC_OPEN_MAX")], strict=True):
        if low + 1 < high:  # closerange(0, 0) closes all there are, with Python 3.11
            os.closerange(low + 1, high)
    return above + len(fds)


def _run(start: Start) -> None:
    """Be the program to its end. What ends it otherwise than by a status goes on to the interpreter, as ever."""
    if is_ours_alone(start.environment.get("PYTHONPATH", "")):
        sys.path[:] = [ROOT, *(folder for folder in sys.path if folder != ROOT)]
    if not start.is_safe:
        sys.path.insert(0, str(Path.cwd()))
    sys.argv = start.arguments[start.is_safe + 1 :]
    status = 0
    try:
        runpy.run_module(start.module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        status = end.code
    with contextlib.suppress(OSError):
        leave(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
