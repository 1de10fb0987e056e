"""What a soak keeps of itself: it goes on where it was, and notices what grows."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from userdev.errors import UserError
from vfio_user.harness.lab import Lab, belongs_to
from vfio_user.harness.migration.journal import Journal
from vfio_user.harness.migration.soak import Soak, trends

EDU = Soak().as_dict()
NVME = Soak(device="nvme").as_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "soak.jsonl"


def test_an_interrupted_soak_goes_on_with_the_hops_it_had(path: Path) -> None:
    first = Journal(path, EDU)
    first.hop({"hop": 1, "downtime": 0.1})
    first.hop({"hop": 2, "downtime": 0.2})
    second = Journal(path, EDU)
    assert second.resumed
    assert second.hops == [{"hop": 1, "downtime": 0.1}, {"hop": 2, "downtime": 0.2}]
    second.hop({"hop": 3, "downtime": 0.3})
    assert [hop["hop"] for hop in Journal(path, EDU).hops] == [1, 2, 3]


def test_a_soak_that_has_ended_is_not_gone_on_with(path: Path) -> None:
    first = Journal(path, EDU)
    first.hop({"hop": 1})
    first.write({"kind": "end", "verdict": "nothing was lost"})
    assert Journal(path, EDU).hops == []


def test_a_soak_of_something_else_is_not_gone_on_with(path: Path) -> None:
    Journal(path, EDU).hop({"hop": 1})
    other = Journal(path, NVME)
    assert not other.resumed
    assert Journal(path, EDU).hops == []


def test_nothing_of_earlier_soaks_is_thrown_away(path: Path) -> None:
    Journal(path, EDU).hop({"hop": 1})
    Journal(path, NVME).hop({"hop": 1})
    assert len(path.read_text().splitlines()) == 4


def test_a_line_that_was_cut_by_a_crash_is_left_out(path: Path) -> None:
    Journal(path, EDU).hop({"hop": 1})
    with path.open("a") as file:
        file.write('{"kind": "hop", "hop": 2, "down')
    again = Journal(path, EDU)
    assert again.hops == [{"hop": 1}]
    again.hop({"hop": 2})
    assert Journal(path, EDU).hops == [{"hop": 1}, {"hop": 2}]


def test_of_a_hop_the_file_has_all_and_the_memory_what_is_kept(path: Path) -> None:
    journal = Journal(path, EDU, ["downtime"])
    journal.hop({"hop": 1, "downtime": 0.1, "reason": "x" * 1000})
    assert journal.hops == [{"downtime": 0.1}]
    assert journal.last["reason"] == "x" * 1000
    assert '"hop": 1' in path.read_text()
    assert Journal(path, EDU, ["downtime"]).hops == [{"downtime": 0.1}]


@pytest.mark.parametrize("name", ["guest", "guest-dev0-edu", "guest.qmp.log", "guest-dev0-edu.server.log"])
def test_processes_and_logs_belong_to_a_machine(name: str) -> None:
    assert belongs_to("guest", name)
    assert not belongs_to("guest.1", name)


@pytest.mark.parametrize("name", ["guest.1", "guest.1-guest-dev0", "guest.1.qmp.log", "guests", "other.qmp.log"])
def test_those_of_its_next_machine_do_not(name: str) -> None:
    assert not belongs_to("guest", name)
    assert not belongs_to("guest.10", name)


def test_what_has_ended_and_is_forgotten_leaves_nothing_but_its_command(tmp_path: Path) -> None:
    with Lab(folder=tmp_path) as lab:
        first, second = (lab.serve("edu", name) for name in ("guest-dev0-edu", "guest.1-guest-dev0"))
        lab.forget("guest")
        assert first.log.exists(), "it runs"
        lab.end(None, [first])
        lab.forget("guest")
        assert not first.log.exists()
        assert second.log.exists()
        gone = weakref.ref(first.child)
        del first
        gc.collect()
        assert gone() is None
    assert all(name in (tmp_path / "commands.txt").read_text() for name in ("guest-dev0-edu", "guest.1-guest-dev0"))


def test_a_journal_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Journal(tmp_path, EDU)


def hops(count: int, **growth: float) -> list[dict[str, Any]]:
    steady = {
        "harness_fds": 22,
        "harness_rss": 70_000,
        "qemu_fds": 92,
        "qemu_rss": 600_000,
        "server_fds": 9,
        "server_rss": 26_000,
        "downtime": 0.06,
    }
    return [{name: value + growth.get(name, 0) * hop for name, value in steady.items()} for hop in range(count)]


def test_hops_that_are_all_alike_have_no_trend() -> None:
    assert trends(hops(1000)) == []


@pytest.mark.parametrize(("name", "each_hop"), [("harness_fds", 1), ("harness_rss", 2000), ("downtime", 0.01)])
def test_what_grows_with_every_hop_is_named(name: str, each_hop: float) -> None:
    [found] = trends(hops(100, **{name: each_hop}))
    assert found.startswith(name)


def test_a_night_tells_what_a_hop_leaves_behind_in_the_harness() -> None:
    """One that forgot nothing grew by 38 KiB a hop, one that forgets grows by 4 KiB at most."""
    [found] = trends(hops(1000, harness_rss=38))
    assert found.startswith("harness_rss")
    assert trends(hops(1000, harness_rss=4)) == []


def test_one_slow_hop_is_no_trend() -> None:
    soaked = hops(40)
    soaked[-1]["downtime"] = 5.0
    assert trends(soaked) == []


def test_hops_without_a_downtime_are_left_out() -> None:
    soaked = hops(40)
    for hop in soaked[::2]:
        hop["downtime"] = None
    assert trends(soaked) == []


def test_a_few_hops_tell_no_trend() -> None:
    assert trends(hops(10, harness_fds=5)) == []
