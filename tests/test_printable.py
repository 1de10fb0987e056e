"""A guest's escape sequences are shown to the operator, and never done."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from userdev.errors import UserError, VerdictError
from userdev.printable import Printable, printable
from userdev.process import tail
from userdev.relay.direction import Direction
from vfio_user.harness.guest import Result
from vfio_user.interposer.trace import VfioTraceWriter
from vfio_user.wire import Message

CLEAR = "\x1b[2J"
SHOWN = "\\x1b[2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a{CLEAR}b", f"a{SHOWN}b"),
        ("\x1b]52;c;eA==\x07", "\\x1b]52;c;eA==\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("failed\rpassed", "failed\\x0dpassed"),
        ("failed\b\b\b\b\b\bpassed", "failed" + "\\x08" * 6 + "passed"),
        ("\u202eright to left", "\\u202eright to left"),
        (os.fsdecode(b"a name that is no UTF-8: \xff"), "a name that is no UTF-8: \\udcff"),
        ("two\r\nlines\n\tand a tab, ä", "two\nlines\n\tand a tab, ä"),
    ],
)
def test_what_a_terminal_would_do_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_our_own_colours_pass_and_a_guests_title_does_not() -> None:
    stream = io.StringIO()
    Printable(stream).write(f"\x1b[31mfailed\x1b[0m \x1b[8mhidden {CLEAR}")
    assert stream.getvalue() == f"\x1b[31mfailed\x1b[0m \\x1b[8mhidden {SHOWN}"


def test_errors_quote_guests_without_doing_what_they_say() -> None:
    assert str(UserError(CLEAR)) == SHOWN
    assert UserError("x", hint=CLEAR).hint == SHOWN
    assert VerdictError("x", evidence=CLEAR).evidence == SHOWN


def test_a_guests_output_and_console_are_described_without_it(tmp_path: Path) -> None:
    described = Result(command="x", exit_code=1, stdout=CLEAR, stderr=CLEAR, seconds=0.0, timed_out=False).describe()
    assert described.count(SHOWN) == 2
    (tmp_path / "console.log").write_text(CLEAR)
    assert tail(tmp_path / "console.log") == SHOWN


def test_nothing_of_a_peers_message_reaches_the_terminal_of_a_command(tmp_path: Path) -> None:
    """In a terminal of its own: what VERSION says in its JSON is printed by `trace show` as it came."""
    writer = VfioTraceWriter(tmp_path / "trace", {"dialect": "current"})
    writer.message(Direction.TO_SERVER, 3, Message(1, 1, payload=bytes(4) + CLEAR.encode()))
    writer.close()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vfio_user", "trace", "show", str(tmp_path / "trace")]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert SHOWN.encode() in said
    assert b"\x1b" not in said
