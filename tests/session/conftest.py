"""One device, the server that has it, and a client of that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.session_kit import Prober
from vfio_user.client import Client
from vfio_user.server import Server


@pytest.fixture
def device() -> Iterator[Prober]:
    with closing(Prober()) as device:
        yield device


@pytest.fixture
def server(device: Prober, tmp_path: Path) -> Iterator[Server]:
    with Server(device, str(tmp_path / "socket")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client.connect(str(server.listener.address)) as client:
        yield client
