"""Declared state: what reset clears, what is saved and loaded, what the digest covers."""

from __future__ import annotations

import errno
import itertools
from typing import Any

import pytest

from tests.cases import for_each
from tests.device_kit import CONFIG, MASK, MSIX, NONE, UNMASK
from userdev.declare.digest import digest_of
from vfio_user import IntX, MsiX, PciDevice, PciIds, ProtocolError, ResetKind, memory, state, stored_register
from vfio_user.device import function_of
from vfio_user.migration import Migration
from vfio_user.testing import RecordingLink, Vectors, find_capability, set_irqs, write_register
from vfio_user.wire.constants import MigrationState

MSIX_ENABLE, FUNCTION_MASK = 1 << 15, 1 << 14


class Keeper(PciDevice):
    ids = PciIds(vendor=1, device=2)
    interrupts = IntX() | MsiX(4)

    number: int = state(5)
    flag: bool = state(False)
    text: bytes = state(b"abc")
    items: list[int] = state([1, 2])
    table: dict[int, str] = state({1: "one"})
    fuse: int = state(0, keep=True)
    scratch: int = stored_register(bar=0, offset=0, width=4, default=9)
    buffer: memoryview = memory(64)
    flash: memoryview = memory(64, keep=True)

    def __init__(self) -> None:
        super().__init__()
        self.events: list[object] = []

    def on_reset(self, kind: ResetKind) -> None:
        self.events.append((kind, self.number))

    def on_load(self) -> None:
        self.events.append("loaded")


def disturbed() -> Keeper:
    device = Keeper()
    device.number, device.flag, device.text, device.fuse = 77, True, b"xyz", 3
    device.items.append(3)
    device.table[2] = "two"
    device.buffer[0] = 1
    device.flash[0] = 2
    write_register(device, 0, 0, 4, 0x1234)
    write_register(device, CONFIG, 4, 2, 0x0006)
    write_register(device, CONFIG, 0x10, 4, 0xFEB00000)
    write_register(device, 1, 0, 4, 0xFEE00000)
    device.interrupts.trigger()
    return device


def move(source: Keeper, target: Keeper) -> None:
    for ours, theirs in zip(function_of(target).memories(), function_of(source).memories(), strict=True):
        ours.view[:] = theirs.view
    function_of(target).load_state(function_of(source).save_state())


def test_declared_state_is_a_plain_attribute_of_the_instance() -> None:
    one, other = Keeper(), Keeper()
    one.items.append(9)
    one.number += 1
    assert (other.items, other.number) == ([1, 2], 5)
    assert vars(one)["number"] == 6


@for_each([ResetKind.DEVICE, ResetKind.FLR, ResetKind.D3HOT_TO_D0])
def test_reset_brings_back_everything_but_what_is_kept(kind: ResetKind) -> None:
    device, fresh = disturbed(), Keeper()
    function_of(device).reset(kind)
    assert device.events == [(kind, 5)]
    assert (device.fuse, device.flash[0]) == (3, 2)
    device.fuse, device.flash[0] = 0, 0
    assert device.digest() == fresh.digest()
    assert (device.number, device.items, device.table, device.scratch) == (5, [1, 2], {1: "one"}, 9)


def test_a_lost_connection_resets_nothing_and_is_told() -> None:
    device = disturbed()
    before = device.digest()
    function_of(device).reset(ResetKind.LOST_CONNECTION)
    assert device.digest() == before
    assert device.events == [(ResetKind.LOST_CONNECTION, 77)]


def test_a_moved_device_is_the_same_device() -> None:
    source, target = disturbed(), Keeper()
    assert source.digest() != target.digest()
    move(source, target)
    assert target.digest() == source.digest()
    assert function_of(target).save_state() == function_of(source).save_state()
    assert function_of(target).region_read(CONFIG, 0, 256) == function_of(source).region_read(CONFIG, 0, 256)
    assert function_of(target).region_read(1, 0, 4096) == function_of(source).region_read(1, 0, 4096)
    assert target.events == ["loaded"]
    assert (target.number, target.items, target.fuse, target.scratch) == (77, [1, 2, 3], 3, 0x1234)
    assert (target.flag, target.text, target.table) == (True, b"xyz", {1: "one", 2: "two"})


def waiting() -> Keeper:
    """With vectors that wait for the client, and for the guest."""
    device = Keeper()
    write_register(device, CONFIG, find_capability(device, 0x11) + 2, 2, MSIX_ENABLE | FUNCTION_MASK)
    write_register(device, 1, 0x10, 4, 0xFEE00000)
    set_irqs(device, MSIX, 1, 2, MASK, NONE)
    for vector in (0, 2, 3):
        device.interrupts.trigger(vector)
    return device


def test_a_state_makes_the_same_device_of_any_that_it_is_loaded_into() -> None:
    ways = {"fresh": Keeper, "disturbed": disturbed, "waiting": waiting}
    for (before, source_of), (after, target_of) in itertools.product(ways.items(), ways.items()):
        source, target = source_of(), target_of()
        move(source, target)
        assert function_of(target).save_state() == function_of(source).save_state(), (before, after)
        assert target.digest() == source.digest(), (before, after)
        assert target.interrupts.pending == source.interrupts.pending, (before, after)
        for region, size in ((CONFIG, 256), (0, 64), (1, 4096)):
            shown = [function_of(device).region_read(region, 0, size) for device in (source, target)]
            assert shown[0] == shown[1], (before, after, region)


def test_pending_and_masked_interrupts_move_along() -> None:
    """Vector 1 waits for the client to unmask it, vector 2 for the guest."""
    source, target = Keeper(), Keeper()
    control = find_capability(source, 0x11) + 2
    write_register(source, CONFIG, control, 2, MSIX_ENABLE | FUNCTION_MASK)
    set_irqs(source, MSIX, 1, 1, MASK, NONE)
    source.interrupts.trigger(1)
    source.interrupts.trigger(2)
    move(source, target)
    assert target.interrupts.pending == {1, 2}
    wires = Vectors(target, MSIX, count=4)
    write_register(target, CONFIG, control, 2, MSIX_ENABLE)
    assert wires.fired() == [0, 0, 1, 0]
    set_irqs(target, MSIX, 1, 1, UNMASK, NONE)
    assert wires.fired() == [0, 1, 0, 0]
    wires.close()
    function_of(target).detach()


def test_what_was_planned_before_a_state_came_is_not_done_after_it() -> None:
    """It is of the guest that was there before."""
    device, link = Keeper(), RecordingLink()
    function_of(device).attach(link)
    done: list[str] = []
    device.defer(lambda: done.append("before"))
    function_of(device).load_state(function_of(Keeper()).save_state())
    device.defer(lambda: done.append("after"))
    link.run_deferred()
    assert done == ["after"]
    function_of(device).detach()
    device.close()


def test_saved_state_is_a_copy() -> None:
    device = disturbed()
    saved = function_of(device).save_state()
    device.items.append(99)
    assert saved["values"]["items"] == [1, 2, 3]
    target = Keeper()
    function_of(target).load_state(saved)
    target.items.append(100)
    assert saved["values"]["items"] == [1, 2, 3]


@for_each(
    [
        lambda device: setattr(device, "number", 6),
        lambda device: setattr(device, "flag", True),
        lambda device: device.items.append(0),
        lambda device: device.table.update({1: "uno"}),
        lambda device: setattr(device, "fuse", 1),
        lambda device: write_register(device, 0, 0, 4, 1),
        lambda device: device.buffer.__setitem__(63, 1),
        lambda device: device.flash.__setitem__(0, 1),
        lambda device: write_register(device, CONFIG, 4, 2, 4),
        lambda device: write_register(device, CONFIG, 0x3C, 1, 11),
        lambda device: write_register(device, 1, 0, 4, 4),
        lambda device: device.interrupts.trigger(),
        lambda device: set_irqs(device, MSIX, 2, 1, MASK, NONE),
    ]
)
def test_the_digest_covers(disturb: Any) -> None:
    device = Keeper()
    before = device.digest()
    assert device.digest() == before
    disturb(device)
    assert device.digest() != before


def test_the_digest_does_not_depend_on_the_process() -> None:
    """A number that was computed once: two servers of different Pythons must agree."""

    class Small(PciDevice):
        ids = PciIds(vendor=1, device=2)
        table: dict[str, int] = state({"b": 1, "a": 2})

    class Reordered(Small):
        table: dict[str, int] = state({"a": 2, "b": 1})

    assert Small().digest() == Reordered().digest()
    assert Small().digest() == SMALL_DIGEST


def test_what_no_state_can_be_has_no_digest() -> None:
    """However deep it is: left out of it, two values that differ would have one."""
    for value in (object(), {1}, 1j, [object()], {"a": [{1}]}):
        with pytest.raises(TypeError, match="state cannot hold"):
            digest_of(value)


SMALL_DIGEST = "9ecf3bfd3a20593998f88b6d247e3c8b5246f54a79a34bd95fdad831f36159e8"


def remove(saved: dict[str, Any], *path: str) -> None:
    for name in path[:-1]:
        saved = saved[name]
    del saved[path[-1]]


def put(saved: dict[str, Any], value: object, *path: str) -> None:
    for name in path[:-1]:
        saved = saved[name]
    saved[path[-1]] = value


@for_each(
    [
        lambda saved: remove(saved, "values"),
        lambda saved: remove(saved, "values", "number"),
        lambda saved: put(saved, 1, "values", "unknown"),
        lambda saved: put(saved, "5", "values", "number"),
        lambda saved: put(saved, 2, "values", "flag"),
        lambda saved: put(saved, None, "values"),
        lambda saved: put(saved, 2, "version"),
        lambda saved: put(saved, b"short", "config"),
        lambda saved: put(saved, 3, "config"),
        lambda saved: put(saved, [4], "interrupts", "msix_pending"),
        lambda saved: put(saved, 4, "interrupts", "msix_masked"),
        lambda saved: put(saved, b"", "interrupts", "table"),
        lambda saved: put(saved, [1.0], "interrupts", "msi_pending"),
        lambda saved: put(saved, 1, "interrupts", "level"),
        lambda saved: put(saved, 1 << 32, "values", "scratch"),
        lambda saved: put(saved, -1, "values", "scratch"),
        lambda saved: put(saved, 1, "surplus"),
        lambda saved: put(saved, "text", "extra"),
        lambda saved: saved.pop("extra"),
    ]
)
def test_state_that_does_not_fit_is_refused_and_changes_nothing(spoil: Any) -> None:
    saved = function_of(disturbed()).save_state()
    spoil(saved)
    device = Keeper()
    before = device.digest()
    for take in (function_of(device).check_state, function_of(device).load_state):
        with pytest.raises(ProtocolError) as refusal:
            take(saved)
        assert refusal.value.errno == errno.EINVAL
    assert device.digest() == before
    assert device.events == []


def test_the_identity_tells_devices_of_other_shape_apart() -> None:
    class Wider(Keeper):
        interrupts = IntX() | MsiX(8)

    keepers, wider = [function_of(Keeper()) for _ in range(2)], function_of(Wider())
    assert keepers[0].identity() == keepers[1].identity()
    assert keepers[0].identity()["config"] != wider.identity()["config"]


class Opaque(PciDevice):
    """Has state that it saves itself."""

    ids = PciIds(vendor=1, device=2)
    count: int = state(0)

    def __init__(self) -> None:
        super().__init__()
        self.own: Any = b"as new"

    def save_extra(self) -> bytes:
        found: bytes = self.own
        return found

    def load_extra(self, data: bytes) -> None:
        if not data.startswith(b"as "):
            raise ProtocolError("none of mine")
        self.own = data


def test_a_device_is_given_what_it_saved_itself_though_that_be_nothing() -> None:
    class Takes(Opaque):
        def load_extra(self, data: bytes) -> None:
            self.own = data

    for ours, theirs in itertools.product((b"", b"some"), (b"", b"other")):
        source, target = Takes(), Takes()
        source.own, target.own = ours, theirs
        function_of(target).load_state(function_of(source).save_state())
        assert target.own == ours, (ours, theirs)


def test_what_a_device_saves_itself_is_part_of_its_state() -> None:
    source, target = Opaque(), Opaque()
    source.own = b"as used"
    assert source.digest() != target.digest()
    assert function_of(source).digests().keys() == {"configuration space", "interrupts", "count", "save_extra()"}
    function_of(target).load_state(function_of(source).save_state())
    assert (target.own, target.digest()) == (b"as used", source.digest())


def test_a_device_that_cannot_save_itself_says_so_before_it_stops() -> None:
    device = Opaque()
    device.own = bytearray(b"as used")
    with pytest.raises(ProtocolError, match="save_extra") as refused:
        function_of(device).check_savable()
    assert refused.value.errno == errno.EIO


def test_bytes_that_a_device_does_not_take_leave_it_as_it_was() -> None:
    source, target = Opaque(), Opaque()
    source.own = b"foreign"
    target.count = 3
    before = target.digest()
    saved, loaded = Migration(function_of(source)), Migration(function_of(target))
    saved.set_state(MigrationState.STOP_COPY)
    loaded.set_state(MigrationState.RESUMING)
    loaded.write_state(saved.read_state(1 << 20))
    with pytest.raises(ProtocolError, match="none of mine"):
        loaded.set_state(MigrationState.STOP)
    assert target.digest() == before
