"""A person's terminal on a guest's console: what is typed comes there, and its end is told until the shell has read."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each_row
from vfio_user.harness import terminal
from vfio_user.harness.mishaps import GuestCrash, Kind

END = b"\x04"


class Guest:
    """One whose shell ends after it has been told so often that there is no more; then it may have ended the guest."""

    def __init__(self, reads: int, crash: Kind | None = None) -> None:
        self.typed: list[bytes] = []
        self.asked = 0
        self._reads, self._crash = reads, crash
        console = SimpleNamespace(send=self.typed.append, listen=lambda _: None)
        child = SimpleNamespace(pid=os.getpid(), running=crash is None)
        mishaps = [] if crash is None else [crash]
        self.machine = SimpleNamespace(console=console, child=child, mishaps=mishaps)

    def call(self, function: Any, *_: object) -> Any:
        if function is terminal._session:
            return [7, 1]
        self.asked += 1
        if self._crash is not None:
            raise GuestCrash("it has gone")
        return self.asked > self._reads


def attached(guest: Guest, typed: bytes, monkeypatch: pytest.MonkeyPatch) -> bool:
    """What `attach` returns with this typed, and then its end."""
    theirs, ours = os.pipe()
    os.write(ours, typed)
    os.close(ours)
    with os.fdopen(theirs) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        return terminal.attach(guest)  # type: ignore[arg-type]


def test_the_end_of_what_was_typed_is_told_until_the_shell_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    for reads in (0, 1, 3):
        guest = Guest(reads)
        assert attached(guest, b"echo hello", monkeypatch), "the machine runs on"
        assert b"".join(guest.typed) == b"\necho hello" + (b"\n" + END * reads if reads else b""), reads
        assert guest.asked == reads + 1


def test_a_machine_that_what_was_typed_has_ended_is_no_mishap_and_a_panic_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attached(Guest(1, Kind.POWERED_OFF), b"poweroff\n", monkeypatch) is False
    for kind in (Kind.PANIC, Kind.OOPS):
        with pytest.raises(GuestCrash):
            attached(Guest(1, kind), b"poweroff\n", monkeypatch)


@for_each_row([(b"x" * 10000,), (b"\x1d",)])
def test_all_that_is_typed_without_a_terminal_is_for_the_guest(typed: bytes) -> None:
    """Ctrl-] too: it leaves where somebody sits."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        guest = Guest(0)
        attached(guest, typed, monkeypatch)
        assert b"".join(guest.typed) == b"\n" + typed


def test_what_is_no_terminal_is_not_asked_where_its_cursor_is(tmp_path: Path) -> None:
    for pieces in ((b"\x1b[6n# ls\x1b[6n\x1b[0m",), (b"\x1b", b"[6", b"n# ls\x1b[", b"6n\x1b[", b"0m")):
        with open(tmp_path / "shown", "w+b") as file:
            show = terminal._shown_on(file.fileno())
            for piece in pieces:
                show(piece)
            file.seek(0)
            assert file.read() == b"# ls\x1b[0m", pieces
