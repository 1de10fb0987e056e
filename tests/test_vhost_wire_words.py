"""Payloads and bits of vhost-user as people read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cases import for_each
from vhost_user.wire import (
    BACK_END,
    FRONT_END,
    FrontEndRequest,
    Negotiated,
    ProtocolFeature,
    VirtioFeature,
    decode_reply,
    payloads,
)
from vhost_user.wire.features import words_of
from vhost_user.wire.messages import Shape


def test_the_example_of_the_guide_is_right() -> None:
    """Its first block; the others show parts."""
    guide = (Path(__file__).parent.parent / "docs" / "vhost-user-inside.md").read_text()
    names: dict[str, Any] = {}
    exec(guide.partition("```python\n")[2].partition("```")[0], names)
    assert names["request"] is FrontEndRequest.GET_QUEUE_NUM
    assert decode_reply(FrontEndRequest.GET_QUEUE_NUM, names["reply"], Negotiated()) == 2


@for_each([*FRONT_END.values(), *BACK_END.values()])
def test_a_payload_is_called_as_the_specification_calls_it_unless_there_is_none(row: Shape) -> None:
    for payload in (row.payload, row.reply_payload):
        if payload is not None:
            assert (repr(payload) == "<no payload>") is isinstance(payload, payloads.Empty)


def test_bits_are_told_by_name_and_those_without_by_number() -> None:
    assert words_of(VirtioFeature(1 << 63 | 1 << 32)) == "VERSION_1, bit 63"
    assert words_of(ProtocolFeature.BACKEND_REQ) == "BACKEND_REQ"
    assert words_of(VirtioFeature(0)) == "none"
