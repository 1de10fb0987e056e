"""What `vfio-user probe` says to do about a server that it cannot describe fits what the server did."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from userdev.errors import ProtocolError, UserError
from userdev_servers.edu import Edu
from vfio_user.cli._probed_registers import as_yaml, probed_registers
from vfio_user.cli._registers import registers as registers_of
from vfio_user.cli.probe import command, hint_at_version, hint_beyond_version
from vfio_user.client import Client, Disconnected, NoAnswer, RemoteError
from vfio_user.client.description import describe
from vfio_user.interposer.trace.register_file import load_registers
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap
from vfio_user.server import Server
from vfio_user.wire.constants import RegionIndex


def refused(path: Path, *options: str) -> UserError:
    result = CliRunner().invoke(command, [str(path), *options])
    assert isinstance(result.exception, UserError)
    return result.exception


def test_a_server_that_has_a_client_is_not_asked_in_every_dialect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.1)
    with Server(Edu(), f"unix:{tmp_path / 's'}"), Client.connect(f"unix:{tmp_path / 's'}"):
        error = refused(tmp_path / "s")
    assert "EBUSY" in str(error)
    assert "draft-v6" not in str(error)
    assert "another client" in error.hint


@for_each_row(
    [
        (RemoteError(errno.EBUSY, "VERSION"), "another client"),
        (RemoteError(errno.EINVAL, "VERSION"), "--dialect"),
        (ProtocolError("x"), "--dialect"),
        (Disconnected("x"), "hangs up"),
        (NoAnswer("x"), "SIGSTOP"),
    ],
    ids=repr,
)
def test_where_no_version_is_agreed_on(error: Exception, word: str) -> None:
    assert word in hint_at_version(error)


@for_each_row(
    [
        (RemoteError(errno.EINVAL, "REGION_READ"), "stopped for migration"),
        (RemoteError(errno.ENOTSUP, "DEVICE_GET_INFO"), "conformance"),
        (ProtocolError("x"), "conformance"),
        (Disconnected("x"), "died"),
        (NoAnswer("x"), "--timeout"),
    ],
    ids=repr,
)
def test_where_a_question_is_not_answered(error: Exception, word: str) -> None:
    hint = hint_beyond_version(error)
    assert word in hint
    assert ("migration" in hint) == (word == "stopped for migration"), "only what is refused can be for that"


@for_each([[], ["--json"]], ids=["yaml", "json"])
def test_it_names_the_registers_that_every_pci_device_has(options: list[str], tmp_path: Path) -> None:
    with Server(Edu(), f"unix:{tmp_path / 's'}"):
        found = CliRunner().invoke(command, [str(tmp_path / "s"), "--register-map", *options])
        with Client.connect(f"unix:{tmp_path / 's'}") as client:
            [msix] = [each for each in describe(client).pci_capabilities if each.name == "MSI-X"]
    (tmp_path / "map.yaml").write_text(found.stdout)
    names = load_registers(tmp_path / "map.yaml")
    assert names.name(RegionIndex.CONFIG, msix.offset + 2) == "msix_control"
    bar, offset = int(msix.details["table_bar"]), int(msix.details["table_offset"])
    assert names.name(bar, offset + 12).startswith("msix_vector_control")
    assert names.name(int(msix.details["pba_bar"]), int(msix.details["pba_offset"])) == "msix_pending"
    assert names.name(RegionIndex.CONFIG, 0) == "vendor_id", "those of the header have names anyway"


def test_a_pending_bit_is_there_for_each_vector() -> None:
    """64 of them are a register."""
    for vectors, registers in ((1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (2048, 32)):
        details = {"vectors": vectors, "table_bar": 1, "table_offset": 0, "pba_bar": 1, "pba_offset": 0x8000}
        capability = SimpleNamespace(id=0x11, offset=0x50, extended=False, details=details)
        names: Any = probed_registers(SimpleNamespace(pci_capabilities=[capability]))  # type: ignore[arg-type]
        entries = {entry["name"]: entry for entry in names.plain}
        assert entries["msix_pending"]["count"] == registers, vectors
        assert entries["msix_address"]["count"] == vectors, vectors


def test_advice_is_on_what_a_server_did_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each dialect it refuses otherwise: all of it is told."""
    errors = iter([RemoteError(errno.EINVAL, "VERSION"), Disconnected("it hung up")])

    def connect(*_: object) -> Client:
        raise next(errors)

    monkeypatch.setattr("vfio_user.cli.probe._connected", connect)
    monkeypatch.setattr("vfio_user.cli.probe.speaks_vhost_user", lambda *_, **__: False)
    with Server(Edu(), f"unix:{tmp_path / 's'}"):
        error = refused(tmp_path / "s")
    assert "current: " in str(error)
    assert "draft-v6: it hung up" in str(error)
    assert "hangs up" in error.hint


def test_a_registers_map_of_a_device_has_the_widest_access_of_each_and_all_of_them() -> None:
    places = {one["name"]: (one["width"], one["count"], one["stride"]) for one in registers_of("edu").plain}
    assert (places["compute"], places["set_transfer"]) == ((4, 1, 4), (8, 3, 8))


def test_a_map_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        written = RegisterMap([NamedRegister(0, 8, "ring", 4, count, 16)])
        (tmp_path / "map.yaml").write_text(as_yaml(written))
        read = load_registers(tmp_path / "map.yaml")
        assert [read.name(0, 8 + 16 * number) for number in range(4)] == [
            written.name(0, 8 + 16 * number) for number in range(4)
        ], count
