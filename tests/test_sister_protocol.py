"""A server of the other protocol, which speaks vhost-user and not vfio-user or the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from userdev.conformance import CheckResult, Outcome
from userdev.conformance.targets import RunningServer
from userdev_servers.edu import Edu
from userdev_servers.rng import Rng
from vfio_user.client import conformance
from vfio_user.server import Server
from vfio_user.wire import CURRENT
from vhost_user.backend import Server as BackEndServer
from vhost_user.frontend import conformance as of_back_ends

SECONDS = 0.2


@pytest.fixture
def vfio_user(tmp_path: Path) -> Iterator[str]:
    with Server(Edu(), f"unix:{tmp_path / 's'}"):
        yield str(tmp_path / "s")


@pytest.fixture
def vhost_user(tmp_path: Path) -> Iterator[str]:
    with closing(Rng()) as device, BackEndServer(device, f"unix:{tmp_path / 's'}"):
        yield str(tmp_path / "s")


def one_failure_of_all(results: list[CheckResult[Any]]) -> bool:
    return {result.outcome for result in results[1:]} == {Outcome.NOT_JUDGED} and results[0].outcome is Outcome.FAIL


def test_no_rule_of_vfio_user_is_tried_with_a_vhost_user_back_end(vhost_user: str) -> None:
    target = RunningServer(vhost_user, conformance.greeting(CURRENT), timeout=SECONDS)
    assert one_failure_of_all(list(conformance.run(conformance.CATALOGUE, target, CURRENT, timeout=SECONDS)))


def test_no_rule_of_vhost_user_is_tried_with_a_vfio_user_server(vfio_user: str) -> None:
    target = RunningServer(vfio_user, of_back_ends.greet, timeout=SECONDS)
    assert one_failure_of_all(list(of_back_ends.run(of_back_ends.CATALOGUE, target, timeout=SECONDS)))
