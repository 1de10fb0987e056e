"""Whose fault it is: a back-end that keeps the rules is blamed for nothing, and one that does not for what it does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each
from tests.vhost.faults.faulty import Faulty, Usual
from tests.vhost.reverse import REVERSE, Reverse
from tests.vhost.test_conformance_suite import InProcess, results
from userdev.conformance import Crash, Outcome
from userdev.errors import ProtocolError
from userdev.eventfd import drain
from userdev.fuzz import Step
from userdev.transport import Stream
from vhost_user.backend.commands import Answer
from vhost_user.frontend import FrontEnd
from vhost_user.frontend.conformance import CATALOGUE, Bench
from vhost_user.fuzz import VhostUserSubject
from vhost_user.wire import FrontEndRequest, ProtocolFeature
from vhost_user.wire.payloads import Inflight, Region

R, P = FrontEndRequest, ProtocolFeature
FULL = (1 << 64) - 2


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    with closing(Faulty(monkeypatch)) as made:
        yield made


def told(folder: Path, *groups: str) -> tuple[dict[str, Outcome], set[str]]:
    """What is neither right nor for want of another, and what is left out."""
    found = results(folder, Reverse, REVERSE, *(check for check in CATALOGUE if {check.group, check.id} & {*groups}))
    wrong = (Outcome.FAIL, Outcome.DIFFERS, Outcome.BROKEN)
    return (
        {result.check.id: result.outcome for result in found if result.outcome in wrong},
        {result.check.id for result in found if result.outcome is Outcome.SKIP},
    )


def one_slot(faulty: Faulty) -> None:
    taken: dict[int, set[int]] = {}

    def add(back_end: Any, region: Region, fds: list[int], usual: Usual) -> Any:
        if taken.setdefault(id(back_end), set()):
            raise ProtocolError("there is one memory slot", errno.ENOSPC)
        answer = usual(back_end, region, fds)
        taken[id(back_end)].add(region.guest_address)
        return answer

    def remove(back_end: Any, region: Region, fds: list[int], usual: Usual) -> Any:
        taken.get(id(back_end), set()).discard(region.guest_address)
        return usual(back_end, region, fds)

    faulty.at(R.GET_MAX_MEM_SLOTS, lambda *_: 1)
    faulty.at(R.ADD_MEM_REG, add)
    faulty.at(R.REM_MEM_REG, remove)


def test_a_back_end_is_given_no_more_regions_than_it_has_slots(tmp_path: Path, faulty: Faulty) -> None:
    one_slot(faulty)
    wrong, left_out = told(tmp_path, "memory")
    assert (wrong, left_out) == ({}, {"memory/slots", "memory/slot-gone"})


def test_a_back_end_that_offers_every_feature_breaks_no_check(tmp_path: Path, faulty: Faulty) -> None:
    faulty.at(R.GET_FEATURES, lambda *_: (1 << 64) - 1)
    assert told(tmp_path, "features/not-offered") == ({}, {"features/not-offered"})


REGIONS: dict[str, dict[str, int]] = {
    "longer than its file": {"mmap_size": 1 << 40},
    "at no place that there is": {"mmap_offset": 1 << 63},
    "too short for a ring": {"mmap_size": 16},
    "at no page": {"mmap_offset": 1},
    "of nothing": {"mmap_size": 0},
}


def test_a_back_end_without_configuration_space_breaks_no_check(tmp_path: Path, faulty: Faulty) -> None:
    faulty.at(R.GET_PROTOCOL_FEATURES, lambda b, v, f, usual: usual(b, v, f) & ~P.CONFIG)
    assert told(tmp_path, "config") == ({}, {check.id for check in CATALOGUE if check.group == "config"})


@for_each(list(REGIONS))
def test_a_region_for_what_is_under_way_that_is_none_is_one_finding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(back_end: Any, wanted: Inflight, fds: list[int], usual: Usual) -> Answer:
        answer: Answer = usual(back_end, wanted, fds)
        return Answer(answer.value._replace(**REGIONS[name]), answer.fds)

    with closing(Faulty(monkeypatch)) as faulty:
        faulty.at(R.GET_INFLIGHT_FD, give)
        assert told(tmp_path, "inflight")[0] == {"inflight/given": Outcome.FAIL}


def test_a_state_that_can_be_had_nowhere_is_the_back_ends_fault(tmp_path: Path, faulty: Faulty) -> None:
    faulty.at(R.SET_DEVICE_STATE_FD, lambda *_: Answer(0, [os.open("/", os.O_RDONLY)]))
    wrong, _ = told(tmp_path, "state")
    assert set(wrong) == {"state/saved", "state/loaded", "state/cut-off"}
    assert Outcome.BROKEN not in wrong.values()


def test_a_back_end_may_close_what_was_left_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does in another thread; one that does not within a second keeps it."""
    monkeypatch.setattr("vhost_user.frontend.conformance.sessions.CLOSING_SECONDS", 0.05)
    found: dict[str, Outcome] = {"session/nothing-left": Outcome.FAIL}
    for number, (later, wrong) in enumerate((([(9, 2), (8, 3), (8, 2)], {}), (repeat((9, 2)), found))):
        holds = chain([(8, 2)], later)
        monkeypatch.setattr(Bench, "process_holds", lambda _, holds=holds: next(holds))
        (folder := tmp_path / str(number)).mkdir()
        assert told(folder, "session/nothing-left")[0] == wrong


class HangsUpOnTheQuick(InProcess):
    """It listens anew for each front-end: of two connections the first is hung up on."""

    tries = 0

    def connect(self) -> Stream:
        self.tries += 1
        stream = super().connect()
        if self.tries % 2:
            stream.shutdown(2)
        return stream


class Dies(InProcess):
    """It has died of what one front-end has left, and another is in its place."""

    dead: Crash | None = None

    def crashed(self) -> Crash | None:
        dead, self.dead = self.dead, None
        return dead


ASK = Step.of("ask", what=0)


def test_a_fuzzer_comes_again_where_it_was_too_quick(tmp_path: Path) -> None:
    with HangsUpOnTheQuick(tmp_path, Reverse) as target:
        target.tries = 1
        with closing(VhostUserSubject(target, REVERSE, timeout=20)) as subject:
            assert subject.prepare() == []
            target.tries = 0
            assert subject.play([ASK]) is None


def test_a_fuzzer_hears_of_a_back_end_that_died_of_a_front_end_that_left(tmp_path: Path) -> None:
    with Dies(tmp_path, Reverse) as target, closing(VhostUserSubject(target, REVERSE, timeout=20)) as subject:
        assert subject.prepare() == []
        assert subject.play([ASK]) is None
        target.dead = Crash("the server was killed by SIGSEGV")
        found = subject.play([ASK])
        assert found is not None
        assert "SIGSEGV" in str(found)
        assert subject.play([ASK]) is None


def test_a_kick_never_waits_whatever_a_back_end_has_made_of_its_descriptor(tmp_path: Path) -> None:
    with InProcess(tmp_path, Reverse) as target, FrontEnd(target.connect(), timeout=20) as front_end:
        queue = front_end.queue()
        for blocks in (False, True):
            os.set_blocking(queue.kick_fd, blocks)
            queue.kick()
            assert drain(queue.kick_fd) == 1
            os.eventfd_write(queue.kick_fd, FULL)
            queue.kick()
            assert drain(queue.kick_fd) == FULL


def test_a_fuzzer_says_of_no_number_of_queues_that_it_was_another(tmp_path: Path, faulty: Faulty) -> None:
    """Of a back-end that has none, as it says; that it has to have one is the rule of a check."""
    faulty.at(R.GET_QUEUE_NUM, lambda *_: 0)
    with InProcess(tmp_path, Reverse) as target, closing(VhostUserSubject(target, REVERSE, timeout=20)) as subject:
        assert subject.prepare() == []
        assert subject.play([Step.of("ask", what=2)]) is None
