"""`vhost-user fuzz`: what each oracle notices, and that finds are played again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.fuzz_kit import Quiet
from tests.vhost.faults import FAULTS, Faulty
from tests.vhost.reverse import Reverse
from tests.vhost.test_conformance_suite import REVERSE, InProcess
from userdev.fuzz import Bounds, Campaign, Find, Found, Step
from userdev.fuzz.drawing import sequences
from vfio_user.cli import vhost_user_cli
from vhost_user.backend.vring import Vring
from vhost_user.device import Chain, VhostDevice, config_field, queue
from vhost_user.frontend.conformance import DeviceKind
from vhost_user.fuzz import ORACLES, VhostUserSubject
from vhost_user.wire import FrontEndRequest

SERVE = Step.of("serve", count=3, indirect=0, one_by_one=1, border=0)
SECTOR = 512


class Wrong(Reverse):
    """Its third answer is another one."""

    @queue()
    def reverse(self, chain: Chain) -> int:
        data = chain.read()
        self.done += 1
        return chain.write(data if self.done == 3 else data[::-1])


class Disk(Reverse):
    """Keeps sectors, and loses the last byte of what comes in more than one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.sectors: dict[bytes, bytes] = {}

    @queue()
    def reverse(self, chain: Chain) -> int:
        pieces = len(chain.readable_views)
        whole = chain.read()
        if whole[:1] == b"\1":
            data = whole[16:]
            self.sectors[whole[8:16]] = data[:-1] + b"\0" if pieces > 2 else data
            return chain.write(b"\0")
        return chain.write(self.sectors.get(whole[8:16], bytes(SECTOR)) + b"\0")


def never(faulty: Faulty) -> None:
    """No fault."""


def features_change(faulty: Faulty, offers: FrontEndRequest = FrontEndRequest.GET_FEATURES) -> None:
    """Offers something else once memory has come three times."""
    came: list[None] = []

    def memory(back_end: Any, value: Any, fds: Any, usual: Any) -> Any:
        came.append(None)
        return usual(back_end, value, fds)

    def features(back_end: Any, value: Any, fds: Any, usual: Any) -> Any:
        return usual(back_end, value, fds) ^ (len(came) > 2) << 5

    faulty.at(FrontEndRequest.ADD_MEM_REG, memory)
    faulty.at(offers, features)


def writes_elsewhere(faulty: Faulty) -> None:
    """Counts in the last byte of memory how often a ring is served."""
    served: list[None] = []

    def serve(usual: Any, vring: Vring) -> None:
        usual(vring)
        if vring.ring is not None:
            served.append(None)
            vring.ring.table._regions[-1].view[-1:] = bytes([len(served) % 256])

    faulty.instead(Vring, "serve", serve)


BLK = DeviceKind("blk", 2, 0, (bytes(16), SECTOR, 1), lambda done: done.writable[-1] == 0, 0)

NOTICED: dict[str, tuple[Callable[[], VhostDevice], DeviceKind, Callable[[Faulty], None], list[Step]]] = {
    "rings": (Wrong, REVERSE, never, [SERVE]),
    "memory": (Reverse, REVERSE, writes_elsewhere, [SERVE]),
    "blocks": (
        Disk,
        BLK,
        never,
        [
            Step.of("write_blocks", sector=1, data="", cut=16, merged=0),
            Step.of("read_blocks", sector=1, cut=0),
        ],
    ),
    "log": (Reverse, REVERSE, FAULTS["log/data"], [Step.of("start"), Step.of("log", on=1), SERVE]),
    "offer": (Reverse, REVERSE, features_change, [Step.of("join", kind=0, regions=1, as_table=0)] * 3),
    "replies": (Reverse, REVERSE, FAULTS["messages/refused"], [Step.of("ring_number", request=0)]),
    "alive": (Reverse, REVERSE, FAULTS["session/next"], [Step.of("join", kind=0, regions=1, as_table=0)]),
    "descriptors": (
        Reverse,
        REVERSE,
        FAULTS["session/nothing-left"],
        [SERVE, Step.of("join", kind=0, regions=1, as_table=0)],
    ),
}
"""By oracle: a back-end that does wrong what it is for, and when it does."""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.1)
    made = Faulty(monkeypatch)
    yield made
    made.close()


def played(folder: Path, make: Callable[[], VhostDevice], kind: DeviceKind, steps: list[Step]) -> Found | None:
    with InProcess(folder, make, pid=os.getpid()) as target:
        player = VhostUserSubject(target, kind, timeout=0.5)
        assert player.prepare() == []
        try:
            return player.play(steps)
        finally:
            player.close()


@pytest.mark.pure
@pytest.mark.parametrize("oracle", NOTICED)
def test_each_oracle_notices_what_it_is_for(oracle: str, tmp_path: Path, faulty: Faulty) -> None:
    make, kind, fault, steps = NOTICED[oracle]
    fault(faulty)
    found = played(tmp_path, make, kind, steps)
    assert found is not None
    assert found.oracle.id == oracle, found
    assert oracle in {each.id for each in ORACLES}


def test_protocol_features_are_offered_to_every_front_end_as_others_are(tmp_path: Path, faulty: Faulty) -> None:
    features_change(faulty, FrontEndRequest.GET_PROTOCOL_FEATURES)
    found = played(tmp_path, Reverse, REVERSE, [Step.of("join", kind=0, regions=1, as_table=0)] * 3)
    assert found is not None
    assert found.oracle.id == "offer"


def test_a_fresh_disk_need_not_have_what_was_written_to_the_one_before(tmp_path: Path) -> None:
    write, read = Step.of("write_blocks", sector=1, data="ab", cut=0, merged=0), Step.of("read_blocks", sector=1, cut=0)
    with InProcess(tmp_path, Disk, pid=os.getpid()) as target:
        player = VhostUserSubject(target, BLK, timeout=5)
        assert player.prepare() == []
        for steps in ([write], [read], [write, read]):
            assert player.play(steps) is None
        player.renew()
        assert player.play([read]) is None
        player.close()


def test_a_reference_that_answers_otherwise_is_a_find(tmp_path: Path) -> None:
    class Larger(Reverse):
        capacity: int = config_field(8, 8)

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with InProcess(tmp_path / "one", Larger) as target, InProcess(tmp_path / "other", Reverse) as reference:
        other = VhostUserSubject(reference, REVERSE, timeout=5)
        player = VhostUserSubject(target, REVERSE, timeout=5, reference=other)
        player.prepare()
        assert player.play([SERVE]) is None
        found = player.play([SERVE, Step.of("read_config", size=3)])
        player.close()
    assert found is not None
    assert found.oracle.id == "reference"


@for_each(["head", "next", "loop", "outside", "over the end", "order", "table", "far"])
def test_what_no_driver_may_put_into_a_ring_costs_ours_that_ring_alone(how: str, tmp_path: Path) -> None:
    assert played(tmp_path, Reverse, REVERSE, [Step.of("break_ring", how=how, kind=0), SERVE]) is None


def test_nothing_is_found_in_a_back_end_that_does_nothing_wrong(tmp_path: Path, faulty: Faulty) -> None:
    with InProcess(tmp_path, Reverse) as target:
        player = VhostUserSubject(target, REVERSE, timeout=5)
        wrong = player.prepare()
        drawn = sequences([kind for kind in player.kinds() if kind.name != "check"], 7, 40)
        campaign = Campaign(player, drawn, seed=7, bounds=Bounds(sequences=8), listener=Quiet(), folder=None)
        assert campaign.run(wrong).finds == {}
        player.close()


def test_a_find_is_played_again_by_conformance(tmp_path: Path) -> None:
    folder = tmp_path / "finds"
    find = Find("vhost-user", "rings", "a rule", "rings: answer", "another answer", (SERVE,))
    find.write(folder)
    run = CliRunner()
    with InProcess(tmp_path, Reverse) as target:
        target.connect().close()
        arguments = ["conformance", target._address, "--corpus", str(folder)]
        assert run.invoke(vhost_user_cli, arguments).exit_code == 0
