"""What a trace of any protocol is shown by: its lines, and how it becomes packets and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from userdev.trace.lines import TraceLine
from userdev.trace.pcapng import PacketForm
from userdev.trace.perfetto import Lanes
from userdev.trace.reader import Trace


@dataclass(frozen=True)
class TraceView:
    """A trace as those see it who show it."""

    trace: Trace[Any]
    lines: Callable[[], Iterator[TraceLine]]
    """Every entry with what it says."""
    packets: PacketForm
    lanes: Lanes
