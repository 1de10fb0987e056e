"""Types of state: what an author may keep in it, what arrives of it at a destination, and who says that it cannot."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum, auto
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from userdev.declare import values
from userdev.declare.plain import NESTED
from userdev.declare.values import MAX_BITS, MAX_SIZE, decode, encode
from userdev.errors import DeclarationError
from vfio_user import Client, PciDevice, PciIds, ProtocolError, state, stored_register
from vfio_user.client import RemoteError
from vfio_user.device import function_of
from vfio_user.server import Server
from vfio_user.wire.constants import MigrationState


class Mode(IntEnum):
    OFF = 0
    ON = 1


class Level(StrEnum):
    LOW = auto()
    HIGH = auto()


class Shape(Enum):
    ROUND = "round"
    SQUARE = (4, "square")


class Bits(IntFlag):
    ONE = 1
    TWO = 2


class Parts(Flag):
    HEAD = auto()
    TAIL = auto()


class Mixed(PciDevice):
    """State of every type that mypy lets an author declare it with."""

    ids = PciIds(vendor=1, device=2)
    running: int = state(0)
    flag: bool = state(False)
    rate: float = state(0.0)
    mode: Mode = state(Mode.OFF)
    level: Level = state(Level.LOW)
    shape: Shape = state(Shape.ROUND)
    bits: Bits = state(Bits.ONE)
    parts: Parts = state(Parts.HEAD)
    label: str = state("")
    block: bytearray = state(bytearray(4))
    items: list[Any] = state([])
    table: dict[Any, Any] = state({})
    anything: object = state(None)
    scratch: int = stored_register(bar=0, offset=0, width=4)


TAKEN: dict[str, tuple[str, object, object]] = {
    "a flag in an int": ("running", True, 1),
    "a number in a flag": ("flag", 1, True),
    "an int in a float": ("rate", 3, 3.0),
    "a whole float in an int": ("running", 2.0, 2),
    "no number": ("rate", float("inf"), float("inf")),
    "a negative number of 71 bits": ("running", -(1 << 70), -(1 << 70)),
    "an IntEnum": ("mode", Mode.ON, Mode.ON),
    "the number of an IntEnum": ("mode", 1, Mode.ON),
    "a StrEnum": ("level", Level.HIGH, Level.HIGH),
    "an Enum": ("shape", Shape.SQUARE, Shape.SQUARE),
    "an IntFlag": ("bits", Bits.ONE | Bits.TWO, Bits.ONE | Bits.TWO),
    "a Flag": ("parts", Parts.HEAD | Parts.TAIL, Parts.HEAD | Parts.TAIL),
    "text that is not Unicode": ("label", "\udcff", "\udcff"),
    "bytes that change": ("block", bytearray(b"1234"), bytearray(b"1234")),
    "an IntEnum in a list": ("items", [Mode.ON, (True, None)], [1, (True, None)]),
    "IntEnums and numbers as keys": ("table", {5: "five", Mode.ON: "on"}, {1: "on", 5: "five"}),
    "something where None was": ("anything", {"a": [1]}, {"a": [1]}),
    "a flag in a register": ("scratch", True, 1),
}


@for_each_row(TAKEN.values(), ids=TAKEN)
def test_what_nothing_is_lost_of_arrives_in_the_declared_type(name: str, value: object, arrived: object) -> None:
    source, target = Mixed(), Mixed()
    setattr(source, name, value)
    function_of(target).load_state(function_of(source).save_state())
    assert getattr(target, name) == arrived
    assert type(getattr(target, name)) is type(arrived)
    assert target.digest() == source.digest()


def test_a_default_that_never_changes_arrives_whatever_its_type() -> None:
    source, target = Mixed(), Mixed()
    target.mode, target.level, target.shape = Mode.ON, Level.HIGH, Shape.SQUARE
    function_of(target).load_state(function_of(source).save_state())
    assert (target.mode, target.level, target.shape) == (Mode.OFF, Level.LOW, Shape.ROUND)
    assert isinstance(target.mode, Mode)


def test_what_arrives_is_a_copy() -> None:
    source, target = Mixed(), Mixed()
    source.items = [[1]]
    saved = function_of(source).save_state()
    function_of(target).load_state(saved)
    target.items[0].append(2)
    target.block[0] = 9
    assert (source.items, saved["values"]["items"], source.block) == ([[1]], [[1]], bytearray(4))


def in_itself() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def test_whatever_may_be_saved_by_its_depth_can_be_encoded() -> None:
    device = Mixed()
    device.items = nested(NESTED)
    assert decode(encode(function_of(device).save_state())) == function_of(device).save_state()
    device.items = nested(NESTED + 1)
    with pytest.raises(ProtocolError, match="nested deeper"):
        function_of(device).check_savable()


LOST: dict[str, tuple[str, Callable[[], object], str]] = {
    "half a number": ("running", lambda: 0.5, "running is float, not int: 0.5"),
    "two in a flag": ("flag", lambda: 2, "flag is int, not bool: 2"),
    "an int that no float is": ("rate", lambda: (1 << 53) + 1, "rate is int, not float"),
    "no member": ("mode", lambda: 7, "mode is int, not Mode: 7"),
    "None": ("running", lambda: None, "running is NoneType, not int"),
    "a set": ("items", lambda: [1, {2}], r"items\[1\] is set: state holds"),
    "bytes that change, in a list": ("table", lambda: {"a": [0, bytearray(1)]}, r"table\['a'\]\[1\] is bytearray"),
    "a dict with a factory": ("table", lambda: defaultdict(int), "table is defaultdict, not dict"),
    "a member without number, in a list": ("items", lambda: [Shape.ROUND], r"items\[0\] is Shape"),
    "an object": ("anything", object, "anything is object"),
    "a list in itself": ("items", in_itself, r"items\[0\]\S+ is nested deeper"),
    "an int of a thousand digits": ("items", lambda: [1 << MAX_BITS], r"items\[0\] is an int of 8193 bits"),
    "keys without order": ("table", lambda: {(1, "a"): 1, ("a", 1): 2}, "table has keys without an order"),
    "more than a register has": (
        "scratch",
        lambda: 1 << 32,
        "scratch is 4294967296, and no unsigned number of 32 bits",
    ),
}


@for_each_row(LOST.values(), ids=LOST)
def test_what_would_not_arrive_is_refused_by_name_when_it_is_saved(
    name: str, value: Callable[[], object], words: str
) -> None:
    device = Mixed()
    setattr(device, name, value())
    for save in (function_of(device).check_savable, function_of(device).save_state, device.digest):
        with pytest.raises(ProtocolError, match=f"Mixed cannot be saved: {words}"):
            save()


TOO_MUCH: dict[str, tuple[str, Callable[[], object], str]] = {
    "more items than a state may have": ("items", lambda: [None] * (values.MAX_ITEMS + 1), "items: lists and dicts"),
    "a key that is too long": ("table", lambda: {1 << 70: 1}, "table: an int of 71 bits as a key"),
    "more bytes than a state may have": ("label", lambda: "x" * (MAX_SIZE + 1), "label: "),
}


@pytest.fixture
def fewer_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there may be take seconds."""
    monkeypatch.setattr(values, "MAX_ITEMS", 1 << 12)


@pytest.mark.usefixtures("fewer_items")
@for_each_row(TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_is_more_than_a_saved_state_may_have_is_refused_by_name(
    name: str, value: Callable[[], object], words: str
) -> None:
    device = Mixed()
    setattr(device, name, value())
    with pytest.raises(ProtocolError, match=f"Mixed cannot be saved: {words}"):
        function_of(device).check_savable()


@pytest.mark.usefixtures("fewer_items")
def test_values_that_are_too_much_together_are_refused_too() -> None:
    device = Mixed()
    device.items, device.table = [None] * (values.MAX_ITEMS - 30), {"more": [None] * 29}
    with pytest.raises(ProtocolError, match="Mixed cannot be saved: all state together: lists"):
        function_of(device).check_savable()


class Nervous(Mixed):
    """Remembers that it was told to stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def on_quiesce(self) -> None:
        self.asked.append("stand still")


class Named(Nervous):
    """Has something in its identity that no other process could read."""

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "image": Path("disk.img")}


def spoiled() -> Nervous:
    device = Nervous()
    device.items = [{1}]
    return device


@for_each([spoiled, Named], [MigrationState.STOP_COPY, MigrationState.PRE_COPY])
def test_a_device_that_cannot_be_saved_is_not_stopped_for_it(
    make: Callable[[], Nervous], wanted: MigrationState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = make()
    address = str(tmp_path / "socket")
    with Server(device, address), Client.connect(address) as client:
        with pytest.raises(RemoteError) as refused:
            client.set_migration_state(wanted)
        assert refused.value.errno == errno.EIO
        assert client.migration_state() is MigrationState.RUNNING
        assert device.asked == []
        client.store(0, 0, 4, 5)
        assert client.load(0, 0, 4) == 5
    assert any(word in caplog.text for word in ("items[0] is set", "identity cannot be saved: image"))


def test_a_device_that_has_become_unsavable_in_pre_copy_is_not_stopped_either(tmp_path: Path) -> None:
    device = Nervous()
    address = str(tmp_path / "socket")
    with Server(device, address), Client.connect(address) as client:
        client.set_migration_state(MigrationState.PRE_COPY)
        device.items = [{1}]
        with pytest.raises(RemoteError):
            client.set_migration_state(MigrationState.STOP_COPY)
        assert client.migration_state() is MigrationState.PRE_COPY
        assert device.asked == []


def test_the_parts_of_the_state_have_digests_of_their_own() -> None:
    one, other = Mixed(), Mixed()
    other.rate = 1.5
    function_of(other).region_write(7, 0x3C, b"\x05")
    differing = {
        name for name, digest in function_of(one).digests().items() if function_of(other).digests()[name] != digest
    }
    assert differing == {"rate", "configuration space"}


@dataclass
class Counters:
    reads: int = 0
    mode: Mode = Mode.OFF
    recent: list[int] = field(default_factory=list)


class Counting(PciDevice):
    """State that is a dataclass."""

    ids = PciIds(vendor=1, device=2)
    counters: Counters = state(Counters())
    kept: Counters = state(Counters(), keep=True)


def test_a_dataclass_arrives_as_one_and_is_a_copy() -> None:
    source, target = Counting(), Counting()
    source.counters.reads, source.counters.mode = 5, Mode.ON
    source.counters.recent.append(3)
    function_of(target).load_state(function_of(source).save_state())
    assert target.counters == Counters(5, Mode.ON, [3])
    assert isinstance(target.counters.mode, Mode)
    source.counters.recent.append(4)
    assert target.counters.recent == [3]
    assert target.digest() != source.digest()


def test_a_reset_makes_a_fresh_dataclass_unless_it_is_kept() -> None:
    device = Counting()
    device.counters.reads = device.kept.reads = 1
    device.counters.recent.append(1)
    function_of(device).client_reset()
    assert device.counters == Counters()
    assert device.kept == Counters(1)
    assert Counting().counters == Counters(), "the default is nobody's own"


@for_each_row(
    [
        (None, r"counters is None"),
        ({"reads": 1}, r"counters is .* and not reads, mode, recent"),
        ({"reads": "1", "mode": 0, "recent": []}, r"counters\.reads is str"),
        ({"reads": 1, "mode": 9, "recent": []}, r"counters\.mode is 9"),
        ({"reads": 1, "mode": 0, "recent": [], "more": 1}, r"and not reads"),
    ]
)
def test_what_is_no_such_dataclass_is_refused_by_its_field(counters: object, said: str) -> None:
    device = Counting()
    saved = function_of(device).save_state()
    with pytest.raises(ProtocolError, match=said):
        function_of(device).load_state({**saved, "values": {**saved["values"], "counters": counters}})
    assert device.counters == Counters()


def test_a_field_that_would_not_arrive_is_named_by_whoever_saves() -> None:
    device = Counting()
    device.counters.recent = [object()]  # type: ignore[list-item]
    with pytest.raises(ProtocolError, match=r"counters\.recent\[0\] is object"):
        function_of(device).save_state()


def test_a_dataclass_whose_fields_have_no_defaults_is_refused_with_its_name() -> None:
    @dataclass
    class Bare:
        reads: int

    with pytest.raises(DeclarationError, match=r"counters.*reads has no default"):

        class Wrong(PciDevice):
            ids = PciIds(vendor=1, device=2)
            counters: Bare = state(Bare(0))


def test_the_bits_of_a_dataclass_are_those_of_each_field() -> None:
    @dataclass
    class Pair:
        left: int = 0
        right: int = 0

    class Narrow(PciDevice):
        ids = PciIds(vendor=1, device=2)
        pair: Pair = state(Pair(), bits=8)

    device = Narrow()
    device.pair.right = 256
    with pytest.raises(ProtocolError, match=r"pair\.right is 256"):
        function_of(device).save_state()
