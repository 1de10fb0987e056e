"""Any two acts of a scenario on one message: both are done, or the scenario is refused and says which cannot be."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cases import for_each
from tests.interposer_bench import Bench, write
from userdev.interposer.faults import stage
from userdev.relay import loop
from userdev.transport import close_all
from vfio_user.interposer.faults.scenario import Scenario
from vfio_user.interposer.faults.stage import Faults
from vfio_user.wire import HEADER, Message

FIRST, LAST = (write(0, id, bytes([id]) * 8, id=id) for id in (1, 3))
DATA = b"\xee" * 8
"""What only the message has that suffers."""
RESUMED = 8
"""The second at which whoever holds the session lets it go."""
SECONDS = 20


class Clock:
    """Stands for `time`: a second goes by when the test says so."""

    seconds = 1000

    def monotonic(self) -> float:
        return float(self.seconds)

    def monotonic_ns(self) -> int:
        return self.seconds * 10**9


@dataclass
class Seen:
    """What came of three requests, of which the second suffered; lists have an entry for each second."""

    server: list[bytes] = field(default_factory=list)
    at_end: bool = False
    extra: int = 0
    """Descriptors that nobody had sent."""
    own: int = 0
    refused: list[bool] = field(default_factory=list)
    held: bool = False
    signals: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def stream(self) -> bytes:
        return b"".join(self.server)

    def when(self, wanted: bytes) -> int:
        """The second at which this had come whole; `SECONDS` for never."""
        so_far = b""
        for second, data in enumerate(self.server):
            so_far += data
            if wanted in so_far:
                return second
        return SECONDS

    @property
    def done(self) -> int:
        """The second at which the message came to its end, one way or the other."""
        return min([self.when(DATA[:4]), *(second for second, refused in enumerate(self.refused) if refused)])

    @property
    def others_before(self) -> int:
        """Bytes of the other messages in front of it."""
        return FIRST.size + (LAST.size if self.is_overtaken else 0)

    @property
    def is_overtaken(self) -> bool:
        place = self.stream.find(LAST.payload[-8:])
        return place >= 0 and DATA[:4] not in self.stream[:place]

    @property
    def begun(self) -> int:
        """The second at which its first byte came."""
        length = 0
        for second, data in enumerate(self.server):
            length += len(data)
            if length > self.others_before:
                return second
        return SECONDS

    @property
    def lengths(self) -> set[int]:
        """How many bytes of it there were at the end of each second."""
        return {sum(map(len, self.server[:second])) - self.others_before for second in range(SECONDS)}

    @property
    def runs(self) -> list[bytes]:
        return re.findall(rb"\xee+", self.stream)


ACTS: dict[str, tuple[Any, Callable[[Seen], bool]]] = {
    "drop": ("drop", lambda seen: DATA[:1] not in seen.stream and seen.stream.startswith(FIRST.encode())),
    "delay": ({"delay": 5}, lambda seen: 5 <= seen.done < SECONDS),
    "overtake": (
        {"delay": {"seconds": 5, "overtake": True}},
        lambda seen: seen.is_overtaken and 5 <= seen.done < SECONDS,
    ),
    "duplicate": ({"duplicate": 2}, lambda seen: len(seen.runs) == 3),
    "reorder": ({"reorder": {"after": 1, "within": 60}}, lambda seen: seen.is_overtaken and seen.done < SECONDS),
    "corrupt": (
        {"corrupt": {"field": "region", "value": 7}},
        lambda seen: struct.pack("<II", 7, 8) + DATA[:4] in seen.stream,
    ),
    "truncate": ({"truncate": 36}, lambda seen: {*seen.runs} == {DATA[:4]}),
    "wrong-id": ({"wrong-id": 0x5555}, lambda seen: b"\x55\x55" in seen.stream),
    "wrong-size": ({"wrong-size": 0x1234567}, lambda seen: struct.pack("<I", 0x1234567) in seen.stream),
    "extra-fd": ({"extra-fd": 2}, lambda seen: seen.extra in (2, 6)),
    "missing-fd": ({"missing-fd": 0}, lambda seen: not seen.own and bool(seen.runs)),
    "reply": ({"reply": "EIO"}, lambda seen: seen.refused.count(True) == 1 and not seen.runs),
    "stall-after-header": (
        {"stall-after-header": 3},
        lambda seen: seen.when(DATA[:4]) - seen.begun >= 3 and 16 in seen.lengths,
    ),
    "split-header": ({"split-header": {"at": 8, "seconds": 1}}, lambda seen: 8 in seen.lengths),
    "close": ({"close": "server"}, lambda seen: seen.at_end),
    "signal": ({"signal": "SIGSTOP"}, lambda seen: seen.signals == [signal.SIGSTOP]),
    "hold": ("hold", lambda seen: seen.held and (seen.done >= RESUMED)),
}
"""An act, and whether it was done. Of drop, nothing comes at all, and nobody knows when."""


def suffering(monkeypatch: pytest.MonkeyPatch, *acts: list[Any]) -> Seen:
    """What becomes of the second message under rules that have these acts."""
    return seen_of(monkeypatch, [(2, each) for each in acts])


def seen_of(monkeypatch: pytest.MonkeyPatch, rules: list[tuple[int, Any]], removed_at: int = SECONDS) -> Seen:
    """What becomes of the messages under rules, each for the one of that number, and what it does."""
    clock = Clock()
    monkeypatch.setattr(stage, "time", clock)
    monkeypatch.setattr(loop, "time", clock)
    document = [{"match": {"direction": "to-server", "nth": nth}, "act": acts} for nth, acts in rules]
    scenario = Scenario.model_validate({"rules": document})
    seen, file = Seen(), os.memfd_create("own")
    with Bench() as bench:
        note = bench.session.note

        def noted(event: str, **details: object) -> None:
            seen.notes.append(event)
            note(event, **details)

        def signalled(number: int) -> int:
            seen.signals.append(number)
            return 0

        monkeypatch.setattr(bench.session, "note", noted)
        faults = Faults(bench.session, scenario, signalled)
        for message in (FIRST, Message(2, FIRST.command, payload=FIRST.payload[:-8] + DATA, fds=[file]), LAST):
            bench.client.send(message)
        for second in range(SECONDS):
            if second == removed_at:
                faults.remove()
            bench.settle()
            seen.server.append(arrived(bench, seen, file))
            seen.refused.append(is_refused(bench))
            seen.held = seen.held or bench.session.holding.active
            if second == RESUMED and bench.session.holding.active:
                bench.session.holding.resume()
                bench.settle()
                seen.server[-1] += arrived(bench, seen, file)
            clock.seconds += 1
    os.close(file)
    return seen


def arrived(bench: Bench, seen: Seen, file: int) -> bytes:
    data = b""
    while True:
        try:
            more, fds, *_ = socket.recv_fds(bench.server.socket, 1 << 16, 64)
        except (BlockingIOError, ConnectionResetError):
            return data
        for fd in fds:
            if os.path.sameopenfile(fd, file):
                seen.own += 1
            else:
                seen.extra += 1
        close_all(fds)
        if not more:
            seen.at_end = True
            return data
        data += more


def is_refused(bench: Bench) -> bool:
    try:
        reply = bench.client.socket.recv(1 << 10)
    except BlockingIOError:
        return False
    return len(reply) == HEADER.size and HEADER.unpack(reply)[-1] == errno.EIO


def test_an_act_alone_is_done_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = suffering(monkeypatch)
    assert nothing.stream.count(DATA) == 1
    assert [name for name, (_, is_done) in ACTS.items() if is_done(nothing)] == []
    assert [name for name, (act, is_done) in ACTS.items() if not is_done(suffering(monkeypatch, [act]))] == []


def refusal(*acts: Any) -> str:
    try:
        Scenario.model_validate({"rules": [{"match": {"direction": "to-server"}, "act": list(acts)}]})
    except ValueError as error:
        return str(error)
    return ""


@for_each(ACTS)
def test_of_two_acts_both_are_done_or_it_is_said_which_cannot_be(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one rule, or in two that match the same message; there the second is left out, and that is noted."""
    act, is_done = ACTS[first]
    wrong = []
    for second, (other, other_is_done) in ACTS.items():
        refused = refusal(act, other)
        if not refused and second != first:
            together = suffering(monkeypatch, [act, other])
            if not (is_done(together) and other_is_done(together)):
                wrong.append(f"{second}: not both in one rule")
        apart = suffering(monkeypatch, [act], [other])
        left_out = "fault-failed" in apart.notes
        if left_out != bool(refused) or not (is_done(apart) or second == first):
            wrong.append(f"{second}: in two rules, left out: {left_out}")
        elif not refused and second != first and not other_is_done(apart):
            wrong.append(f"{second}: not both in two rules")
    assert wrong == []


STALLED, SUFFERING = {"stall-after-header": 10}, Message(2, FIRST.command, payload=FIRST.payload[:-8] + DATA)
LET_PAST = ({"delay": {"seconds": 3, "overtake": True}}, {"reorder": {"after": 9, "within": 3}})


@for_each(LET_PAST, [SECONDS, 4, 1])
def test_what_others_were_let_past_comes_within_none_of_them(
    act: Any, removed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time comes while another is out in part."""
    seen = seen_of(monkeypatch, [(1, act), (2, STALLED)], removed_at)
    whole = {message.id: message.encode() for message in (FIRST, SUFFERING, LAST)}
    order = (2, 3, 1) if removed_at == 1 else (2, 1, 3)
    assert seen.stream == b"".join(whole[id] for id in order)


@for_each(LET_PAST, [SECONDS, 4, 1])
def test_nor_behind_half_a_message_that_nothing_is_to_follow(
    act: Any, removed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_of(monkeypatch, [(1, act), (2, "stall-after-header")], removed_at)
    assert seen.stream == SUFFERING.encode()[:16]
