"""The server's side of an interposer: how it gets a connection to whoever serves next."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interposer_bench import Looped
from userdev.errors import UserError
from userdev.interposer.upstream import Upstream


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[str]:
    """The path of a server that takes no client any more: nobody accepts, and its queue is full."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            yield path


@pytest.mark.parametrize("patience", [0.0, 0.05])
def test_a_server_that_takes_no_client_is_not_waited_for_beyond_the_deadline(busy: str, patience: float) -> None:
    looped = Looped()
    upstream = Upstream(looped.loop, busy, None)
    with pytest.raises(UserError):
        looped.run(upstream.reconnect(looped.loop.now() + patience))
    looped.loop.close()
