"""A shell's dialogue in a page: commands behind `$ `, and what they print."""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = 300
"""How long a command may take."""

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
PATH = re.compile(r"/tmp/\S+?(?=[/:\s]|$)")


def dialogue(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a block with the output that is shown; a command goes on behind `\\` and lines with `> `."""
    command: list[str] = []
    output: list[str] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield "\n".join(command), "\n".join(output)
            command, output = [line[2:]], []
        elif command and not output and (command[-1].endswith("\\") or line.startswith("> ")):
            command.append(line.removeprefix("> "))
        else:
            assert command, f"output without a command: {line}"
            output.append(line)
    if command:
        yield "\n".join(command), "\n".join(output)


def alike(shown: str, said: str) -> bool:
    """Whether a command said what is shown of it: numbers differ from run to run, and `...` stands for anything."""
    shown, said = (NUMBER.sub("0", text).strip() + "\n" for text in (shown, said))
    check = doctest.OutputChecker().check_output
    return check(shown, said, FLAGS) or check(shown.removeprefix("...\n"), said, FLAGS)  # anything may be no line


def surroundings() -> dict[str, str]:
    """The variables of a reader with our commands at hand: of what tests set there is none, so that what was fetched,
    built and booted before is found, as it is for them from the second command on.
    """
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("VFIO_USER_", "PYTEST_"))},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


class Shell:
    """Runs commands in a folder, one by one as a person does, and ends what was left in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = 0
        self.failed = ""
        self.jobs: list[tuple[subprocess.Popen[str], Path]] = []
        self.environment = {**surroundings(), "COLUMNS": "80", "NO_COLOR": "1"}

    def run(self, command: str, shown: str) -> None:
        """Run a command as bash does; one that ends with `&` until what is shown of it has been said.

        Raises:
            AssertionError: it said something else, took too long, or failed and nobody asks for `$?` next.
        """
        if "$?" not in command:
            self.settle()
        if command.endswith("&"):
            self.begin(command[:-1].strip(), shown)
        elif command == "kill $!":  # the number of a job depends on what has ended before, with a person at a terminal
            self.stop()
        else:
            self.do(command, shown)

    def do(self, command: str, shown: str) -> None:
        with tempfile.TemporaryFile("w+") as output:
            process = self._start(f"(exit {self.status})\n{command}", output.fileno())
            try:
                self.status = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self._kill(process)
                self.status = -1
            output.seek(0)
            said = output.read()
        self.failed = f"$ {command}\n--- is shown\n{shown}\n--- was said, with status {self.status}\n{said}"
        if shown and not alike(shown, said):
            self.status = 0  # it is told once
            raise AssertionError(self.failed)

    def settle(self) -> None:
        """See that the last command was good, where nobody asks.

        Raises:
            AssertionError: it had another status than 0.
        """
        status, self.status = self.status, 0
        assert not status, self.failed

    def begin(self, command: str, shown: str) -> None:
        path = self.folder / f".job-{len(self.jobs)}"
        with path.open("w") as output:
            process = self._start(command, output.fileno())
        self.jobs.append((process, path))
        until = time.monotonic() + SECONDS
        while shown and not alike(shown, path.read_text()):
            assert process.poll() is None, f"$ {command} &\nended with {process.returncode}:\n{path.read_text()}"
            assert time.monotonic() < until, f"$ {command} &\n--- is shown\n{shown}\n--- was said\n{path.read_text()}"
            time.sleep(0.02)

    def stop(self) -> None:
        process, _ = self.jobs[-1]
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(SECONDS)

    def close(self) -> None:
        """End all that is left."""
        for process, _ in self.jobs:
            self._kill(process)

    def _start(self, command: str, output: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def _kill(self, process: subprocess.Popen[str]) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()
