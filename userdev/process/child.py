"""Child processes that do not outlive their owner, and whose last words can be shown."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from userdev.printable import printable
from userdev.process.deadline import Deadline
from userdev.process.ending import ProcessEnd
from userdev.process.spawning import spawn

CRASHES = frozenset(
    (
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    )
)
_OWN_MEMORY = "0x11"  # core(5): anonymous private mappings, and the first page of programs and libraries

PRINTED_NOTHING = "(it printed nothing"
"""How last words begin that are none."""


class Child:
    """A running program: own process group, killed with its owner, output in a file.

    `log` receives stdout and stderr. The program gets no stdin. `pass_fds` are inherited under the same numbers.
    `folder` is its working directory, this process's if none is given. With `take_core` it leaves a core when it
    crashes, and that is called at once, since the next to crash may overwrite it: to put the core where `core_path`
    says, and to return where it is.

    Raises:
        UserError: the program cannot be started.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        pass_fds: Iterable[int] = (),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        take_core: Callable[[Child], Path | None] | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.folder = folder or Path.cwd()
        with log.open("ab") as output:
            self._process = spawn(
                self.argv,
                output=output,
                pass_fds=pass_fds,
                environment=environment,
                folder=folder,
                prepare=_allow_core if take_core else None,
            )
        self.pid = self._process.pid
        self._reaping = threading.Lock()
        self.began = time.time()
        self._began = time.monotonic()
        self._ended = 0.0
        self._take_core = take_core
        self.core: Path | None = None
        """That of a crash, where it left one; there when `ended` is known."""
        self.signals: list[signal.Signals] = []
        """What it was sent on purpose, but for its orderly end."""
        self.was_stopped = False
        """Whether it ran until `stop` ended it."""
        self._watcher = threading.Thread(target=self._watch, name=f"end of {name}", daemon=True)
        with contextlib.ExitStack() as left:
            left.callback(self._process.wait)
            left.callback(self._signal_group, signal.SIGKILL)
            self.end = ProcessEnd(self.pid)
            left.callback(self.end.close)
            self._watcher.start()
            left.pop_all()  # it is somebody's now

    @property
    def not_before(self) -> float:
        """The moment, in seconds since 1970, before which it wrote nothing: below `began` if clocks went back."""
        return min(self.began, time.time() - (time.monotonic() - self._began))

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        with self._reaping:
            code = self._process.poll()
            if code is not None and not self._ended:
                self._ended = time.time()  # whoever notices first: the watcher may be late on a busy host
            return code

    @property
    def ended(self) -> float | None:
        """The moment it ended, in seconds since 1970; None while it runs."""
        if self.running:
            return None
        self._watcher.join()
        return self._ended

    @property
    def crashed(self) -> bool:
        """Whether it ended as only a defect makes it."""
        code = self.exit_code
        return code is not None and -code in CRASHES

    @property
    def ended_on_request(self) -> bool:
        """Whether it was sent the signal that ended it."""
        code = self.exit_code
        return code is not None and -code in self.signals

    @property
    def ended_badly(self) -> bool:
        """Whether it ended by itself, and not in good order."""
        return self.exit_code not in (None, 0) and not self.was_stopped and not self.ended_on_request

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as is known now."""
        return self.exit_code is None

    def wait(self, limit: float | Deadline, *, or_readable: int | None = None) -> int | None:
        """Its exit code as soon as it has one, or None when the deadline passed first, or a descriptor was readable."""
        if self.running:
            self.end.wait(limit, or_readable=or_readable)
        return self.exit_code

    def signal(self, number: int) -> None:
        """Send a signal to it alone; nothing happens when it has ended."""
        self.signals.append(signal.Signals(number))
        self._process.send_signal(number)

    def kill(self, by: int) -> None:
        """End it as a crash would: by SIGKILL, or by what has it die of that as it stands for a program elsewhere."""
        self.signals.append(signal.SIGKILL)
        self._process.send_signal(by)

    def pause(self, by: int | None = None) -> None:
        """Have it stand still: by SIGSTOP, or by what has a program elsewhere do so that it stands for, and then it.

        When this returns none of its threads runs, or it has ended: after the signal alone some still do. As long as
        the kernel takes: a thread that waits for a disk stops behind that.
        """
        self.signals.append(signal.SIGSTOP)
        self._process.send_signal(signal.SIGSTOP if by is None else by)
        with contextlib.suppress(ChildProcessError):  # it has ended, and somebody has asked how
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def stop(self, grace: float = 2.0) -> int:
        """End it and its whole process group: SIGTERM, `grace` seconds, SIGKILL. Returns the exit code.

        One that is paused hears of no SIGTERM, and has no time to end by itself.
        """
        if self.running:
            self.was_stopped = True
            self._signal_group(signal.SIGTERM)
            if not self._is_paused:
                self.wait(grace)
        self._signal_group(signal.SIGKILL)
        code = self._process.wait()
        self._watcher.join()
        self.end.close()
        return code

    @property
    def _is_paused(self) -> bool:
        """Whether a signal has stopped it, as far as is known now (proc_pid_stat(5), state)."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b") ")[2][:1]
        except OSError:  # it has ended
            return False
        return state == b"T"

    def group_is_alive(self) -> bool:
        """Whether any process of its group is left, the child itself or what it started."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def fate(self) -> str:
        """Its end, for a sentence: "exited with status 3", "was killed by SIGSEGV" or "is running"."""
        code = self.exit_code
        if code is None:
            return "is running"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

    def last_words(self, lines: int = 15) -> str:
        """The end of its log, indented for an error message."""
        return tail(self.log, lines) or f"{PRINTED_NOTHING}{'; the disk of its log is full' * is_full(self.log)})"

    @property
    def core_path(self) -> Path:
        """The path for its core: beside its log."""
        return self.log.with_name(f"{self.name}-{self.pid}.core")

    def _watch(self) -> None:
        self.end.wait(math.inf)
        crashed = self.crashed  # that also notes when it ended
        if crashed and self._take_core is not None:
            with contextlib.suppress(OSError):  # a full disk; where it was left it is still found by hand
                self.core = self._take_core(self)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def tail(path: Path, lines: int = 15, *, without: re.Pattern[str] | None = None) -> str:
    """The last `lines` lines of a text file that are not `without`, `printable`; nothing when there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            data = file.read(65536)
    except OSError:
        return ""
    said = data.decode(errors="replace").replace("\r", "").rstrip().splitlines()
    return printable("\n".join([line for line in said if without is None or not without.search(line)][-lines:]))


def _allow_core() -> None:
    """Let it leave a core when it crashes, without memory that it shares with others: the guest's."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text(_OWN_MEMORY)


def is_full(path: Path) -> bool:
    """Whether no space is left on the disk of a file or folder that is there."""
    try:
        return not os.statvfs(path).f_bavail
    except OSError:
        return False
