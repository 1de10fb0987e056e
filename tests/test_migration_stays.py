"""A device whose migration failed is what it was, wherever it failed: all that its guest can tell."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.device_kit import MASK, MSI, MSIX, NONE
from tests.device_whole import scribble, whole
from tests.everything_device import Everything
from tests.migration_device import get_state, read_all, read_data, set_state, write_data
from tests.session_kit import Prober
from userdev.errors import ProtocolError
from userdev_servers.edu import Edu
from userdev_servers.gpio import Gpio
from vfio_user import Msi, MsiX, PciDevice, PciIds
from vfio_user.device import function_of
from vfio_user.migration import Migration
from vfio_user.pci import MsiCapability
from vfio_user.testing import attached, find_capability, set_irqs, write_register
from vfio_user.wire.constants import MigrationState as S

MAKES = (Everything, Edu, Gpio)
WAYS = {
    "pre-copy alone": (S.PRE_COPY,),
    "to its end": (S.PRE_COPY, S.STOP_COPY, S.STOP),
    "without pre-copy": (S.STOP_COPY,),
    "stopped alone": (S.STOP,),
    "stopped, and saved": (S.STOP, S.STOP_COPY, S.STOP),
}
"""States from RUNNING on, behind which the source is let run again."""

HOOKS = ("stop", "start", "save_state", "check_savable", "memories", "identity")
"""Of what a migration asks of a device."""


@pytest.fixture(params=MAKES, ids=lambda make: make.__name__)
def used(request: pytest.FixtureRequest) -> Iterator[PciDevice]:
    """A device whose guest has done something with it."""
    device = request.param()
    with attached(device):
        scribble(device, 1)
        mask(device)
        yield device
    device.close()


def mask(device: PciDevice) -> None:
    """What a client masks, and what waits for it, is of the state too."""
    for info in device.interrupts.infos:
        if info.index in (MSI, MSIX) and info.count > 1:
            set_irqs(device, info.index, 1, 1, MASK, NONE)


def migration_of(device: PciDevice) -> Migration:
    found = function_of(device).migration
    assert found is not None
    return found


@contextmanager
def failing(device: PciDevice, hook: str, failure: Exception) -> Iterator[list[str]]:
    """Within the block the first call of that hook fails."""
    migratable: Any = migration_of(device).device
    real, failed = getattr(migratable, hook), list[str]()

    def fail(*arguments: Any, **named: Any) -> Any:
        if not failed:
            failed.append(hook)
            raise failure
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(migratable, hook, fail)
        yield failed


def go(migration: Migration, way: tuple[S, ...], *, reads: int) -> None:
    """Some of the way, and pieces of the state that is saved on it."""
    for state in way:
        set_state(migration, state)
        if state in (S.PRE_COPY, S.STOP_COPY):
            for _ in range(reads):
                read_data(migration, 1000)


def goes_back(migration: Migration) -> None:
    set_state(migration, S.RUNNING)
    assert get_state(migration) is S.RUNNING


@for_each(WAYS)
def test_a_source_that_stays_is_what_it_was(way: str, used: PciDevice) -> None:
    before, migration = whole(used), migration_of(used)
    for reads in (0, 1, 5):
        go(migration, WAYS[way], reads=reads)
        goes_back(migration)
        assert whole(used) == before


@for_each(HOOKS, [RuntimeError("a defect"), ProtocolError("no", errno.EBUSY)])
def test_a_source_that_fails_anywhere_is_what_it_was(hook: str, failure: Exception, used: PciDevice) -> None:
    before, migration = whole(used), migration_of(used)
    for way in WAYS.values():
        with failing(used, hook, failure) as failed:
            try:
                go(migration, way, reads=3)
                goes_back(migration)
            except (ProtocolError, RuntimeError):
                assert failed
        if get_state(migration) is not S.RUNNING:
            goes_back(migration)
        assert whole(used) == before
    go(migration, WAYS["to its end"], reads=3)
    goes_back(migration)
    assert whole(used) == before


def saved(device: PciDevice) -> bytes:
    migration = migration_of(device)
    set_state(migration, S.STOP_COPY)
    state = read_all(migration)
    goes_back(migration)
    return state


def cut(state: bytes) -> bytes:
    return state[: len(state) // 2]


def flipped(state: bytes) -> bytes:
    at = random.Random(3).randrange(64, len(state))
    return state[:at] + bytes([state[at] ^ 1]) + state[at + 1 :]


def of_another(state: bytes) -> bytes:
    other = Prober()
    with attached(other):
        return saved(other)


WRONG: Mapping[str, Callable[[bytes], bytes]] = {
    "nothing": lambda state: b"",
    "garbage": lambda state: b"garbage" * 100,
    "cut": cut,
    "flipped": flipped,
    "of another": of_another,
    "twice": lambda state: state + state,
}


@for_each(WRONG)
def test_a_destination_that_gets_a_wrong_state_is_what_it_was(wrong: str, used: PciDevice) -> None:
    """And takes the right one afterwards."""
    good = saved(used)
    other = type(used)()
    with attached(other):
        scribble(other, 2)
        before, migration = whole(other), migration_of(other)
        set_state(migration, S.RESUMING)
        with pytest.raises(ProtocolError):
            arrive(migration, WRONG[wrong](good))
        assert whole(other)["state"] == before["state"]
        if get_state(migration) is S.RESUMING:  # a piece was refused, and the rest of it is not waited for
            with pytest.raises(ProtocolError):
                goes_back(migration)
        assert get_state(migration) is S.ERROR
        assert whole(other)["state"] == before["state"]
        function_of(other).client_reset()
        migration.was_reset()
        set_state(migration, S.RESUMING)
        arrive(migration, good)
        assert whole(other) == whole(used)
    other.close()


def arrive(migration: Migration, state: bytes) -> None:
    write_data(migration, state, 700)
    set_state(migration, S.RUNNING)


@for_each(["check_state", "load_state", "digests", "start"])
def test_a_destination_that_fails_at_a_good_state_is_what_it_was_or_what_it_is_to_be(
    hook: str, used: PciDevice
) -> None:
    good = saved(used)
    other = type(used)()
    with attached(other):
        scribble(other, 2)
        before, migration = whole(other), migration_of(other)
        set_state(migration, S.RESUMING)
        with failing(other, hook, RuntimeError("a defect")) as failed, pytest.raises((ProtocolError, RuntimeError)):
            arrive(migration, good)
        assert failed
        assert whole(other) in (before, whole(used))
    other.close()


@for_each_row(
    [
        (S.RUNNING, S.RUNNING),
        (S.PRE_COPY, S.RUNNING),
        (S.STOP, S.STOP),
        (S.STOP_COPY, S.STOP),
        (S.RESUMING, S.STOP),
    ]
)
def test_a_client_that_goes_leaves_no_migration_under_way_and_the_next_finds_the_device_running(
    state: S, left: S
) -> None:
    device = Edu()
    migration = Migration(function_of(device))
    with attached(device):
        migration.attach()
        if state is S.RESUMING:
            migration.set_state(S.STOP)
        migration.set_state(state)
        migration.detach()
        assert migration.state is left
        for use in (migration.pending_state, lambda: migration.write_state(b"")):
            with pytest.raises(ProtocolError):
                use()
        migration.attach()
        assert migration.state is S.RUNNING
        assert function_of(device).may_run
    migration.close()
    device.close()


@for_each_row(
    [((), S.STOP, S.STOP), ((S.PRE_COPY,), S.STOP_COPY, S.STOP), ((S.PRE_COPY,), S.STOP_COPY, S.STOP_COPY)],
    ids=["stopping", "stopping in pre-copy", "saving once stopped"],
)
def test_a_device_that_refuses_a_state_as_it_stops_runs_on(before: tuple[S, ...], asked: S, refused: S) -> None:
    class Unwilling(Edu):
        def on_migration(self, state: S) -> None:
            if state is refused:
                raise ProtocolError("not now", errno.EBUSY)

    device = Unwilling()
    migration = Migration(function_of(device))
    with attached(device):
        migration.attach()
        for state in before:
            migration.set_state(state)
        with pytest.raises(ProtocolError) as caught:
            migration.set_state(asked)
        assert caught.value.errno == errno.EBUSY
        assert migration.state is (before[-1] if before else S.RUNNING)
        assert function_of(device).may_run
    migration.close()
    device.close()


@for_each([False, True])
def test_a_device_that_may_not_go_on_as_what_it_was_begins_anew_for_the_next_client(refuses: bool) -> None:
    class Unwilling(Edu):
        def on_migration(self, state: S) -> None:
            if refuses and state is S.RUNNING:
                raise ProtocolError("it runs elsewhere", errno.EBUSY)

    device = Unwilling()
    migration = Migration(function_of(device))
    with attached(device):
        migration.attach()
        device.inverted = 1
        migration.set_state(S.STOP)
        migration.detach()
        migration.attach()
        assert (device.inverted == 0) == refuses
        assert function_of(device).may_run
    migration.close()
    device.close()


def test_a_device_that_fails_to_interrupt_as_it_stops_runs_on() -> None:
    class Several(PciDevice):
        ids = PciIds(1, 2)
        interrupts = Msi(1) | MsiX(4)

    device = Several()
    function = function_of(device)
    migration = Migration(function)
    with attached(device):
        migration.attach()
        write_register(device, 7, find_capability(device, MsiCapability.id) + 2, 2, MsiCapability.ENABLE)
        device.interrupts.coalesce(3)  # which MSI-X would have
        with pytest.raises(ProtocolError):
            migration.set_state(S.STOP)
        assert migration.state is S.RUNNING
        assert function.may_run
        migration.set_state(S.STOP)
    migration.close()
    device.close()


@for_each([False, True])
def test_a_device_whose_client_goes_in_pre_copy_is_told_that_it_runs_on(refuses: bool) -> None:
    told: list[S] = []

    class Preparing(Edu):
        def on_migration(self, state: S) -> None:
            told.append(state)
            if refuses and state is S.RUNNING:
                raise ProtocolError("not now", errno.EBUSY)

    device = Preparing()
    migration = Migration(function_of(device))
    for _ in range(2):
        with attached(device):
            migration.attach()
            device.inverted = 1
            migration.set_state(S.PRE_COPY)
            migration.detach()
            assert migration.state is S.RUNNING
        assert device.inverted == 1, "it ran all along, and is no other now"
    assert told == 2 * [S.PRE_COPY, S.RUNNING]
    migration.close()
    device.close()


@for_each([S.PRE_COPY, S.STOP_COPY])
def test_a_device_that_nobody_could_load_is_not_saved_and_runs_on_whichever_way_it_was_asked(asked: S) -> None:
    device = Edu()
    migration = Migration(function_of(device))
    with attached(device):
        migration.attach()
        device.vector = -1
        with pytest.raises(ProtocolError) as caught:
            migration.set_state(asked)
        assert caught.value.errno == errno.EIO
        assert migration.state is S.RUNNING
        assert function_of(device).may_run
    migration.close()
    device.close()
