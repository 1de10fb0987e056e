"""Who is a check's own client: who has shown that the server still serves, where that is as good as a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conformance_target import InProcess
from tests.everything_device import Everything
from userdev.conformance import Check, CheckFailed, Group, Outcome
from userdev.transport import Stream
from vfio_user.client import Client
from vfio_user.client.conformance import Bench, run
from vfio_user.wire import CURRENT


@dataclass
class Counting(InProcess):
    """A server that says how many came to it, and whose client is one that stays where that is asked for."""

    came: list[Stream] = field(default_factory=list)
    renewed_beside: list[bool] = field(default_factory=list)
    """Of each renewal, whether a client was there."""

    def connect(self) -> Stream:
        self.came.append(super().connect())
        return self.came[-1]

    def settle(self, stays: Callable[[Stream, float], None] | None = None) -> None:
        assert stays is not None
        stays(self.connect(), 5)

    def renew(self) -> None:
        self.renewed_beside.append(any(each.fileno() >= 0 for each in self.came))
        super().renew()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Counting]:
    with Counting(tmp_path, Everything) as counting:
        yield counting


def checks_of(*tried: Callable[[Bench], object]) -> list[Check[Bench]]:
    group = Group[Bench]("own", "as is written here")
    for number, each in enumerate(tried):
        group.add(f"check-{number}", "A check", each)  # type: ignore[arg-type]
    return list(group)


def outcomes(target: Counting, *tried: Callable[[Bench], object]) -> list[Outcome]:
    return [result.outcome for result in run(checks_of(*tried), target, CURRENT)]


def asks(bench: Bench) -> None:
    bench.client.device_info()


def asks_as_a_stranger(bench: Bench) -> None:
    with closing(bench.target.connect()) as stream:  # who serves one at a time would refuse a second
        client = Client(stream, timeout=5)
        client.negotiate()
        client.device_info()


def fails(bench: Bench) -> None:
    bench.client.device_info()
    raise CheckFailed("as it is to")


def test_the_client_who_showed_that_the_server_serves_on_is_the_next_checks_own(target: Counting) -> None:
    assert outcomes(target, asks, asks, asks) == [Outcome.PASS] * 3
    assert len(target.came) == 3 + 1
    assert all(stream.fileno() < 0 for stream in target.came)


def test_a_check_finds_the_client_who_waits_as_new_as_one_of_its_own(target: Counting) -> None:
    ids: list[int] = []

    def notes_its_id(bench: Bench) -> None:
        ids.append(bench.client.channel.fresh_id())
        assert bench.client.server is not None
        assert bench.client.server.minor == 0

    assert outcomes(target, notes_its_id, notes_its_id) == [Outcome.PASS] * 2
    assert ids[0] == ids[1]


def test_a_check_that_begins_as_another_client_has_the_server_for_itself(target: Counting) -> None:
    assert outcomes(target, asks, asks_as_a_stranger, asks) == [Outcome.PASS] * 3


def test_a_client_whom_the_server_has_left_is_nobodys(target: Counting) -> None:
    """A server that has died meanwhile is the finding of the check that it died of, and not of the next one."""
    results = run(checks_of(asks, asks), target, CURRENT)
    assert next(results).outcome is Outcome.PASS
    InProcess.renew(target)
    assert [result.outcome for result in results] == [Outcome.PASS]


def test_a_server_is_asked_to_end_by_nobody_who_is_its_client(target: Counting) -> None:
    """How it ends beside one is another matter, and no check's."""
    last = checks_of(asks)[0]
    checks = [*checks_of(fails, asks), Check("other/last", last.title, last.rule, asks, last.level, None)]
    assert [result.outcome for result in run(checks, target, CURRENT)] == [Outcome.FAIL, Outcome.PASS, Outcome.PASS]
    assert target.renewed_beside == [False, False]


def test_who_stops_in_the_middle_leaves_no_client_behind(target: Counting) -> None:
    results = run(checks_of(asks, asks), target, CURRENT)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert all(stream.fileno() < 0 for stream in target.came)
