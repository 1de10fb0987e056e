"""What a device plans (`defer`, `call_soon`, `call_later`): done once, held while it is stopped, dropped by a reset."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable

import pytest

from tests.device_kit import MSIX
from vfio_user import MsiX, PciDevice, PciIds, Planned, ResetKind, register, state
from vfio_user.device import function_of
from vfio_user.testing import RecordingLink, Vectors
from vfio_user.testing import attached as client_of

Work = Callable[[], None]
Way = Callable[[PciDevice, Work], object]

WAYS: dict[str, Way] = {
    "defer": lambda device, work: device.defer(work),
    "call_soon": lambda device, work: device.call_soon(work),
    "call_later": lambda device, work: device.call_later(0.5, work),
}


class Timer(PciDevice):
    ids = PciIds(vendor=1, device=2)
    interrupts = MsiX(2)
    rung: int = state(0)

    @register(bar=0, offset=0, width=4)
    def ring(self, value: int) -> None:
        self.rung = value + 1


class Attached:
    """A device with a client, the time of which comes when a test says so."""

    def __init__(self) -> None:
        self.device, self.link, self.done = Timer(), RecordingLink(), list[str]()
        function_of(self.device).attach(self.link)

    def work(self) -> None:
        self.done.append("done")

    def come_due(self) -> None:
        """Whatever is planned."""
        planned, self.link.planned = self.link.planned, []
        for _, work in planned:
            work()
        self.link.run_deferred()


@pytest.fixture
def attached() -> Attached:
    return Attached()


@pytest.fixture(params=WAYS)
def plan(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def test_what_is_planned_is_done_once(attached: Attached, plan: Way) -> None:
    plan(attached.device, attached.work)
    assert attached.done == []
    attached.come_due()
    attached.come_due()
    assert attached.done == ["done"]


@pytest.mark.parametrize("stopped_first", [True, False])
def test_what_comes_due_while_migration_has_the_device_stopped_waits_until_it_runs(
    attached: Attached, plan: Way, stopped_first: bool
) -> None:
    steps: list[Callable[[], object]] = [
        function_of(attached.device).stop,
        lambda: plan(attached.device, attached.work),
    ]
    for step in steps if stopped_first else steps[::-1]:
        step()
    attached.come_due()
    function_of(attached.device).hold_still().release()  # as for a DMA_MAP
    assert attached.done == []
    function_of(attached.device).start()
    attached.come_due()
    assert attached.done == ["done"]


@pytest.mark.parametrize("kind", [kind for kind in ResetKind if kind is not ResetKind.LOST_CONNECTION])
@pytest.mark.parametrize("held", [True, False])
def test_a_reset_drops_what_it_finds(attached: Attached, plan: Way, kind: ResetKind, held: bool) -> None:
    if held:
        function_of(attached.device).stop()
    plan(attached.device, attached.work)
    if held:
        attached.come_due()
    function_of(attached.device).reset(kind)
    function_of(attached.device).start()
    attached.come_due()
    assert attached.done == []
    plan(attached.device, attached.work)
    attached.come_due()
    assert attached.done == ["done"]


def test_a_state_that_is_loaded_replaces_what_was_planned_before(attached: Attached, plan: Way) -> None:
    function_of(attached.device).stop()
    plan(attached.device, attached.work)
    attached.come_due()
    function_of(attached.device).load_state(function_of(Timer()).save_state())
    function_of(attached.device).start()
    attached.come_due()
    assert attached.done == []


def test_what_is_planned_in_on_load_is_done_when_the_device_runs(plan: Way) -> None:
    class Goes(Timer):
        def on_load(self) -> None:
            plan(self, lambda: done.append("done"))

    done: list[str] = []
    attached = Attached()
    attached.device = device = Goes()
    function_of(device).attach(attached.link)
    function_of(device).stop()
    function_of(device).load_state(function_of(Goes()).save_state())
    attached.come_due()
    assert done == []
    function_of(device).start()
    attached.come_due()
    assert done == ["done"]


def cancel_elsewhere(planned: Planned) -> None:
    thread = threading.Thread(target=planned.cancel)
    thread.start()
    thread.join(10)


@pytest.mark.parametrize("held", [True, False])
def test_what_is_cancelled_is_not_done(attached: Attached, held: bool) -> None:
    planned = attached.device.call_later(0.5, attached.work)
    if held:
        function_of(attached.device).stop()
        attached.come_due()
    cancel_elsewhere(planned)
    planned.cancel()
    assert attached.link.planned == []
    function_of(attached.device).start()
    attached.come_due()
    assert attached.done == []


def test_to_cancel_what_was_done_changes_nothing(attached: Attached) -> None:
    planned = attached.device.call_later(0.5, attached.work)
    attached.come_due()
    planned.cancel()
    assert attached.done == ["done"]


def test_without_a_client_nothing_is_done_later_and_all_else_at_once() -> None:
    device, done = Timer(), list[int]()
    device.defer(lambda: done.append(1))
    device.call_soon(lambda: done.append(2))
    device.call_later(0, lambda: done.append(3)).cancel()
    assert done == [1, 2]


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -math.inf])
def test_a_time_that_never_comes_is_refused(attached: Attached, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        attached.device.call_later(seconds, attached.work)


def test_a_register_that_an_eventfd_stands_for_is_written_when_the_device_runs(attached: Attached) -> None:
    device = attached.device
    fd = device.add_ioeventfd(0, 0, 4, datamatch=7)
    function_of(device).stop()
    os.eventfd_write(fd, 1)
    attached.link.watched[fd]()
    attached.link.watched[fd]()
    assert device.rung == 0
    function_of(device).start()
    attached.come_due()
    assert device.rung == 8
    function_of(device).detach()
    device.close()


def test_coalesced_interrupts_come_before_the_device_is_stopped(attached: Attached) -> None:
    wires = Vectors(attached.device, MSIX)
    attached.device.interrupts.coalesce(0)
    function_of(attached.device).stop()
    assert wires.fired() == [1]
    attached.come_due()
    assert wires.fired() == [0]
    wires.close()
    function_of(attached.device).detach()


def test_a_device_that_fails_as_migration_starts_it_still_does_what_it_planned(plan: Way) -> None:
    class Fails(Timer):
        def on_resume(self) -> None:
            raise RuntimeError("a mistake of the author's")

    attached = Attached()
    attached.device = Fails()
    function = function_of(attached.device)
    function.attach(attached.link)
    plan(attached.device, attached.work)
    function.stop()
    attached.come_due()
    with pytest.raises(RuntimeError):
        function.start()
    attached.come_due()
    assert (attached.done, function.may_run) == (["done"], True)


def test_a_client_in_process_has_all_done_that_was_deferred_before_it_goes() -> None:
    device, done = Timer(), list[bool]()
    with client_of(device) as link:
        device.defer(lambda: done.append(function_of(device).link is link))
        assert not done
    assert done == [True]


def test_a_client_in_process_goes_though_what_was_deferred_fails() -> None:
    device, link = Timer(), RecordingLink()

    def fail() -> None:
        raise ZeroDivisionError

    def use() -> None:
        with client_of(device, link):
            device.dma.map(0, 0x1000, 3)
            device.defer(fail)

    with pytest.raises(ZeroDivisionError):
        use()
    assert function_of(device).link is not link
    assert not device.dma.regions
