"""What faults make of messages, as a trace has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cases import for_each_row
from tests.interposer_bench import write
from tests.test_faults_acts import Faulty
from userdev.trace import Raw, View
from vfio_user.interposer.trace import MessageRecord, read_trace


@for_each_row(
    {
        "corrupt": ({"corrupt": {"at": 32, "xor": 0xFF}}, 1),
        "duplicate": ({"duplicate": 2}, 3),
        "wrong-id": ("wrong-id", 1),
        "truncate": ({"truncate": {"to": 20}}, 1),
        "extra-fd": ({"extra-fd": 1}, 1),
        "truncate and keep the size": ({"truncate": {"to": 20, "size": "keep"}}, 0),
        "wrong-size": ({"wrong-size": {"by": 4}}, 0),
    }
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
