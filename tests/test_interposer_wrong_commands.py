"""What a controller may send by mistake or on purpose, to the interposer's control socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interposed import Interposed, interposed_edu


@pytest.fixture
def edu(tmp_path: Path) -> Iterator[Interposed]:
    with interposed_edu(tmp_path) as interposed:
        yield interposed


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b"7",
        b'{"command": "no such"}',
        b'{"command": "region_read", "region": "BAR17", "offset": 0, "size": 4}',
        b'{"command": "region_read", "region": 0, "offset": -1, "size": 4}',
        b'{"command": "region_read", "region": 0}',
        b'{"command": "status", "surplus": 1}',
        b'{"command": "region_write", "region": 0, "offset": 0, "data": "%%%"}',
        b'{"command": "device_feature", "feature": "NONE", "operation": "get"}',
        b'{"command": "migration_state", "set": "UPSIDE_DOWN"}',
        b"\xff\xfe\x00",
        b'{"command": ' + b"[" * 100_000,
        b'{"raw": ' + b"[" * 100_000,
        b'{"command": "status", "id": ' + b"9" * 5000 + b"}",
        b'{"command": ["status"]}',
        b'{"command": "region_read", "region": 0, "offset": "0x1000000000000000000", "size": 4}',
        b'{"command": "region_read", "region": 0, "offset": "0x' + b"f" * 5000 + b'", "size": 4}',
        b'{"command": "region_read", "region": 0, "offset": 0, "size": 1099511627776}',
        b'{"command": "region_read", "region": 4294967296, "offset": 0, "size": 4}',
        b'{"command": "region_write", "region": -1, "offset": 0, "data": "AAAA"}',
        b'{"command": "memory_read", "iova": 18446744073709551616, "size": 4}',
        b'{"command": "memory_read", "iova": 0, "size": 67108865}',
        b'{"command": "dma_write", "runs": [{"iova": 36893488147419103232, "size": 4096}]}',
        b'{"command": "device_feature", "feature": -1, "operation": "get"}',
        b'{"command": "device_feature", "feature": 1099511627776, "operation": "get"}',
        b'{"command": "device_feature", "feature": "MIGRATION", "operation": "get", "room": 4294967296}',
        b'{"command": "dma_logging_start", "page_size": 0}',
        b'{"command": "dma_logging_report", "page_size": 4096, "ranges": [{"iova": 0, "size": 18446744073709551615}]}',
        b'{"command": "mig_data_read", "file": "/dev/full"}',
        b'{"command": "mig_data_write", "file": "/dev/zero"}',
        b'{"command": "mig_data_write", "file": "/"}',
        b'{"command": "faults", "file": "/dev/zero"}',
        b'{"command": "faults", "file": "/"}',
        b'{"command": "faults", "scenario": "' + b"[" * 600 + b'"}',
        b'{"command": "faults", "scenario": "' + b"#" * 100_000 + b'"}',
        b'{"command": "faults", "scenario": "2001-99-99"}',
    ],
    ids=lambda line: line[:60].decode(errors="replace"),
)
def test_a_wrong_command_is_answered_with_what_is_wrong(edu: Interposed, line: bytes, tmp_path: Path) -> None:
    edu.client()
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(60)
        control.connect(str(tmp_path / "control"))
        control.sendall(line + b'\n{"command": "status", "id": [1]}\n')
        answers = control.makefile("rb")
        refusal, good = json.loads(answers.readline()), json.loads(answers.readline())
    assert not refusal["ok"]
    assert refusal["error"]["what"]
    assert "internal" not in refusal["error"]["what"]
    assert good["ok"]
    assert good["id"] == [1]
