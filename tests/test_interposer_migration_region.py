"""Servers that migrate by the v1 region, driven through the interposer in the terms of migration v2."""

from __future__ import annotations

import base64
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cases import for_each_row
from tests.interposed import Interposed, interposed_edu
from tests.test_interposer_control import copied_by_the_device
from userdev.control import ControlError
from vfio_user.client import Client
from vfio_user.interposer.control.client import InterposerControl
from vfio_user.interposer.survival import Policy
from vfio_user.wire import CURRENT, DIALECTS, Dialect

PAIRS = [("region-migration", "region-migration"), ("region-migration", "current"), ("draft-v6", "draft-v6")]
"""What the server speaks, and what client and interposer take it to speak, as QEMU of today does."""


@contextmanager
def edu(folder: Path, server: str, spoken: Dialect) -> Iterator[tuple[Interposed, Client, InterposerControl]]:
    folder.mkdir()
    with interposed_edu(folder, DIALECTS[server], dialect=spoken) as interposed:
        yield interposed, interposed.client(dialect=spoken), interposed.control()


@for_each_row(PAIRS)
def test_state_moves_from_one_server_to_another(server: str, spoken: str, tmp_path: Path) -> None:
    dialect = DIALECTS[spoken]
    with (
        edu(tmp_path / "a", server, dialect) as (_, here, source),
        edu(tmp_path / "b", server, dialect) as (_, there, to),
    ):
        assert "STOP_COPY" in source.call("migration_support")["supports"]
        here.store(0, 0x04, 4, 0x12345678)
        to.call("migration_state", set="RESUMING")
        source.call("migration_state", set="PRE_COPY")
        early = source.call("mig_data_read")
        source.call("migration_state", set="STOP_COPY")
        rest = source.call("mig_data_read", size=1 << 20)
        stream = base64.b64decode(early["data"]) + base64.b64decode(rest["data"])
        for start in range(0, len(stream), 1000):  # cut anywhere: pieces are put together again
            to.call("mig_data_write", data=base64.b64encode(stream[start : start + 1000]).decode())
        assert to.call("migration_state")["state"] == "RESUMING"
        to.call("migration_state", set="STOP")
        assert to.call("migration_state")["state"] == "STOP"
        to.call("migration_state", set="RUNNING")
        assert there.load(0, 0x04, 4) == 0x12345678 ^ 0xFFFFFFFF


def test_a_state_whose_end_is_missing_is_not_taken(tmp_path: Path) -> None:
    with edu(tmp_path / "a", "region-migration", CURRENT) as (_, client, control):
        control.call("migration_state", set="STOP_COPY")
        state = base64.b64decode(control.call("mig_data_read")["data"])
        control.call("migration_state", set="RESUMING")
        control.call("mig_data_write", data=base64.b64encode(state[:-1]).decode())
        with pytest.raises(ControlError):
            control.call("migration_state", set="STOP")
        control.call("mig_data_write", data=base64.b64encode(state[-1:]).decode())
        control.call("migration_state", set="STOP")
        control.call("migration_state", set="RUNNING")
        assert client.load(0, 0x00, 4) == 0x010000ED


def test_what_was_stopped_runs_on_where_it_was(tmp_path: Path) -> None:
    with edu(tmp_path / "a", "region-migration", CURRENT) as (_, client, control):
        client.store(0, 0x04, 4, 7)
        for state in ("PRE_COPY", "RUNNING", "PRE_COPY", "STOP_COPY", "RUNNING", "STOP", "RUNNING"):
            assert control.call("migration_state", set=state) == control.call("migration_state") == {"state": state}
        assert client.load(0, 0x04, 4) == 7 ^ 0xFFFFFFFF


@for_each_row(PAIRS)
def test_what_the_device_writes_is_logged(server: str, spoken: str, tmp_path: Path) -> None:
    with edu(tmp_path / "a", server, DIALECTS[spoken]) as (interposed, client, control):
        ram = interposed.ram()
        client.dma_map(0x100000, ram)
        control.call("dma_logging_start", page_size=4096)
        assert control.call("dma_logging_report")["runs"] == []
        copied_by_the_device(client, [0x103000])
        assert control.call("dma_logging_report")["runs"] == [{"iova": 0x103000, "size": 0x1000}]
        control.call("dma_logging_stop")


def test_a_live_upgrade_hands_the_state_over(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m vfio_user serve edu --dialect region-migration --fd {{fd}}"
    with Interposed(tmp_path, command, survive=Policy()) as interposed:
        client, control = interposed.client(), interposed.control()
        client.store(0, 0x04, 4, 0xCAFE)
        assert control.call("restart", hand_over=True)["handed_over"]
        assert client.load(0, 0x04, 4) == 0xCAFE ^ 0xFFFFFFFF
