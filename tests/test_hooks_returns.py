"""What a hook of an author's returns is looked at: a wrong value is told with the hook and its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.cases import for_each_row
from userdev.declare.returned import WrongReturn
from userdev.errors import ProtocolError
from vfio_user import PciDevice, PciIds, Placed, Quiesce, VendorSpecific, state
from vfio_user.device import function_of
from vfio_user.testing import attached
from vhost_user.device import Chain, Queues, VhostDevice, model_of, queue


class Careless(PciDevice):
    """Returns what it is told to."""

    ids = PciIds(vendor=1, device=2)
    capabilities = (Placed(VendorSpecific(b"abcd"), callback=True),)
    count: int = state(0)
    returned: Any = None

    def on_quiesce(self) -> Any:
        return self.returned

    def storages(self) -> Any:
        return self.returned

    def identity(self) -> Any:
        return self.returned

    def save_extra(self) -> Any:
        return self.returned

    def capability_read(self, capability: object, offset: int, count: int) -> Any:
        return self.returned


def config_of(device: Careless) -> bytes:
    return function_of(device).region_read(7, 0x40, 8)


def storages_of(device: Careless) -> object:
    return function_of(device).storages()


def identity_of(device: Careless) -> object:
    return function_of(device).identity()


WRONG: list[tuple[str, Callable[[Careless], object], object]] = [
    *(("storages", storages_of, wrong) for wrong in [None, 5, {0: 1}]),
    *(("identity", identity_of, wrong) for wrong in [None, 5, [1]]),
    *(("capability_read", config_of, wrong) for wrong in [None, 5, "text"]),
]


@for_each_row(WRONG)
def test_a_wrong_value_is_told_with_the_hook_that_has_returned_it(
    hook: str, ask: Callable[[Careless], object], wrong: object
) -> None:
    device = Careless()
    device.returned = wrong
    place = rf"Careless\.{hook} \({re.escape(__file__)}:\d+\) has returned {re.escape(repr(wrong))}"
    with pytest.raises(WrongReturn, match=place):
        ask(device)
    device.returned = {}
    device.close()


@for_each_row([(False,), (True,)])
def test_a_device_that_answers_whether_it_can_have_a_state_and_refuses_none_is_told_how(wrong: bool) -> None:
    """As its `state(check=...)` does: it is asked by another name, and refuses by what it raises."""

    class Checking(PciDevice):
        ids = PciIds(vendor=1, device=2)
        count: int = state(0)

        def on_check(self, values: Any) -> Any:
            return wrong

    class Dice(VhostDevice):
        virtio_id, queues = 42, Queues(1)

        @queue(0)
        def nothing(self, chain: Chain) -> int:
            return 0

        def on_check(self, values: Any) -> Any:
            return wrong

    device, other = function_of(Checking()), model_of(Dice())
    checks: list[Callable[[], None]] = [
        lambda: device.check_state(device.save_state()),
        lambda: other.load(other.save()),
    ]
    for check in checks:
        with pytest.raises((WrongReturn, ProtocolError), match=r"on_check .* has returned"):
            check()
    device.close()


@for_each_row([(True,), (False,), (5,), ("yes",), (Quiesce,)])
def test_a_device_that_says_wrongly_how_it_stands_still_is_let_go_by_its_client_all_the_same(
    wrong: object, caplog: pytest.LogCaptureFixture
) -> None:
    device = Careless()
    with attached(device):
        device.returned = wrong
        hold = function_of(device).hold_still()
        with pytest.raises(WrongReturn, match=r"Careless\.on_quiesce"):
            hold.check()
        hold.release()
    assert "Careless.on_quiesce" in caplog.text
    device.returned = None
    with attached(device):
        hold = function_of(device).hold_still()
        hold.check()
        hold.release()
