"""What a controller may send by mistake or on purpose, to the interposer's control socket."""

from __future__ import annotations

import base64
import errno
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interposed import Interposed, interposed_edu
from userdev.control import ControlError
from vfio_user.wire.layouts import REGION_ACCESS


@pytest.fixture
def edu(tmp_path: Path) -> Iterator[Interposed]:
    with interposed_edu(tmp_path) as interposed:
        yield interposed


WRONG = [
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
    b'{"command": "region_read", "region": 0, "offset": "' + b"9" * 5000 + b'", "size": 4}',
    b'{"command": "region_read", "region": "' + b"9" * 5000 + b'", "offset": 0, "size": 4}',
    b'{"command": "request", "name": "' + b"x" * 5000 + b'"}',
    b'{"command": "device_feature", "operation": "get", "feature": "' + b"x" * 5000 + b'"}',
    b'{"command": "' + b"x" * 5000 + b'"}',
    b'{"command": "status", "' + b"x" * 5000 + b'": 1}',
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
]


def test_a_wrong_command_is_answered_with_what_is_wrong(edu: Interposed, tmp_path: Path) -> None:
    edu.client()
    for line in WRONG:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(60)
            control.connect(str(tmp_path / "control"))
            control.sendall(line + b'\n{"command": "status", "id": [1]}\n')
            answers = control.makefile("rb")
            refusal, good = json.loads(answers.readline()), json.loads(answers.readline())
        named = line[:60]
        assert not refusal["ok"], named
        assert refusal["error"]["what"], named
        assert len(refusal["error"]["what"]) < 300, named
        for unwanted in ("internal", "int string conversion", "set_int_max_str_digits", "codec", "Error"):
            assert unwanted not in refusal["error"]["what"], named
        assert good["ok"], named
        assert good["id"] == [1], named


@pytest.mark.parametrize("towards", ["to-server", "to-client"])
@pytest.mark.parametrize("size", [(1 << 20) + 17, 4 << 20])
def test_a_request_larger_than_its_side_takes_is_refused_and_the_session_goes_on(
    edu: Interposed, size: int, towards: str
) -> None:
    client = edu.client()
    payload = base64.b64encode(bytes(size)).decode()
    with pytest.raises(ControlError, match="bytes of DEVICE_RESET in one message") as refused:
        edu.control().call("request", name="DEVICE_RESET", payload=payload, towards=towards)
    assert refused.value.errno == errno.EMSGSIZE
    client.store(0, 4, 4, 5)
    assert client.load(0, 4, 4) == 0xFFFFFFFA


def test_a_request_that_is_too_large_is_sent_where_one_insists(edu: Interposed) -> None:
    edu.client()
    payload = base64.b64encode(bytes((1 << 20) + 17)).decode()
    reply = edu.control().call("request", name="DEVICE_RESET", payload=payload, force=True)
    assert reply["errno"] == 0, "ours has room for more than it announces, and resets"


def test_the_largest_request_that_the_server_takes_arrives(edu: Interposed) -> None:
    edu.client()
    data = bytes(1 << 20)
    payload = base64.b64encode(REGION_ACCESS.pack(0, 0, len(data), tail=data)).decode()
    assert edu.control().call("request", name="REGION_WRITE", payload=payload)["errno"] == 0
