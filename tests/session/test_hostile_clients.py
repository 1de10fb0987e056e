"""A client that does not mean well has its own session, and nothing else: not the program, not the next client's."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.device_kit import descriptors_left
from tests.session_kit import GUEST, Prober
from vfio_user.client import Client, GuestMemory, RemoteError
from vfio_user.server import Server


def test_a_map_whose_descriptor_was_dropped_is_refused_and_not_taken_for_memory_by_message(
    device: Prober, client: Client
) -> None:
    with GuestMemory(1 << 20) as memory:
        with descriptors_left(0), pytest.raises(RemoteError) as refused:
            client.dma_map(GUEST, memory)
        assert refused.value.errno == errno.EMFILE
        assert not len(device.dma)
        client.dma_map(GUEST, memory)
        assert [region.mode for region in device.dma.regions] == ["mapped"]


def test_a_server_that_was_at_its_limit_of_descriptors_serves_the_next_client(server: Server) -> None:
    path = str(server.listener.path)
    with socket.socket(socket.AF_UNIX) as unlucky:
        unlucky.settimeout(5)
        with descriptors_left(0):
            unlucky.connect(path)
            assert unlucky.recv(1) == b""
    with Client.connect(path) as client:
        assert client.load(0, 0, 4) == 0
