"""What faults make of messages, as a trace has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interposer_bench import write
from tests.test_faults_acts import Faulty
from userdev.trace import Raw, View
from vfio_user.interposer.trace import MessageRecord, read_trace


@pytest.mark.parametrize(
    ("act", "messages"),
    [
        pytest.param({"corrupt": {"at": 32, "xor": 0xFF}}, 1, id="corrupt"),
        pytest.param({"duplicate": 2}, 3, id="duplicate"),
        pytest.param("wrong-id", 1, id="wrong-id"),
        pytest.param({"truncate": {"to": 20}}, 1, id="truncate"),
        pytest.param({"extra-fd": 1}, 1, id="extra-fd"),
        pytest.param({"truncate": {"to": 20, "size": "keep"}}, 0, id="truncate and keep the size"),
        pytest.param({"wrong-size": {"by": 4}}, 0, id="wrong-size"),
    ],
)
def test_what_a_fault_makes_of_a_message_is_in_the_trace_as_a_message_if_it_is_one(
    act: Any, messages: int, tmp_path: Path
) -> None:
    with Faulty(act, trace=tmp_path / "trace") as bench:
        bench.client.send(write(0, 1, b"\1\1\1\1", id=1, posted=True))
        bench.settle()
    sent = [
        entry
        for entry in read_trace(tmp_path / "trace").entries
        if isinstance(entry, MessageRecord | Raw) and entry.view is View.SENT
    ]
    kinds: list[type] = [MessageRecord] * messages
    assert [type(entry) for entry in sent] == (kinds or [Raw])
