"""Readers that return what is no number, and others of a device's functions: their author reads which, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from vfio_user import Client, PciDevice, PciIds, RemoteError, Server, register, stored_register


class Odd(PciDevice):
    ids = PciIds(1, 2)
    value: Any = None

    @register(bar=0, offset=0, width=4)
    def odd(self) -> int:
        return self.value  # type: ignore[no-any-return]

    @register(bar=0, offset=8, width=4, count=2)
    def many(self, index: int) -> int:
        return self.value  # type: ignore[no-any-return]

    stored: Any = stored_register(bar=0, offset=0x10, width=4)

    def unclaimed_read(self, region: int, offset: int, count: int) -> bytes:
        return self.value  # type: ignore[no-any-return]


def refused(device: Odd, socket: Path, offset: int, width: int) -> None:
    with Server(device, str(socket)), Client.connect(str(socket)) as client:
        with pytest.raises(RemoteError):
            client.region_read(0, offset, width)
        device.value = 7
        assert client.region_read(0, 0, 4) == b"\7\0\0\0"


# The short path, and the general one.
@for_each_row([(value, *row) for value in [None, 1.5, "1"] for row in [(0, 4), (0, 2), (8, 4), (8, 1)]])
def test_what_is_no_number_is_refused_and_its_function_named(
    value: object, offset: int, width: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Odd()
    device.value = value
    refused(device, tmp_path / "socket", offset, width)
    name = "many" if offset else "odd"
    assert f"Odd.{name} ({__file__}:" in caplog.text
    assert f"has returned {value!r}" in caplog.text
    assert "REGION_READ" in caplog.text
    assert caplog.text.count("Traceback") == 1


@for_each([None, "1", b"12345"])
def test_so_are_bytes_where_nothing_is_declared(
    value: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Odd()
    device.value = value
    refused(device, tmp_path / "socket", 0x20, 4)
    assert f"Odd.unclaimed_read ({__file__}:" in caplog.text
    assert f"has returned {value!r}" in caplog.text
    assert caplog.text.count("Traceback") == 1


def test_and_a_stored_register_that_was_set_to_no_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = Odd()
    device.stored = None
    refused(device, tmp_path / "socket", 0x10, 4)
    assert "Odd.stored is None" in caplog.text
    assert f"({__file__}:" in caplog.text
    assert caplog.text.count("Traceback") == 1
