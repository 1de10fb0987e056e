"""Clients come and go, guests reset, devices take their time to stand still."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from tests.cases import for_each
from tests.device_kit import CONFIG, MSIX, open_fds
from vfio_user import (
    MsiX,
    PciDevice,
    PciExpress,
    PciIds,
    PowerManagement,
    ProtocolError,
    Quiesce,
    ResetKind,
    memory,
    state,
    stored_register,
)
from vfio_user.device import Capability, DmaRegion, function_of
from vfio_user.device.standstill import Standstill
from vfio_user.testing import RecordingLink, Vectors, find_capability, memory_file, read_register, write_register

INITIATE_FLR = 1 << 15


class Sleeper(PciDevice):
    ids = PciIds(vendor=1, device=2)
    interrupts = MsiX(2)
    capabilities: Sequence[Capability] = (PowerManagement(), PciExpress(flr=True))
    scratch: int = stored_register(bar=0, offset=0, width=4)

    def __init__(self, quiet: Quiesce | None = None) -> None:
        super().__init__()
        self.quiet = quiet
        self.events: list[str] = []

    def on_reset(self, kind: ResetKind) -> None:
        self.events.append(kind.value)

    def on_quiesce(self) -> Quiesce | None:
        self.events.append("quiesce")
        return self.quiet

    def on_resume(self) -> None:
        self.events.append("resume")

    def on_dma_map(self, region: DmaRegion) -> None:
        self.events.append(f"map {region.iova:#x}")

    def on_dma_unmap(self, region: DmaRegion) -> None:
        self.events.append(f"unmap {region.iova:#x}")


def initiate_flr(device: PciDevice) -> None:
    control = find_capability(device, 0x10) + 8
    write_register(device, CONFIG, control, 2, read_register(device, CONFIG, control, 2) | INITIATE_FLR)


def power(device: PciDevice, state: int) -> None:
    write_register(device, CONFIG, find_capability(device, 0x01) + 4, 2, state)


def test_a_function_level_reset_clears_state_and_configuration() -> None:
    device = Sleeper()
    device.scratch = 5
    write_register(device, CONFIG, 4, 2, 6)
    initiate_flr(device)
    assert device.events == ["quiesce", "flr", "resume"]
    assert (device.scratch, read_register(device, CONFIG, 4, 2)) == (0, 0)
    assert read_register(device, CONFIG, find_capability(device, 0x10) + 8, 2) & INITIATE_FLR == 0


def test_a_reset_that_is_written_with_other_bits_leaves_nothing_of_them() -> None:
    """As guests do: Linux writes what it has read, with the bit for the reset in it."""

    def flr(device: PciDevice, width: int) -> None:
        write_register(device, CONFIG, find_capability(device, 0x10) + 8, width, (1 << 8 * width) - 1)

    def wake(device: PciDevice, width: int) -> None:
        at = find_capability(device, 0x01) + 4
        write_register(device, CONFIG, at, width, (1 << 8 * width) - 1)
        write_register(device, CONFIG, at, width, (1 << 8 * width) - 4)

    asked: dict[str, tuple[Callable[[PciDevice, int], None], tuple[int, ...]]] = {
        "flr": (flr, (2, 4)),
        "d3hot-to-d0": (wake, (1, 2, 4)),
    }
    for kind, (ask, widths) in asked.items():
        for width, waits in itertools.product(widths, (False, True)):
            quiet = Quiesce() if waits else None
            device = Sleeper(quiet)
            link = RecordingLink()
            function_of(device).attach(link)
            function_of(device).region_write(CONFIG, 4, b"\xff" * (0x34 - 4))
            device.scratch = 5
            ask(device, width)
            if quiet is not None:
                quiet.done()
                link.run_deferred()
            assert device.events.count(kind) == 1, (kind, width, waits)
            fresh = function_of(Sleeper()).region_read(CONFIG, 0, 256)
            assert function_of(device).region_read(CONFIG, 0, 256) == fresh, (kind, width, waits)
            assert device.digest() == Sleeper().digest(), (kind, width, waits)


def test_a_reset_keeps_the_clients_memory_and_eventfds() -> None:
    device = Sleeper()
    wires = Vectors(device, MSIX, count=2)
    device.dma.map(0, 4096, 3, memory_file(4096, b"kept"))
    initiate_flr(device)
    device.interrupts.trigger(1)
    assert device.dma.read(0, 4) == b"kept"
    assert wires.fired() == [0, 1]
    wires.close()
    function_of(device).detach()


def test_a_function_that_cannot_be_reset_ignores_the_request() -> None:
    class Lasting(Sleeper):
        capabilities = (PciExpress(flr=False),)

    device = Lasting()
    device.scratch = 5
    initiate_flr(device)
    assert (device.events, device.scratch) == ([], 5)


def test_a_reset_that_must_wait_comes_when_the_device_is_quiet() -> None:
    quiet = Quiesce()
    device = Sleeper(quiet)
    client = RecordingLink()
    function_of(device).attach(client)
    initiate_flr(device)
    assert device.events == ["quiesce"]
    quiet.done()
    client.run_deferred()
    assert device.events == ["quiesce", "flr", "resume"]


def test_waking_from_d3hot_resets_unless_no_soft_reset() -> None:
    class Lasting(Sleeper):
        capabilities = (PowerManagement(no_soft_reset=True),)

    for device, expected in ((Sleeper(), 0), (Lasting(), 5)):
        device.scratch = 5
        power(device, 3)
        assert device.events == []
        power(device, 0)
        assert device.scratch == expected
        assert ("d3hot-to-d0" in device.events) is (expected == 0)


@for_each(range(4), range(4))
def test_only_the_way_from_d3hot_to_d0_is_a_reset(to: int, start: int) -> None:
    """PCI PM 1.2, 5.4: from D1 and D2 a function goes on as it was."""

    class Sleepy(Sleeper):
        capabilities = (PowerManagement(d1=True, d2=True),)

    device = Sleepy()
    device.scratch = 5
    power(device, start)
    power(device, to)
    reset = (start, to) == (3, 0)
    assert read_register(device, CONFIG, find_capability(device, 0x01) + 4, 2) & 3 == to
    assert (device.scratch, "d3hot-to-d0" in device.events) == ((0, True) if reset else (5, False))


def test_a_power_state_that_is_not_supported_is_not_entered() -> None:
    device = Sleeper()
    power(device, 1)
    assert read_register(device, CONFIG, find_capability(device, 0x01) + 4, 2) & 3 == 0
    power(device, 3)
    power(device, 2)
    assert read_register(device, CONFIG, find_capability(device, 0x01) + 4, 2) & 3 == 3


@for_each([False, True], [False, True])
def test_the_states_that_a_function_has_are_those_that_it_says_and_enters(d1: bool, d2: bool) -> None:
    class Sleepy(PciDevice):
        ids = PciIds(vendor=1, device=2)
        capabilities = (PowerManagement(d1=d1, d2=d2),)

    device = Sleepy()
    place = find_capability(device, 0x01)
    assert read_register(device, CONFIG, place + 2, 2) >> 9 & 3 == d1 | d2 << 1
    entered = []
    for power in (1, 2, 3):
        write_register(device, CONFIG, place + 4, 2, 0)
        write_register(device, CONFIG, place + 4, 2, power)
        entered.append(read_register(device, CONFIG, place + 4, 2) & 3)
    assert entered == [d1 * 1, d2 * 2, 3]
    device.close()


def test_who_waits_for_a_device_is_told_in_the_order_of_coming() -> None:
    """A reset that a guest was promised, say, before the migration that was asked for later."""
    quiesce, told = Quiesce(), list[str]()
    assert (quiesce.finished, quiesce.errno) == (False, 0)
    standstill = Standstill("device", lambda: quiesce, lambda: None, lambda work: work())
    for name in ("first", "second", "third"):
        standstill.hold().then(partial(told.append, name))
    assert told == []
    quiesce.done()
    assert told == ["first", "second", "third"]


def test_a_device_that_does_not_stand_still_yet_is_not_stopped_and_may_be_asked_again() -> None:
    """For whoever cannot wait: a session does, before."""
    quiet = Quiesce()
    device = Sleeper(quiet)
    client = RecordingLink()
    function = function_of(device)
    function.attach(client)
    with pytest.raises(ProtocolError) as refused:
        function.stop()
    assert refused.value.errno == errno.EBUSY
    may_run = [function.may_run]
    quiet.done()
    client.run_deferred()
    assert device.events == ["quiesce", "resume"], "nobody holds it any more"
    function.stop()
    may_run.append(function.may_run)
    function.start()
    assert may_run == [True, False]
    assert device.events == ["quiesce", "resume"] * 2


def test_a_client_that_goes_leaves_the_device_ready_for_the_next() -> None:
    before = open_fds()
    device = Sleeper()
    client = RecordingLink()
    function_of(device).attach(client)
    wires = Vectors(device, MSIX, count=2)
    device.dma.map(0, 4096, 3, memory_file(4096))
    device.dma.map(0x10000, 4096, 3)
    device.scratch = 5
    device.events.clear()
    function_of(device).detach()
    assert device.events == ["quiesce", "lost-connection", "unmap 0x10000", "unmap 0x0"]
    assert len(device.dma) == 0
    assert device.scratch == 5
    device.interrupts.trigger(0)
    assert wires.fired() == [0, 0]
    with pytest.raises(ProtocolError) as refusal:
        device.dma.read(0, 1)
    assert refusal.value.errno == errno.EFAULT
    wires.close()
    assert open_fds() == before
    function_of(device).attach(RecordingLink())
    assert device.events[4:] == ["resume"], "it goes on when there is somebody to go on for"
    device.dma.map(0, 4096, 3, memory_file(4096))
    function_of(device).detach()


def test_a_device_that_fails_when_its_client_goes_still_lets_everything_go() -> None:
    class Clumsy(Sleeper):
        def on_reset(self, kind: ResetKind) -> None:
            raise RuntimeError("reset")

        def on_dma_unmap(self, region: DmaRegion) -> None:
            raise RuntimeError("unmap")

    before = open_fds()
    device = Clumsy()
    function_of(device).attach(RecordingLink())
    wires = Vectors(device, MSIX, count=2)
    for page in range(3):
        device.dma.map(page * 4096, 4096, 3, memory_file(4096))
    with pytest.raises(RuntimeError):
        function_of(device).detach()
    wires.close()
    assert (len(device.dma), open_fds()) == (0, before)
    function_of(device).attach(RecordingLink())
    assert device.events[-1] == "resume"


def test_coalesced_interrupts_that_nobody_waits_for_do_not_stop_later_ones() -> None:
    device, client = Sleeper(), RecordingLink()
    function_of(device).attach(client)
    device.interrupts.coalesce(0)
    function_of(device).detach()
    function_of(device).attach(client := RecordingLink())
    wires = Vectors(device, MSIX)
    device.interrupts.coalesce(0)
    client.run_deferred()
    assert wires.fired() == [1]
    wires.close()
    function_of(device).detach()


def test_a_device_that_says_nowhere_who_it_is_is_told_so() -> None:
    class Nobody(PciDevice):
        pass

    with pytest.raises(ValueError, match="ids"):
        Nobody()


def test_quiescing_may_end_on_any_thread_before_or_after_it_is_waited_for() -> None:
    for finish_first in (True, False):
        quiet, told = Quiesce(), threading.Event()
        thread = threading.Thread(target=quiet.done)
        if finish_first:
            thread.start()
            thread.join(60)
        quiet.then(told.set)
        if not finish_first:
            assert not told.is_set()
            thread.start()
        assert told.wait(60)
        assert (quiet.finished, quiet.errno) == (True, 0)
        thread.join(60)


def test_a_device_that_cannot_stand_still_says_why_and_the_first_word_counts() -> None:
    quiet = Quiesce()
    quiet.fail(errno.EBUSY)
    quiet.done()
    assert quiet.errno == errno.EBUSY


def test_a_device_that_migration_has_stopped_goes_on_when_it_is_started() -> None:
    device = Sleeper()
    function_of(device).attach(RecordingLink())
    function_of(device).stop()
    function_of(device).hold_still().release()
    assert device.events == ["quiesce"]
    function_of(device).start()
    assert device.events == ["quiesce", "resume"]


class Noted(PciDevice):
    """Notes which hooks of its life are called, and fails in one of them."""

    ids = PciIds(vendor=1, device=2)
    low: int = state(0)
    high: int = state(0)

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.fails, self.notes, self.counted = fails, list[str](), 0

    def note(self, what: str) -> None:
        self.notes.append(what)
        if what == self.fails:
            raise OSError(errno.EIO, "a mistake of the author's")

    def on_attach(self) -> None:
        self.note("attach")
        self.defer(lambda: self.note("work"))

    def on_close(self) -> None:
        self.note("close")

    def on_save(self) -> None:
        self.high = self.counted

    def on_check(self, values: Mapping[str, Any]) -> None:
        if values["low"] > values["high"]:
            raise ProtocolError("the low is above the high", errno.EINVAL)


def test_a_device_hears_of_each_client_and_of_its_own_end() -> None:
    before = open_fds()
    device, client = Noted(), RecordingLink()
    for _ in range(2):
        function_of(device).attach(client)
        client.run_deferred()
        function_of(device).detach()
    device.close()
    assert device.notes == ["attach", "work", "attach", "work", "close"]
    assert open_fds() == before


def test_a_device_that_fails_at_its_end_gives_its_descriptors_back() -> None:
    before = open_fds()

    class Mapped(Noted):
        ram: memoryview = memory(0x1000, bar=2, mmap=True)

    with pytest.raises(OSError, match="a mistake of the author's"):
        Mapped("close").close()
    assert open_fds() == before


def test_what_is_saved_is_up_to_date_and_what_does_not_go_together_is_not_loaded() -> None:
    device, target = Noted(), Noted()
    device.counted = 5
    digest = device.digest()
    function_of(target).load_state(function_of(device).save_state())
    assert target.high == 5
    target.counted = 5
    assert target.digest() == digest
    device.low = 6
    with pytest.raises(ProtocolError, match="above the high") as refused:
        function_of(target).load_state(function_of(device).save_state())
    assert refused.value.errno == errno.EINVAL
    assert (target.low, target.high) == (0, 5)
