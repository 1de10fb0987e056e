"""The catalogue of checks for back-ends: ours pass it, and a back-end with one fault fails the check for that fault."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.in_process_target import InProcessTarget
from tests.userfaults import NOT_OFFERED
from tests.vhost.reverse import REVERSE, Reverse
from userdev.conformance import Check, CheckResult, Level, Outcome
from userdev.errors import UserError
from userdev_servers.blk import Blk
from userdev_servers.net import Net
from userdev_servers.rng import Rng
from vfio_user.cli.vhost_conformance import command as conformance
from vhost_user.backend import Server
from vhost_user.device import Chain, Taken, VhostDevice, queue
from vhost_user.frontend import Queue
from vhost_user.frontend.conformance import CATALOGUE, DEVICES, Bench, DeviceKind, run

KINDS = {**DEVICES, "reverse": REVERSE}


class InProcess(InProcessTarget):
    """A back-end of ours in this process, with a device that `make` makes."""

    def __init__(self, folder: Path, make: Callable[[], VhostDevice], *, pid: int | None = None) -> None:
        self.pid = pid
        self._listens_at = f"unix:{folder}/s"
        self._make = make

    def serve(self, served: ExitStack) -> str:
        device = self._make()
        served.callback(device.close)
        served.enter_context(Server(device, self._listens_at))
        return self._listens_at


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second front-end is refused soon, and rings are looked at for a moment only: these back-ends are near."""
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("vhost_user.frontend.conformance.bench.QUIET_SECONDS", 0.02)


def results(
    folder: Path, device: Callable[[], VhostDevice], kind: DeviceKind | None, *checks: Check[Bench], timeout: float = 5
) -> list[CheckResult[Bench]]:
    with InProcess(folder, device, pid=os.getpid()) as target:
        return list(run(checks or CATALOGUE, target, kind, timeout=timeout))


def of(outcome: Outcome, found: list[CheckResult[Bench]]) -> dict[str, str]:
    return {result.check.id: result.detail for result in found if result.outcome is outcome}


def test_ids_are_unique_and_every_check_has_a_title_and_a_rule() -> None:
    ids = [check.id for check in CATALOGUE]
    assert len(ids) == len(set(ids))
    assert all(check.title and check.rule for check in CATALOGUE)
    assert {check.level for check in CATALOGUE} == set(Level)


NO_REQUESTS_BETWEEN_QUEUES = {"rings/independent"}
NO_CONFIG = {check.id for check in CATALOGUE if check.group == "config"}
TAKES_AND_DROPS = {"rings/disabled", "rings/disabled-at-first", "rings/kick-while-disabled"}
NOTHING_WRITTEN = {"log/data", "iommu/read-only"}


@pytest.mark.parametrize(
    ("name", "leaves_out"),
    [
        ("reverse", set[str]()),
        ("rng", NO_CONFIG | NO_REQUESTS_BETWEEN_QUEUES),
        ("blk", set[str]()),
        ("net", NO_REQUESTS_BETWEEN_QUEUES | TAKES_AND_DROPS | NOTHING_WRITTEN),
    ],
)
def test_our_devices_pass_it_whole(tmp_path: Path, name: str, leaves_out: set[str]) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    devices: dict[str, Callable[[], VhostDevice]] = {
        "reverse": Reverse,
        "rng": Rng,
        "blk": lambda: Blk(image=str(image), queues=2),
        "net": Net,
    }
    found = results(tmp_path, devices[name], KINDS[name])
    assert of(Outcome.FAIL, found) == of(Outcome.BROKEN, found) == {}
    assert of(Outcome.DIFFERS, found) == {}
    assert set(of(Outcome.SKIP, found)) == leaves_out | NOT_OFFERED


class Odometer(Reverse):
    """Its configuration changes with each request that it serves, and it says so."""

    @queue()
    def reverse(self, chain: Chain) -> Taken:
        self.capacity += 1
        self.config_changed()
        return super().reverse(chain)


def test_a_device_whose_configuration_changes_while_it_serves_passes_it_whole(tmp_path: Path) -> None:
    found = results(tmp_path, Odometer, REVERSE)
    assert of(Outcome.FAIL, found) == of(Outcome.BROKEN, found) == {}
    assert of(Outcome.DIFFERS, found) == {}


@for_each(
    [
        "rings/round-and-round",
        "rings/drained",
        *(f"kinds/{kind}" for kind in ("indirect", "events", "in-order", "packed")),
    ]
)
def test_checks_that_go_through_a_ring_have_it_full_too(
    id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A back-end that goes wrong where no descriptor is left has to fail."""
    left: set[int] = set()

    def watched(queue: Queue) -> None:
        left.add(queue.driver.free)  # before the device is told: afterwards it may be quicker than we
        kick(queue)

    kick = Queue.kick
    monkeypatch.setattr(Queue, "kick", watched)
    [check] = [check for check in CATALOGUE if check.id == id]
    assert results(tmp_path, Reverse, REVERSE, check)[0].outcome is Outcome.PASS
    assert 0 in left


@pytest.mark.parametrize(("size", "outcome"), [(1, Outcome.SKIP), (2, Outcome.PASS)])
def test_a_buffer_lies_on_both_sides_of_a_border_where_it_has_two_bytes(
    tmp_path: Path, size: int, outcome: Outcome
) -> None:
    kind = replace(DEVICES["rng"], request=(size,))
    [check] = [check for check in CATALOGUE if check.id == "memory/over-a-border"]
    assert results(tmp_path, Rng, kind, check)[0].outcome is outcome


def test_without_knowing_the_device_what_needs_no_request_is_checked(tmp_path: Path) -> None:
    found = results(tmp_path, Reverse, None)
    assert of(Outcome.FAIL, found) == of(Outcome.BROKEN, found) == of(Outcome.DIFFERS, found) == {}
    skipped = of(Outcome.SKIP, found)
    assert all("--device" in reason for id, reason in skipped.items() if id not in NOT_OFFERED)
    assert {"messages/acknowledged", "config/same", "status/kept", "log/answered", "session/next"}.isdisjoint(skipped)


def test_a_program_is_checked_and_what_became_of_it_is_written_down(tmp_path: Path) -> None:
    server = f"{sys.executable} -P -m vhost_user serve rng --socket-path {{socket}}"
    junit, found = tmp_path / "junit.xml", tmp_path / "found.json"
    arguments = ["--server-command", server, "--device", "rng", "--junit", str(junit), "--json", str(found)]
    result = CliRunner().invoke(conformance, [*arguments, "--only", "session/next", "--only", "session/nothing-left"])
    assert result.exception is None, result.output
    checks = json.loads(found.read_text())["checks"]
    assert {check["outcome"] for check in checks} == {"pass"}
    assert {check["id"] for check in checks} == {"session/next", "session/nothing-left"}
    assert "vhost-user" in junit.read_text()


def test_levels_leave_out_what_is_open() -> None:
    listed = {level: CliRunner().invoke(conformance, ["--list", "--level", level]).output for level in ("must", "open")}
    assert "OPEN" not in listed["must"]
    assert "OPEN" in listed["open"]


@pytest.mark.parametrize("arguments", [[], ["a", "--server-command", "b {socket}"], ["--only", "nothing", "a"]])
def test_what_cannot_be_run_is_said_in_words(arguments: list[str]) -> None:
    assert isinstance(CliRunner().invoke(conformance, arguments).exception, UserError)


def test_what_a_back_end_lets_nobody_see_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As passt 2026-07-28 is to an ordinary user: the kernel shows its descriptors to root alone."""

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    check = next(check for check in CATALOGUE if check.id == "session/nothing-left")
    (result,) = results(tmp_path, Reverse, REVERSE, check)
    assert (result.outcome, "root" in result.detail) == (Outcome.SKIP, True)
