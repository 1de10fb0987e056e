"""A server that somebody has started a moment ago: who looks at it waits until it listens, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import for_each
from userdev.conformance import targets
from userdev.errors import UserError
from userdev.transport import Listener, Stream, connect

Listeners = list[Listener]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a server begins to listen once somebody was there in vain."""
    address = tmp_path / "server.sock"
    begun: Listeners = []

    def try_to(place: object, *, timeout: float) -> Stream:
        try:
            return connect(str(address), timeout=timeout)
        except UserError:
            if not begun:
                begun.append(Listener(str(address)))
            raise

    monkeypatch.setattr(targets, "connect", try_to)
    yield address
    for listener in begun:
        listener.close()


def test_the_first_connection_waits_until_it_listens(path: Path) -> None:
    running = targets.RunningServer(str(path), lambda stream, seconds: None, timeout=5)
    running.connect().close()


def test_who_never_listens_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot connect"):
        targets.connect_to_new(str(tmp_path / "none.sock"), timeout=5, seconds=0.01)


@for_each(["nowhere/server.sock", "a file", "tcp:127.0.0.1:1"])
def test_where_no_socket_can_come_nobody_waits(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot connect"):
        targets.connect_to_new(address, timeout=5, seconds=float("inf"))
