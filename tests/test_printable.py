"""A guest's escape sequences are shown to the operator, and never done."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each_row
from userdev.errors import UserError, VerdictError
from userdev.printable import Printable, printable
from userdev.process import tail
from userdev.relay.direction import Direction
from userdev.trace import TraceWriter
from vfio_user.harness.guest import Result
from vfio_user.interposer.interposer import Interposer, Setup
from vfio_user.interposer.trace.files import NAME
from vfio_user.wire import Message
from vhost_user.interposer import interposer as vhost

CLEAR = "\x1b[2J"
SHOWN = "\\x1b[2J"


@for_each_row(
    [
        (f"a{CLEAR}b", f"a{SHOWN}b"),
        ("\x1b]52;c;eA==\x07", "\\x1b]52;c;eA==\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("failed\rpassed", "failed\\x0dpassed"),
        ("failed\b\b\b\b\b\bpassed", "failed" + "\\x08" * 6 + "passed"),
        ("\u202eright to left", "\\u202eright to left"),
        (os.fsdecode(b"a name that is no UTF-8: \xff"), "a name that is no UTF-8: \\udcff"),
        ("two\r\nlines\n\tand a tab, ä", "two\nlines\n\tand a tab, ä"),
    ]
)
def test_what_a_terminal_would_do_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_our_own_colours_pass_and_a_guests_title_does_not() -> None:
    stream = io.StringIO()
    Printable(stream).write(f"\x1b[31mfailed\x1b[0m \x1b[8mhidden {CLEAR}\r\n")
    assert stream.getvalue() == f"\x1b[31mfailed\x1b[0m \\x1b[8mhidden {SHOWN}\n"


def test_errors_quote_guests_without_doing_what_they_say() -> None:
    assert str(UserError(CLEAR)) == SHOWN
    assert UserError("x", hint=CLEAR).hint == SHOWN
    assert VerdictError("x", evidence=CLEAR).evidence == SHOWN


def test_a_guests_output_and_console_are_described_without_it(tmp_path: Path) -> None:
    described = Result(command="x", exit_code=1, stdout=CLEAR, stderr=CLEAR, seconds=0.0, timed_out=False).describe()
    assert described.count(SHOWN) == 2
    (tmp_path / "console.log").write_text(CLEAR)
    assert tail(tmp_path / "console.log") == SHOWN


def test_what_an_interposer_warns_of_is_shown_and_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / f"trace{CLEAR}"
    trace.symlink_to("/dev/full")
    options: dict[str, Any] = {"listen": str(tmp_path / "a"), "connect": str(tmp_path / "b"), "trace": str(trace)}
    Interposer(Setup(**options)).close()
    vhost.Interposer(vhost.Setup(**options)).close()
    warned = capsys.readouterr().err
    assert warned.count(SHOWN) == 2
    assert CLEAR not in warned


def test_nothing_of_a_peers_message_reaches_the_terminal_of_a_command(tmp_path: Path) -> None:
    """In a terminal of its own: what VERSION says in its JSON is printed by `trace show` as it came."""
    writer = TraceWriter(tmp_path / "trace", NAME, {"dialect": "current"})
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
