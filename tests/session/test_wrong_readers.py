"""Readers that return what is no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vfio_user import Client, PciDevice, PciIds, RemoteError, Server, register


class Odd(PciDevice):
    ids = PciIds(1, 2)
    value: Any = None

    @register(bar=0, offset=0, width=4)
    def odd(self) -> int:
        return self.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("value", [None, 1.5, "1"])
@pytest.mark.parametrize("width", [4, 8])  # the short path, and the general one
def test_what_is_no_number_is_refused_and_named(
    value: object, width: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Odd()
    with Server(device, str(tmp_path / "socket")), Client.connect(str(tmp_path / "socket")) as client:
        device.value = value
        with pytest.raises(RemoteError):
            client.region_read(0, 0, width)
        assert f"Odd.odd is {value!r}, not an int of 4 bytes" in caplog.text
        device.value = 7
        assert client.region_read(0, 0, width)[:4] == b"\7\0\0\0"
