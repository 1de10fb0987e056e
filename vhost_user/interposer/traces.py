"""Traces of vhost-user: `userdev.trace` with this protocol's messages, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userdev import trace
from userdev.relay import Direction
from userdev.trace import Decoded, Header, Note, TracedProtocol, TraceLine
from userdev.trace.pcapng import PacketForm
from userdev.trace.perfetto import Lanes
from userdev.trace.view import ShownProtocol
from vhost_user.interposer.asker import ASKERS
from vhost_user.interposer.decode import DecodedMessage, describe
from vhost_user.interposer.reading import VhostReading
from vhost_user.wire import HEADER_SIZE, Message

NAME = "vhost-user"
"""The protocol, as headers have it."""


@dataclass(frozen=True)
class MessageRecord(trace.TraceRecord[Message]):
    """A message of vhost-user's."""


PROTOCOL = TracedProtocol(NAME, Message, HEADER_SIZE, MessageRecord, tuple(ASKERS))
PACKETS = PacketForm(NAME, b"VHUP", Path(__file__).parent / "vhost_user.lua", channels=tuple(ASKERS))

_TO_BACK_END, _TO_FRONT_END, _CHANNEL = "front-end to back-end", "back-end to front-end", "back-end's channel"


@dataclass(frozen=True)
class Filter(trace.Filter):
    """A selection of what to show; None and empty let everything through."""

    ring: int | None = None

    @property
    def about_messages(self) -> bool:
        """Whether it asks for what only messages have: their names, a ring."""
        return super().about_messages or self.ring is not None

    def fits(self, decoded: Decoded) -> bool:
        """Whether a message is to be shown, by its ring too."""
        assert isinstance(decoded, DecodedMessage)
        return super().fits(decoded) and (self.ring is None or decoded.ring == self.ring)


def _decode(record: trace.TraceRecord[Any], request: Decoded | None) -> Decoded:
    return describe(ASKERS[record.channel], record.message)


def _lane(line: TraceLine) -> str:
    entry = line.entry
    if isinstance(entry, Note | Header):
        return ""
    if entry.channel:
        return _CHANNEL
    return _TO_BACK_END if entry.direction is Direction.TO_SERVER else _TO_FRONT_END


LANES = Lanes((_TO_BACK_END, _TO_FRONT_END, _CHANNEL), _lane)
SHOWN = ShownProtocol(PROTOCOL, _decode, VhostReading, PACKETS, LANES)
