#!/usr/bin/env python3
"""The harness's hand in the guest: answers requests that come through a virtio-serial port.

A request and its answer are one line of JSON each:

    {"session": TOKEN, "id": 7, "do": "run", "command": "lspci", "timeout": 60, "done": [5, 6]}
    {"session": TOKEN, "id": 7, "ok": {...}}   or   {"session": TOKEN, "id": 7, "error": "..."}

Many can be under way at once. An answer is kept until the host says that it has it (`done`), and a request that comes
a second time is not done a second time: so a host may repeat what it asked after a live migration, and loses nothing.
A new session token, as after a restore from a checkpoint, ends what the old session left.

One thread and one selector: no lock is ever held when the agent forks. That is how a `call` is done, and how a program
of this folder is run: under TCG a fork takes 25 ms where Python's start takes 370.

Usage: agent.py [DEVICE]              serve on DEVICE, or on the port that has the right name
       agent.py --call REQUEST ANSWER  do one `call` between two files, for those who come by SSH
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import importlib
import os
import selectors
import signal
import struct
import sys
import time

from agent_forks import (
    PROGRAMS,
    become_program,
    compiled,
    describe,
    function_of,
    load_imports,
    load_imports_of,
    main_of,
    module_of,
    outcome,
)
from agent_json import decode, encode

TYPE_CHECKING = False  # typing itself is 30 ms of a boot without KVM, pathlib 80
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    Request = dict[str, Any]
    Answer = dict[str, object]

PORTS = "/sys/class/virtio-ports"
PORT_NAME = "org.vfio-user.agent.0"
OUTPUT_LIMIT = 16 << 20  # bytes kept of each stream of a job
# In a checkpoint, so that a function that imports them in its fork need not wait: under TCG, 50 ms for socket alone.
PRELOADED = ("ctypes", "mmap", "pathlib", "shutil", "socket", "struct", "subprocess", "threading", "traceback")
LONGEST_WAIT = 3600.0  # seconds of a turn: the selector takes no more than an int of milliseconds
ADD_ENTROPY, RESEED = 0x40085203, 0x5207  # RNDADDENTROPY, RNDRESEEDCRNG
GRACE = 1.0  # seconds between SIGTERM and SIGKILL for a job that took too long


def main() -> None:
    if sys.argv[1:2] == ["--call"]:
        with open(sys.argv[2]) as request, open(sys.argv[3], "w") as answer:
            answer.write(outcome(decode(request.read())))
        return
    device = sys.argv[1] if len(sys.argv) > 1 else find_port()
    Agent(os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)).serve()


def find_port() -> str:
    """The port's device node; there is no udev that would make a link by name."""
    with os.scandir(PORTS) as ports:
        for port in ports:
            with contextlib.suppress(FileNotFoundError), open(f"{port.path}/name") as name:  # a console's has none
                if name.read().strip() == PORT_NAME:
                    return f"/dev/{port.name}"
    sys.exit(f"there is no virtio-serial port called {PORT_NAME}")


class Agent:
    def __init__(self, port: int) -> None:
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.is_told = False  # whether the kernel says when a host connects
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.session = ""
        self.answers: dict[int, bytes] = {}  # id: line, until the host says that it has it
        self.jobs: dict[int, Job] = {}  # id: Job
        self.operations: dict[str, Callable[[int, Request], Answer | None]] = {
            "hello": self.hello,
            "restored": self.restored,
            "prepare": self.prepare,
            "run": self.run,
            "call": self.call,
            "signal": self.signal,
            "put": self.put,
            "get": self.get,
        }

    def serve(self) -> NoReturn:
        self.listen_for_host()
        self.watch_port()
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait for what comes next, and deal with it."""
        for key, events in self.selector.select(self.until_next_deadline()):
            key.data(events)
        now = time.monotonic()
        for job in list(self.jobs.values()):
            if job.deadline <= now:
                job.press()

    # -- the port ------------------------------------------------------------------------------------------------

    def listen_for_host(self) -> None:
        """A port without host polls as hung up all the time, so that the kernel has to send SIGIO when one connects.

        With a host it would send one for each piece of a request, which is two thousand blocks of code for a
        QEMU without KVM to translate: then it is off.
        """
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGIO, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def host_changed(_events: int) -> None:
            os.read(reader, 4096)
            self.have_told(False)
            self.watch_port()

        self.selector.register(reader, selectors.EVENT_READ, host_changed)
        fcntl.fcntl(self.port, fcntl.F_SETOWN, os.getpid())

    def have_told(self, wanted: bool) -> None:
        self.is_told = wanted
        others = fcntl.fcntl(self.port, fcntl.F_GETFL) & ~os.O_ASYNC
        fcntl.fcntl(self.port, fcntl.F_SETFL, others | (os.O_ASYNC if wanted else 0))

    def watch_port(self) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outgoing else 0)
        if self.port in self.selector.get_map():
            self.selector.modify(self.port, wanted, self.port_ready)
        else:
            self.selector.register(self.port, wanted, self.port_ready)

    def port_ready(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            try:
                data = os.read(self.port, 1 << 16)
            except BlockingIOError:
                data = None
            if data == b"":  # no host
                if self.is_told:
                    self.selector.unregister(self.port)
                else:
                    self.have_told(True)  # and look once more: one may have come before that
                return
            self.received(data or b"")
        self.flush()

    def received(self, data: bytes) -> None:
        self.incoming += data
        *lines, rest = self.incoming.split(b"\n") if b"\n" in data else (self.incoming,)
        self.incoming = bytearray(rest)
        for line in lines:
            try:
                request = decode(line.decode())
                session, identity = request["session"], request["id"]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # half a line of a host that is gone
            self.handle(session, identity, request)

    def handle(self, session: str, identity: int, request: Request) -> None:
        done = request.get("done", [])
        if not (isinstance(session, str) and isinstance(identity, int) and are_ints(done)):
            wrong = "the agent takes a session that is a string, an id that is an int, and done that is a list of such"
            self.send(message(session, identity, error=wrong))  # not kept: there may be no number to keep it under
            return
        if session != self.session:
            self.begin(session)
        for finished in done:
            self.answers.pop(finished, None)
        if identity in self.jobs:
            return  # it was asked before, and will be answered
        if identity in self.answers:
            self.send(self.answers[identity])
            return
        try:
            answer = self.operations[request["do"]](identity, request)
        except Exception as error:
            self.answer(identity, error=describe(error))
        else:
            if answer is not None:
                self.answer(identity, ok=answer)

    def begin(self, session: str) -> None:
        for job in list(self.jobs.values()):
            job.kill(signal.SIGKILL)
            job.forget()
        self.session = session
        self.jobs = {}
        self.answers = {}
        self.outgoing[:] = b"\n"  # ends what an agent before a reboot has said half

    def answer(self, identity: int, **body: object) -> None:
        self.answers[identity] = line = message(self.session, identity, **body)
        self.send(line)

    def send(self, line: bytes) -> None:
        self.outgoing += line
        self.flush()

    def flush(self) -> None:
        try:
            while self.outgoing:
                del self.outgoing[: os.write(self.port, self.outgoing[: 1 << 15])]
        except BlockingIOError:
            pass
        if self.port in self.selector.get_map():
            self.watch_port()

    def until_next_deadline(self) -> float | None:
        if not self.jobs:
            return None
        left = min(job.deadline for job in self.jobs.values()) - time.monotonic()
        return max(0.0, min(LONGEST_WAIT, left))

    # -- operations: each takes the request's id and the request; one that answers later returns None --------------

    def hello(self, _identity: int, _request: Request) -> Answer:
        return {"pid": os.getpid(), "python": sys.version.split()[0], "kernel": os.uname().release}

    def restored(self, _identity: int, request: Request) -> Answer:
        """What a guest from a checkpoint has to be told: the time, in seconds since 1970, and `random` bytes.

        It believes that it is when the checkpoint was made, and would draw the random numbers of all others from there.
        """
        time.clock_settime(time.CLOCK_REALTIME, request["time"])
        size, numbers = len(request["random"]), request["random"]
        with open("/dev/urandom", "wb", buffering=0) as pool:
            fcntl.ioctl(pool, ADD_ENTROPY, struct.pack("ii", 8 * size, size) + numbers)
            fcntl.ioctl(pool, RESEED)
        return {}

    def prepare(self, _identity: int, _request: Request) -> Answer:
        """Load the programs of this folder, so that their forks need not: for an agent that goes into a checkpoint.

        The drivers that they use, of which none takes a device by itself, are for the host to load.
        """
        for module in PRELOADED:
            importlib.import_module(module)
        found = sorted(
            file.name[:-3] for file in os.scandir(PROGRAMS) if file.name.endswith(".py") and file.name != "agent.py"
        )
        programs = [importlib.import_module(name) for name in found]
        for program in programs:
            if usual := getattr(program, "USUAL", ()):  # a parser is built, and its patterns are compiled, once then
                program.parser().parse_args(usual)
        gc.collect()
        gc.freeze()  # a fork that looked at all that would copy it
        drivers = [driver for program in programs for driver in getattr(program, "DRIVERS", ())]
        return {"programs": found, "drivers": drivers}

    def run(self, identity: int, request: Request) -> None:
        """A command for the shell, or a list of a program and its arguments."""
        command, timeout = request["command"], float(request["timeout"])  # what is wrong is told before it starts
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        module = module_of(argv[0])
        if module is None:
            self.jobs[identity] = Job.of_program(self, identity, argv, timeout)
        else:
            load_imports_of(module)
            work = functools.partial(main_of, module, argv)
            self.jobs[identity] = Job.of_fork(self, identity, timeout, ("stdout", "stderr"), work)

    def call(self, identity: int, request: Request) -> None:
        """A Python function, given as source; it runs in a fork, so that it cannot harm the agent."""
        with contextlib.suppress(Exception):  # what is wrong with it the fork tells
            compiled(request["file"], request["source"], request["line"])
            load_imports(request["source"])
        work, timeout = functools.partial(function_of, request), float(request["timeout"])
        self.jobs[identity] = Job.of_fork(self, identity, timeout, ("stdout", "stderr", "result"), work)

    def signal(self, _identity: int, request: Request) -> Answer:
        job = self.jobs.get(request["job"])
        if job is not None:
            job.kill(request["signal"])
        return {"sent": job is not None}

    def put(self, _identity: int, request: Request) -> Answer:
        """A piece of a file, at its offset; the piece at 0 begins the file anew, the last one sets the mode."""
        begin = os.O_CREAT | os.O_TRUNC if request["offset"] == 0 else 0
        file = os.open(request["path"], os.O_WRONLY | os.O_CLOEXEC | begin, 0o600)
        try:
            left, offset = request["data"], request["offset"]
            while left:
                written = os.pwrite(file, left, offset)
                left, offset = left[written:], offset + written
            if request.get("mode") is not None:
                os.fchmod(file, request["mode"])
        finally:
            os.close(file)
        return {}

    def get(self, _identity: int, request: Request) -> Answer:
        """A piece of a file; an empty one is its end."""
        file = os.open(request["path"], os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.lseek(file, request["offset"], os.SEEK_SET)
            return {"data": os.read(file, request["size"])}
        finally:
            os.close(file)


def message(session: object, identity: object, **body: object) -> bytes:
    """A line of the agent's."""
    return encode({"session": session, "id": identity, **body}).encode() + b"\n"


def are_ints(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, int) for one in value)


@contextlib.contextmanager
def pipes(*names: str) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Pipes by name: where they are read, and where they are written to, which this process closes behind the block.

    Where the block fails it closes all.
    """
    starts, ends = dict[str, int](), dict[str, int]()
    try:
        for name in names:
            starts[name], ends[name] = os.pipe2(os.O_CLOEXEC)
        yield starts, ends
    except BaseException:
        for start in starts.values():
            os.close(start)
        raise
    finally:
        for end in ends.values():
            os.close(end)


class Job:
    """A process, its output, and the request that it answers when it ends."""

    @classmethod
    def of_program(cls, agent: Agent, identity: int, argv: list[str], timeout: float) -> Job:
        with pipes("stdout", "stderr") as (starts, ends):
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            try:
                pid = os.posix_spawnp(
                    argv[0],
                    argv,
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate((null, *ends.values()))
                    ],
                    setsid=True,
                    setsigdef=[signal.SIGPIPE],
                )
            finally:
                os.close(null)
            return cls(agent, identity, pid, timeout, starts)

    @classmethod
    def of_fork(
        cls, agent: Agent, identity: int, timeout: float, names: tuple[str, ...], work: Callable[..., NoReturn]
    ) -> Job:
        """A fork of the agent that does `work`, given the descriptors of the streams behind stdout and stderr."""
        with pipes(*names) as (starts, ends):
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(agent.port)
                    out, err, *others = ends.values()
                    become_program(out, err)
                    work(*others)
                finally:
                    os._exit(1)  # whatever fails here: there is one agent
            return cls(agent, identity, pid, timeout, starts)

    def __init__(self, agent: Agent, identity: int, pid: int, timeout: float, streams: dict[str, int]) -> None:
        self.agent = agent
        self.identity = identity
        self.pid = pid
        self.began = time.monotonic()
        self.deadline = self.began + timeout
        self.too_long = False
        self.streams = streams  # name: descriptor
        self.output = {name: bytearray() for name in streams}
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:  # too many descriptors: what nobody would ever hear of must not go on
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        agent.selector.register(self.pidfd, selectors.EVENT_READ, self.ended)
        for name, stream in streams.items():
            os.set_blocking(stream, False)
            agent.selector.register(stream, selectors.EVENT_READ, lambda _events, name=name: self.read(name))

    def read(self, name: str) -> int:
        """Take what is there, or some of it; how many bytes that is."""
        if name not in self.streams:
            return 0
        try:
            data = os.read(self.streams[name], 1 << 16)
        except BlockingIOError:
            return 0
        if not data:
            self.drop(name)
        kept = self.output[name]
        kept += data[: max(0, OUTPUT_LIMIT - len(kept))]
        return len(data)

    def ended(self, _events: int) -> None:
        for name, stream in list(self.streams.items()):
            # What the process wrote before it ended, which is no more than a pipe holds: its own children may have the
            # pipe open, and write without end.
            left = fcntl.fcntl(stream, fcntl.F_GETPIPE_SZ)
            while left > 0 and (taken := self.read(name)):
                left -= taken
        _, status = os.waitpid(self.pid, 0)
        self.forget()
        del self.agent.jobs[self.identity]
        answer: Answer = {name: bytes(data) for name, data in self.output.items()}
        answer["exit_code"] = os.waitstatus_to_exitcode(status)
        answer["seconds"] = time.monotonic() - self.began
        answer["timed_out"] = self.too_long
        self.agent.answer(self.identity, ok=answer)

    def press(self) -> None:
        """It took too long: ask it to end, the next time kill it."""
        self.kill(signal.SIGKILL if self.too_long else signal.SIGTERM)
        self.too_long = True
        self.deadline = time.monotonic() + GRACE

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def forget(self) -> None:
        self.agent.selector.unregister(self.pidfd)
        os.close(self.pidfd)
        for name in list(self.streams):
            self.drop(name)

    def drop(self, name: str) -> None:
        stream = self.streams.pop(name)
        self.agent.selector.unregister(stream)
        os.close(stream)


if __name__ == "__main__":
    main()
