"""What takes long is told as it goes on: drawn on a terminal, a line for each elsewhere, and nothing if not wanted."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each_row
from tests.traced import Written
from vfio_user.cli import run
from vfio_user.cli._progress import Waiting
from vfio_user.harness.artifacts import Timeline

TOLD = """
import sys
from typing import cast
from userdev.printable import Printable
sys.stdout, sys.stderr = Printable(sys.stdout), Printable(sys.stderr)
from vfio_user.cli._progress import Waiting
with Waiting(quiet=%s) as waiting:
    waiting.tell("fetching \\x1b]0;a title\\x07")
    waiting.say("found: one \\x1b]0;a title\\x07")
    waiting.how_far("1 of 2")
    waiting.step("restore the guest")
print("done")
"""


def on_a_terminal(code: str, environment: Mapping[str, str] | None = None) -> str:
    """What a program shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.program", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **(environment or {})},
    ):
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:  # the last one has left the terminal
            pass
    os.close(ours)
    return shown.decode()


def test_on_a_terminal_it_is_a_line_that_is_gone_behind_it() -> None:
    shown = on_a_terminal(TOLD % False)
    assert "restore the guest" in shown
    assert "found: one" in shown
    assert "\\x0d" not in shown, "no line begins again by a control character that is told"
    assert "\x1b[2K" in shown, "drawn, and not written out"
    assert shown.endswith("done\r\n")
    assert "\x1b]0;" not in shown, "what others say moves nothing"


def test_how_far_a_search_is_is_drawn_on_a_terminal(tmp_path: Path) -> None:
    with Written(tmp_path / "some.trace") as written:
        for value in range(3):
            written.read(0, value)
    words = ["vfio-user", "minimize", str(tmp_path / "some.trace"), "--server-command", "x", "--check", "false"]
    shown = on_a_terminal(f"import sys; sys.argv = {words}; from vfio_user.cli import main; main()")
    assert "tried, in" in shown
    assert "\\x0d" not in shown, "a line that begins again is drawn, and not told"


def test_nothing_is_coloured_for_who_wants_no_colours() -> None:
    assert "\x1b[32m" in on_a_terminal(TOLD % False)
    assert "\x1b[32m" not in on_a_terminal(TOLD % False, {"NO_COLOR": "1"})


def test_a_quiet_one_shows_nothing_on_a_terminal() -> None:
    assert on_a_terminal(TOLD % True) == "done\r\n"


@for_each_row([(False, "fetching\n"), (True, "")])
def test_elsewhere_preparations_are_lines_and_steps_are_none(
    quiet: bool, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Waiting(quiet=quiet) as waiting:
        waiting.tell("fetching")
        waiting.how_far("1 of 2")
        waiting.step("restore the guest")
    assert capsys.readouterr() == ("", told)


def test_the_time_for_which_a_guest_is_kept_for_a_person_is_known_and_none_of_the_runs(tmp_path: Path) -> None:
    timeline = Timeline()

    def a_minute_passes(_limit: float) -> int:
        timeline._origin -= 60
        return 0

    machine = SimpleNamespace(child=SimpleNamespace(wait=a_minute_passes), console=SimpleNamespace(log="c.log"))
    guest: Any = SimpleNamespace(machine=machine, ssh_command=lambda _folder: ["ssh"])
    lab: Any = SimpleNamespace(timeline=timeline, folder=tmp_path, monitor_path=lambda _guest: "qmp", failure=None)
    lab.machines = lab.servers = []
    kept = run._keep(lab, guest)
    assert 60 <= kept < 70
    report = json.loads(run._report(lab, "edu", [], [], [], [], timeline.now - kept))
    assert report["seconds"] < 10


@for_each_row([({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_commands_have_colours_on_a_terminal_unless_they_are_not_wanted(
    variable: dict[str, str], coloured: bool, tmp_path: Path
) -> None:
    qemu = tmp_path / "qemu"  # what happens is told of a QEMU alone, and a new machine has none
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 11.1.3\necho 'name \"vfio-user-pci\", bus PCI'\n")
    qemu.chmod(0o755)
    words = ["vfio-user", "known-issues", "--qemu", str(qemu)]
    shown = on_a_terminal(
        f"import sys; sys.argv = {words}; from vfio_user.cli import main; main()", {"NO_COLOR": "", **variable}
    )
    assert ("\x1b[3" in shown) is coloured


def test_how_far_it_is_is_told_now_and_then_and_what_comes_between_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("vfio_user.cli._progress.monotonic", lambda: now[0])
    with Waiting() as waiting:
        for seconds in (4.9, 5.0, 5.1, 9.9, 10.0, 10.1, 30.0, 31.0, 35.0):
            now[0] = 100.0 + seconds
            waiting.how_far(f"{seconds} s")
    assert capsys.readouterr().err.splitlines() == ["5.0 s", "10.0 s", "30.0 s", "35.0 s"]
