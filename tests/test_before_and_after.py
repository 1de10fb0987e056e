"""What was found once and kept is right before and behind each change; and so are options beside each other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.cases import for_each
from userdev.control.lines import LineReader
from userdev.errors import ProtocolError
from userdev.relay.direction import Direction
from vfio_user.device import Dma
from vfio_user.interposer.faults.engine import FaultEngine
from vfio_user.interposer.faults.scenario import parse_scenario
from vfio_user.testing import RecordingLink, memory_file
from vfio_user.wire import CURRENT, Command, Message

PAGE = 4096

# Lines, of which it is kept how far there is no end


COMMANDS = st.lists(
    st.one_of(
        st.text("abc {}", max_size=40).map(lambda text: (text.encode(), b"")),
        st.binary(min_size=1, max_size=20).map(lambda behind: (b'{"raw": %d}' % len(behind), behind)),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(COMMANDS, st.lists(st.integers(1, 30), min_size=1))
def test_lines_are_the_same_however_they_come(commands: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    """With the descriptors of the pieces whose last byte is one of theirs."""
    owners = [number for number, (text, behind) in enumerate(commands) for _ in text + b"\n" + behind]
    stream = b"".join(text + b"\n" + behind for text, behind in commands)
    reader, found, at = LineReader(1 << 16), [], 0
    fds: list[list[int]] = [[] for _ in commands]
    turns = itertools.count()
    while at < len(stream):
        turn = next(turns)
        piece = stream[at : at + cuts[turn % len(cuts)]]
        at += len(piece)
        given = [] if turn % 4 else [100_000 + turn]  # numbers that no descriptor has
        fds[owners[at - 1]] += given
        found += [(line.text, line.behind, line.fds) for line in reader.feed(piece, given)]
    wanted = [(text, behind, beside) for (text, behind), beside in zip(commands, fds, strict=True)]
    assert found == [line for line in wanted if line[0].strip() or line[2]]
    assert not reader.refused


# Client memory: the region that was used last, and views of it


class ClientMemory(RuleBasedStateMachine):
    """Memory that comes and goes, in each mode, and is used in each way right before and behind that.

    A page is mapped at one of some places; what is read is what was written there while it was mapped.
    """

    PLACES = 4

    def __init__(self) -> None:
        super().__init__()
        self.link = RecordingLink(memory=bytearray(16 * PAGE), base=0)
        self.dma = Dma()
        self.dma.link = self.link
        self.content: dict[int, bytearray] = {}
        self.files: dict[int, int] = {}
        self.modes: dict[int, str] = {}
        self.written: set[int] = set()
        self.logs = False

    places = st.integers(0, PLACES - 1)

    @rule(place=places, mode=st.sampled_from(["mapped", "file", "message"]), old=st.booleans())
    def map(self, place: int, mode: str, old: bool) -> None:
        """Another page where one was, the usual way that a cache goes wrong."""
        if place in self.content:
            self.unmap(place)
        if mode == "message":
            self.link.memory[place * PAGE : (place + 1) * PAGE] = bytes(PAGE)
        else:
            self.files[place] = memory_file(PAGE)
        fd = os.dup(self.files[place]) if mode != "message" else None
        self.dma.map(place * PAGE, PAGE, 3 | (8 if mode == "file" else 0), fd)
        self.content[place], self.modes[place] = bytearray(PAGE), mode

    @rule(place=places)
    def unmap(self, place: int) -> None:
        if place in self.content:
            self.dma.unmap(place * PAGE, PAGE)
            self.forget(place)
        else:
            with pytest.raises(ProtocolError):
                self.dma.unmap(place * PAGE, PAGE)

    @rule()
    def map_nothing(self) -> None:
        """A region of no bytes, which is known by its address alone."""
        self.dma.map(0x80000, 0, 3)
        self.dma.unmap(0x80000, 0)
        with pytest.raises(ProtocolError):
            self.dma.unmap(0x80000, 0)

    @rule()
    def unmap_all(self) -> None:
        self.dma.map(0x80000, 0, 3)
        self.dma.unmap_all()
        for place in list(self.content):
            self.forget(place)
        with pytest.raises(ProtocolError):
            self.dma.unmap(0x80000, 0)

    @rule()
    def log(self) -> None:
        if self.logs:
            self.dma.stop_log()
        else:
            self.dma.start_log(PAGE)
        self.logs = not self.logs
        self.written.clear()

    @rule(place=places, at=st.integers(0, PAGE - 8), value=st.integers(0, 255), how=st.sampled_from(["write", "views"]))
    def write(self, place: int, at: int, value: int, how: str) -> None:
        data, iova = bytes([value]) * 8, place * PAGE + at
        if place not in self.content or (how == "views" and self.modes[place] != "mapped"):
            with pytest.raises(ProtocolError):
                self.put(how, iova, data)
            return
        self.put(how, iova, data)
        self.content[place][at : at + 8] = data
        self.written.add(place)

    def put(self, how: str, iova: int, data: bytes) -> None:
        if how == "write":
            self.dma.write(iova, data)
            return
        with self.dma.views(iova, len(data), write=True) as views:
            views[0][:] = data

    @rule(first=places, second=places, how=st.sampled_from(["read", "read_into", "gather"]))
    def read(self, first: int, second: int, how: str) -> None:
        """Two pages one after the other."""
        wanted = [first, second]
        possible = all(place in self.content for place in wanted)
        if not possible or (how == "gather" and any(self.modes[place] != "mapped" for place in wanted)):
            with pytest.raises(ProtocolError):
                self.get(how, wanted)
            return
        assert self.get(how, wanted) == [bytes(self.content[place]) for place in wanted]

    def get(self, how: str, places: Sequence[int]) -> list[bytes]:
        if how == "gather":
            views = self.dma.gather([(place * PAGE, PAGE) for place in places])
            found = [bytes(view) for view in views]
            for view in views:
                view.release()
            return found
        if how == "read":
            return [self.dma.read(place * PAGE, PAGE) for place in places]
        buffers = [bytearray(PAGE) for _ in places]
        for place, buffer in zip(places, buffers, strict=True):
            self.dma.read_into(place * PAGE, buffer)
        return [bytes(buffer) for buffer in buffers]

    @precondition(lambda self: self.logs and self.content)
    @rule()
    def report(self) -> None:
        bitmap = self.dma.take_dirty(0, self.PLACES * PAGE, PAGE)
        assert {page for page in range(self.PLACES) if bitmap[0] >> page & 1} == self.written
        self.written.clear()

    @invariant()
    def regions_are_those_that_were_mapped(self) -> None:
        assert [region.iova // PAGE for region in self.dma.regions] == sorted(self.content)
        for place in range(self.PLACES):
            assert (self.dma.find(place * PAGE) is not None) == (place in self.content)

    def forget(self, place: int) -> None:
        del self.content[place]
        self.written.discard(place)
        if (fd := self.files.pop(place, None)) is not None:
            os.close(fd)

    def teardown(self) -> None:
        self.dma.unmap_all()
        for fd in self.files.values():
            os.close(fd)


def test_client_memory_that_comes_and_goes_is_never_another() -> None:
    phases = (Phase.explicit, Phase.generate)  # 30 steps can be read, and making them fewer takes a minute
    steps = settings(max_examples=30, stateful_step_count=30, deadline=None, phases=phases)
    run_state_machine_as_test(ClientMemory, settings=steps)


# What a rule of a scenario says, in all combinations


NTH: Mapping[str, Callable[[int], bool]] = {
    "": lambda n: True,
    "nth: 3": lambda n: n == 3,
    "nth: {from: 2, every: 2}": lambda n: n >= 2 and n % 2 == 0,
    "nth: {from: 2, until: 5}": lambda n: 2 <= n <= 5,
    "nth: [1, 4]": lambda n: n in (1, 4),
}
TIMES = ("", "times: 1", "times: 3")
CHANCES = ("", "probability: 0.5")
MOMENTS: Mapping[str, Callable[[int], bool]] = {
    "": lambda s: True,
    "time: {after: 2}": lambda s: s >= 2,
    "time: {before: 7}": lambda s: s < 7,
}


@for_each(TIMES, CHANCES)
def test_the_conditions_of_a_rule_hold_together(times: str, chance: str) -> None:
    """Which messages are acted upon: those that each condition takes, counted in the order in which they are asked."""
    most = int(times.partition(" ")[2] or 1000)
    for (nth, includes), (moment, is_time) in product(NTH.items(), MOMENTS.items()):
        conditions = ", ".join(filter(None, (nth, chance, moment)))
        acted = acted_upon(f"rules: [{{match: {{{conditions}}}, act: drop{', ' + times if times else ''}}}]")
        in_time = [second for second in range(12) if is_time(second)]
        possible = [second for number, second in enumerate(in_time, start=1) if includes(number)]
        if chance:
            free = acted_upon(f"rules: [{{match: {{{conditions}}}, act: drop}}]")
            assert {*free} <= {*possible}
            assert acted == free[:most], conditions
        else:
            assert acted == possible[:most], conditions


def acted_upon(text: str) -> list[int]:
    """Of messages that come one a second, those that something happens to."""
    engine = FaultEngine(parse_scenario(text, "scenario"), CURRENT)
    found = []
    for second in range(12):
        message = Message(second, CURRENT.number(Command.DEVICE_RESET))
        if engine.plan(Direction.TO_SERVER, message, "running", float(second)) is not None:
            found.append(second)
    return found
