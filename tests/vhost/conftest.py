"""A back-end and its front-end, over a socket; and a guest's memory without either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vhost.between import Between
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FrontEnd, Queue
from tests.vhost_kit import Guest
from vhost_user.backend import Server


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made


@pytest.fixture
def device() -> Reverse:
    return Reverse()


@pytest.fixture
def server(device: Reverse, tmp_path: Path) -> Iterator[Server]:
    with Server(device, f"unix:{tmp_path}/s") as server:
        yield server


@pytest.fixture
def stranger(server: Server) -> Iterator[FrontEnd]:
    """A front-end that has said nothing yet."""
    with FrontEnd(str(server.listener.address)) as front_end:
        yield front_end


@pytest.fixture
def front_end(stranger: FrontEnd) -> FrontEnd:
    """One that has negotiated and shared its memory."""
    stranger.negotiate()
    stranger.share_memory()
    return stranger


@pytest.fixture
def ring(front_end: FrontEnd) -> Iterator[Queue]:
    """Its first queue, which runs."""
    ring = front_end.queue()
    ring.start()
    yield ring
    ring.close()


@pytest.fixture
def between() -> Iterator[Between]:
    with Between() as made:
        yield made
