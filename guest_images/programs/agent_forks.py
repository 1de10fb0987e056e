"""What a fork of the agent does: a function that the host has sent, or a program of this folder."""

from __future__ import annotations
import __future__

import atexit
import contextlib
import functools
import importlib
import linecache
import os
import signal
import sys

from agent_json import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import Iterator
    from typing import Any, NoReturn

    Request = dict[str, Any]

PROGRAMS = os.path.realpath(__file__).rpartition("/")[0]
"""Each file there has a main() that returns its exit status, or is a module."""


# -- in the agent, before it forks ------------------------------------------------------------------------------------


def module_of(program: str) -> str | None:
    """The module of this folder that a program is, if it is one that can be called."""
    folder, name = os.path.split(os.path.realpath(found(program)))
    own = folder == PROGRAMS and name.endswith(".py") and os.access(f"{folder}/{name}", os.X_OK)
    return name[:-3] if own and name != "agent.py" else None


def found(program: str) -> str:
    """Where the PATH leads to, as `shutil.which`, which takes 30 ms to load."""
    if "/" not in program:
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            if os.access(path := f"{folder}/{program}", os.X_OK):
                return path
    return program


def load_imports_of(module: str) -> None:
    """What `load_imports` does, for a program of this folder."""
    if module not in sys.modules:
        with contextlib.suppress(OSError), open(f"{PROGRAMS}/{module}.py") as file:
            load_imports(file.read())


@functools.lru_cache(maxsize=64)
def load_imports(source: str) -> None:
    """Load once here what each fork would load for itself: modules of Python's own, but none of this folder's.

    Those may be other ones the next time.
    """
    for name in _imported(source):
        if name.partition(".")[0] in sys.stdlib_module_names:
            with contextlib.suppress(Exception):  # the fork tells
                importlib.import_module(name)
        else:
            load_imports_of(name)


def _imported(source: str) -> Iterator[str]:
    for line in source.splitlines():
        match line.replace(",", " ").split():
            case ["import", *names]:
                yield from names
            case ["from", name, "import", *_]:
                yield name


# -- in a fork --------------------------------------------------------------------------------------------------------


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


def main_of(module: str, argv: list[str]) -> NoReturn:
    """In a fork: run a program's main() as Python runs a script, but for the interpreter's own end.

    That looks at every object once more, and so copies all that the fork shares with the agent: under TCG 0.1 s.
    """
    sys.argv = argv
    status = 1
    try:
        status = status_of(module)
        if (threading := sys.modules.get("threading")) is not None:
            threading._shutdown()
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
        import traceback

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
        import traceback

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
    code: types.CodeType = compile("".join(_lines(source, line)), file, "exec", flags, dont_inherit=True)
    return code


def _lines(source: str, line: int) -> list[str]:
    return ["\n"] * (line - 1) + source.splitlines(keepends=True)


def describe(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception_only(error)).strip()
