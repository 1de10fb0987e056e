"""What a fork of the agent does: a function that the host has sent, or a program of this folder."""

from __future__ import annotations
import __future__

import atexit
import functools
import importlib
import linecache
import os
import pathlib
import shutil
import signal
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

from agent_json import encode

PROGRAMS = pathlib.Path(__file__).resolve().parent  # each has a main() that returns its exit status, or is a module
Request = dict[str, Any]


def become_program(out: int, err: int) -> None:
    """In a fork: a session, signals and standard streams as a program of its own has them."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    for number, end in enumerate((os.open("/dev/null", os.O_RDONLY), out, err)):
        os.dup2(end, number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")


def function_of(request: Request, result: int) -> NoReturn:
    """In a fork: call the function, and end with its outcome in `result`."""
    status = 1
    try:
        answer = outcome(request)
        with os.fdopen(result, "w") as stream:
            stream.write(answer)
        sys.stdout.flush()
        sys.stderr.flush()
        status = 0
    finally:
        os._exit(status)


def module_of(program: str) -> str | None:
    """The module of this folder that a program is, if it is one that can be called."""
    path = pathlib.Path(os.path.realpath(shutil.which(program) or program))
    own = path.parent == PROGRAMS and path.suffix == ".py" and os.access(path, os.X_OK)
    return path.stem if own and path.stem != "agent" else None


def main_of(module: str, argv: list[str]) -> NoReturn:
    """In a fork: run a program's main() as Python runs a script, but for the interpreter's own end.

    That looks at every object once more, and so copies all that the fork shares with the agent: under TCG 0.1 s.
    """
    sys.argv = argv
    status = 1
    try:
        status = status_of(module)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)


def status_of(module: str) -> int:
    """Run a program's main(); the exit status that it has as a script."""
    try:
        status = importlib.import_module(module).main()
    except SystemExit as end:
        status = end.code
    except Exception as error:  # is the program's, and not the agent's above it
        traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        return 1
    if isinstance(status, int | None):
        return status or 0
    print(status, file=sys.stderr)
    return 1


def outcome(request: Request) -> str:
    """What the function returned, or how it failed, as one JSON text."""
    try:
        return encode({"value": call_source(request)})
    except BaseException as error:
        frames = error.__traceback__
        for _ in range(2):  # this function's and call_source's are no news
            frames = frames and frames.tb_next
        text = "".join(traceback.format_exception(type(error), error, frames))
        return encode({"error": describe(error), "traceback": text})


def call_source(request: Request) -> object:
    """Define the function as if it stood in the host's file, so that a traceback names its lines, and call it."""
    file, source, line = request["file"], request["source"], request["line"]
    linecache.cache[file] = (len(source), None, _lines(source, line), file)
    scope: dict[str, Any] = {"__name__": "__guest__"}
    exec(compiled(file, source, line), scope)
    return scope[request["function"]](*request["args"], **request["kwargs"])


@functools.lru_cache(maxsize=64)
def compiled(file: str, source: str, line: int) -> types.CodeType:
    """The code of a function that stands in a file of the host's from this line on."""
    flags = __future__.annotations.compiler_flag  # its annotations may name what only the host has
    return compile("".join(_lines(source, line)), file, "exec", flags, dont_inherit=True)


def _lines(source: str, line: int) -> list[str]:
    return ["\n"] * (line - 1) + source.splitlines(keepends=True)


def describe(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()
