"""What a device is made of is looked at when it is made: attributes, constructors, declarations that contradict."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import pytest

from tests.cases import for_each, for_each_row
from tests.device_kit import open_fds
from userdev.declare.construction import followed_by
from userdev.declare.returned import WrongValue
from userdev.errors import DeclarationError, ProtocolError
from vfio_user import (
    Bar,
    Capability,
    ExtendedVendor,
    ExtraRegion,
    IntX,
    Msi,
    MsiX,
    PciDevice,
    PciExpress,
    PciIds,
    Placed,
    PowerManagement,
    ResetKind,
    SerialNumber,
    VendorSpecific,
    memory,
    register,
    state,
    stored_register,
)
from vfio_user.device import function_of
from vfio_user.device.attributes import ATTRIBUTES
from vfio_user.device.declarations import Declarations
from vfio_user.pci import MsiCapability
from vfio_user.pci.header import ID_BITS
from vfio_user.testing import attached, read_register
from vhost_user.device import Chain, Queues, VhostDevice, queue

OF_A_TYPE: dict[str, tuple[object, ...]] = {
    "ids": (5, (1, 2), "1af4:10f0", None, PciIds),
    "bars": (5, Bar(0), "Bar", b"", {0: Bar(0)}, (Bar,), (Bar(0), None), (Bar(0, "4096"),)),  # type: ignore[arg-type]
    "interrupts": (5, IntX, "intx", None, (IntX(), MsiX(1))),
    "capabilities": (PciExpress(), 7, (PciExpress,), [None], (Placed(PciExpress),), (VendorSpecific("1"),)),  # type: ignore[arg-type]
    "extra_regions": (9, ExtraRegion(9, 4096), (4096,), (ExtraRegion(9, 4096.0),)),  # type: ignore[arg-type]
    "rom": ("text", 4096, None, [0x55, 0xAA]),
    "state_version": ("1", 1.5, None, True),
    "error_interrupt": (0, None, "no"),
    "release_interrupt": (0, None, "no"),
    "dma_by_message": (1, None, "yes"),
    "migratable": (0, None, "no"),
}
OF_A_FIELD: list[tuple[str, Any, Any]] = [
    *((name, PciIds, {"vendor": 1, "device": 2, name: wrong}) for name in ID_BITS for wrong in ("0x10", None, 1.0)),
    *(("vectors", kind, {"vectors": wrong}) for kind in (Msi, MsiX) for wrong in ("4", None, 3.5)),
    *((name, MsiX, {"vectors": 1, name: wrong}) for name in ("offset", "bar", "capability") for wrong in ("8", 8.5)),
    ("capability", Msi, {"capability": "8"}),
    *(("pin", IntX, {"pin": wrong}) for wrong in ("A", None, 0, 5)),
    *(("serial", SerialNumber, {"serial": wrong}) for wrong in ("1", None, 1.0)),
    *((name, ExtendedVendor, {"vsec_id": 1, "payload": b"", name: "2"}) for name in ("vsec_id", "revision")),
]
TOO_WIDE: list[tuple[str, Callable[..., object], dict[str, Any]]] = [
    *(("serial", SerialNumber, {"serial": wrong}) for wrong in (-1, 1 << 64)),
    *(("vsec_id", ExtendedVendor, {"vsec_id": wrong, "payload": b""}) for wrong in (-1, 1 << 16)),
    *(("revision", ExtendedVendor, {"vsec_id": 1, "payload": b"", "revision": wrong}) for wrong in (-1, 16)),
    *((name, PciIds, {"vendor": 1, "device": 2, name: 1 << bits}) for name, bits in ID_BITS.items()),
    *(
        ("type", ExtraRegion, {"index": 9, "size": 4096, "type": each})
        for each in (5, (1,), (1, -1), (1 << 32, 0), "ab")
    ),
    *(("vectors", MsiX, {"vectors": wrong}) for wrong in (-1, 2049)),
    *(("vectors", Msi, {"vectors": wrong}) for wrong in (-1, 0, 3, 33, 64)),
    *(("offset", MsiX, {"vectors": 1, "offset": wrong}) for wrong in (1, 4)),
    ("writable", VendorSpecific, {"payload": b"abc", "writable": bytes(4)}),
    ("writable", ExtendedVendor, {"vsec_id": 1, "payload": b"abc", "writable": bytes(4)}),
]
JUST_SO: list[tuple[Callable[..., object], dict[str, Any]]] = [
    *((SerialNumber, {"serial": number}) for number in (0, (1 << 64) - 1)),
    *((ExtendedVendor, {"vsec_id": id_, "payload": b"", "revision": id_ & 15}) for id_ in (0, (1 << 16) - 1)),
    *((PciIds, {"vendor": 1, "device": 2, name: (1 << bits) - 1}) for name, bits in ID_BITS.items()),
    (ExtraRegion, {"index": 9, "size": 4096, "type": ((1 << 32) - 1, (1 << 32) - 1)}),
    *((MsiX, {"vectors": number, "offset": 8}) for number in (0, 1, 2048)),
    *((Msi, {"vectors": 1 << power}) for power in range(6)),
    *((IntX, {"pin": pin}) for pin in (1, 4)),
    *((kind, {"payload": b"abc", "writable": bytes(3)}) for kind in (VendorSpecific, partial(ExtendedVendor, 1))),
]
GIVEN = ("ids", "bars", "interrupts", "capabilities", "rom")


@for_each_row(OF_A_FIELD)
def test_a_field_of_another_type_is_refused_with_its_name_and_what_it_is(
    name: str, kind: Callable[..., object], given: dict[str, object]
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"(?s){name}.*{re.escape(repr(given[name]))}"):
        kind(**given)


@for_each_row(TOO_WIDE)
def test_a_field_that_its_place_has_no_room_for_is_refused_by_its_name(
    name: str, kind: Callable[..., object], given: dict[str, Any]
) -> None:
    """One of 17 bits would be in its neighbour's place, too."""
    with pytest.raises(ValueError, match=name):
        kind(**given)


@for_each_row(JUST_SO)
def test_a_field_may_have_all_that_its_place_has_room_for(kind: Callable[..., object], given: dict[str, Any]) -> None:
    made = kind(**given)
    assert {name: getattr(made, name) for name in given} == given


def test_only_mechanisms_are_joined() -> None:
    with pytest.raises(TypeError):
        MsiX(1) | 3  # type: ignore[operator]


def test_every_attribute_that_is_looked_at_has_a_test() -> None:
    said = {name for name, value in vars(Declarations).items() if not name.startswith("_") and not callable(value)}
    assert OF_A_TYPE.keys() == ATTRIBUTES.keys() == said | {"ids"}


@for_each(OF_A_TYPE)
def test_an_attribute_of_another_type_is_refused_with_its_name_and_its_class(name: str) -> None:
    for value in OF_A_TYPE[name]:
        with pytest.raises(DeclarationError, match=rf"D\.{name}\b.*test_device_construction\.py:\d+\)") as refused:
            type("D", (PciDevice,), {"ids": PciIds(1, 2), name: value})
        assert all(refused.value.__notes__)


@for_each(GIVEN)
def test_what_a_constructor_gives_is_looked_at_likewise(name: str) -> None:
    class D(PciDevice):
        ids = PciIds(1, 2)

        def __init__(self, value: object) -> None:
            super().__init__(**{name: value})  # type: ignore[arg-type]

    for value in OF_A_TYPE[name]:
        if value is not None:
            with pytest.raises(DeclarationError, match=rf"D: {name}\b.*test_device_construction\.py:\d+\)"):
                D(value)
    D(None)


@for_each(OF_A_TYPE)
def test_what_a_property_says_is_looked_at_when_the_device_is_made(name: str) -> None:
    wrong = OF_A_TYPE[name][0]
    device_class = type("D", (PciDevice,), {"ids": PciIds(1, 2), name: property(lambda device: wrong)})
    with pytest.raises(DeclarationError, match=rf"D: {name}\b"):
        device_class()


TWICE = {
    "equal ones": (PciExpress(), PciExpress()),
    "one and the same": (SERIAL := SerialNumber(1), SERIAL),
    "of one id": (PowerManagement(), PowerManagement(no_soft_reset=True)),
    "one of them placed": (PowerManagement(), Placed(PowerManagement(), offset=0x80)),
    "one that the interrupts bring": (MsiCapability(),),
}


@for_each(TWICE.values(), ids=TWICE)
def test_a_capability_that_software_would_never_see_is_refused(twice: tuple[Capability | Placed, ...]) -> None:
    class D(PciDevice):
        ids = PciIds(1, 2)
        interrupts = Msi()
        capabilities = twice

    with pytest.raises(DeclarationError, match=r"D: .* is there twice: .*test_device_construction\.py:\d+\)"):
        D()


def test_a_vendor_may_have_as_many_as_he_likes() -> None:
    class D(PciDevice):
        ids = PciIds(1, 2)
        capabilities = (VendorSpecific(b"12"), VendorSpecific(b"12"), ExtendedVendor(1, b"1"), ExtendedVendor(1, b"1"))

    assert D().config.find_capability(VendorSpecific.id, after=0x40)


# When the device is made


class Limited(PciDevice):
    ids = PciIds(1, 2)
    limit: int = stored_register(bar=0, offset=0, width=4)
    lanes: list[int] = state([])
    total: int = state(0)
    serial: str = state("", keep=True)

    def __init__(self, *, limit: Annotated[int, "of each copy"] = 0, early: Annotated[bool, "set before"] = False):
        if early:
            self.limit = limit
        super().__init__()
        if not early:
            self.limit = limit
        self.lanes = [1, 2]
        self.serial = "A"


class Deeper(Limited):
    def __init__(self, *, total: Annotated[int, "to begin with"] = 5, **options: Any) -> None:
        super().__init__(**options)
        self.total = total


@for_each([False, True])
def test_state_that_an_option_sets_is_what_a_reset_brings_back(early: bool) -> None:
    device = Limited(limit=7, early=early)
    fresh = device.digest()
    device.limit = 9
    device.lanes.append(3)
    function_of(device).reset(ResetKind.DEVICE)
    assert (device.limit, device.lanes) == (7, [1, 2])
    device.lanes.append(4)
    function_of(device).reset(ResetKind.FLR)
    assert device.digest() == fresh
    assert Limited(limit=1).limit == 1


def test_what_a_constructor_puts_into_configuration_space_is_what_a_reset_brings_back() -> None:
    class Named(PciDevice):
        ids = PciIds(0x1AF4, 0x10F0)
        capabilities = (VendorSpecific(bytes(5)),)

        def __init__(self, *, board: Annotated[int, "which of them it is"] = 3) -> None:
            super().__init__()
            place = self.config.find_capability(VendorSpecific.id)
            assert place is not None
            self.place = place + 3
            self.config.set(self.place, 1, board)

    device = Named(board=7)
    for kind in (ResetKind.DEVICE, ResetKind.FLR):
        device.config.set(device.place, 1, 9)
        function_of(device).reset(kind)
        assert device.config.get(device.place, 1) == 7
    assert function_of(Named(board=8)).identity() != function_of(device).identity(), "it is another board"


def test_the_outermost_constructor_has_the_last_word() -> None:
    device = Deeper(limit=3)
    device.total = device.limit = 0
    device.serial = "B"
    function_of(device).reset(ResetKind.DEVICE)
    assert (device.total, device.limit, device.serial) == (5, 3, "B")


def test_a_constructor_that_fails_leaves_nothing_behind_for_the_next() -> None:
    with pytest.raises(TypeError):
        Deeper(limit="many", unknown=1)
    assert Deeper(limit=3).limit == 3


def test_state_that_is_set_to_what_cannot_be_saved_is_refused_when_the_device_is_made() -> None:
    class Wrong(Limited):
        def __init__(self) -> None:
            super().__init__()
            self.lanes = {1, 2}  # type: ignore[assignment]

    with pytest.raises(DeclarationError, match=r"Wrong\.lanes is set, not list") as refused:
        Wrong()
    first = Wrong.__init__.__wrapped__.__code__.co_firstlineno  # type: ignore[attr-defined]
    assert f"it is assigned at {__file__}:" in str(refused.value)
    assert str(refused.value).endswith(f"{__file__}:{first + 2}"), "its own line too"


def test_a_default_that_its_own_check_refuses_is_told_when_the_device_is_made() -> None:
    """The check may ask for what only a device has. What resets leave alone may be noted when it is saved."""

    class Laned(PciDevice):
        ids = PciIds(1, 2)
        lane: int = state(0, check=lambda device, value: value in device.lanes)
        noted: int = state(0, keep=True, check=lambda _, value: value > 0)

        def __init__(self, lanes: range) -> None:
            super().__init__()
            self.lanes = lanes

    assert Laned(range(4)).lane == 0
    with pytest.raises(DeclarationError, match=r"default .*Laned\.lane is 0, which the device cannot have") as refused:
        Laned(range(1, 4))
    assert f"({__file__}:" in str(refused.value)


class Nic(PciDevice):
    ids = PciIds(1, 2)
    speed: int = stored_register(bar=0, offset=0, width=4)
    total: int = state(0)


SET_LATE: dict[str, tuple[object, str]] = {
    "ids": (PciIds(3, 4), "write super().__init__(ids=...)"),
    "bars": ((Bar(1, size=4096),), "write super().__init__(bars=...)"),
    "rom": (b"\x55\xaa", "write super().__init__(rom=...)"),
    "extra_regions": ((ExtraRegion(9, 4096),), "set it before"),
    "error_interrupt": (False, "set it before"),
    "release_interrupt": (False, "set it before"),
    "dma_by_message": (True, "set it before"),
    "migratable": (False, "set it before"),
    "config": ({"speed": 10}, "give it another name"),
    "dma": (None, "give it another name"),
    "interrupts": (MsiX(1), "give it another name"),
}


def test_what_is_set_when_nobody_looks_at_it_any_more_is_refused() -> None:
    for name, (value, hint) in SET_LATE.items():

        class Late(Nic):
            def __init__(self, name: str, value: object) -> None:
                super().__init__()
                setattr(self, name, value)

        with pytest.raises(DeclarationError, match=rf"Late\.{name} is set") as refused:
            Late(name, value)
        assert hint in refused.value.__notes__, name

    class Early(Nic):
        def __init__(self) -> None:
            self.bars = (Bar(1, size=4096),)
            self.migratable = False
            super().__init__()
            self.bars = (Bar(1, size=4096),)  # as it was

    assert function_of(Early()).migration is None


def test_what_every_device_is_given_cannot_be_set_before() -> None:
    for name in ("config", "dma", "interrupts"):

        class Early(Nic):
            def __init__(self, name: str) -> None:
                setattr(self, name, MsiX(1))
                super().__init__()

        with pytest.raises(DeclarationError, match=f"{name} is set before super"):
            Early(name)


class Rng(VhostDevice):
    virtio_id = 4
    queues = Queues(1)

    @queue(0)
    def fill(self, chain: Chain) -> int:
        return 0


def test_what_cannot_be_called_later_is_refused_by_who_is_asked() -> None:
    nic, rng = Nic(), Rng()
    asks: dict[str, Callable[[Any], object]] = {
        "defer": nic.defer,
        "call_soon": nic.call_soon,
        "call_later": lambda work: nic.call_later(1.0, work),
        "call_soon of a virtio device": rng.call_soon,
    }
    for name, ask in asks.items():
        with pytest.raises(WrongValue, match=rf"{name.split()[0]} is given None \({re.escape(__file__)}:\d+\)"):
            ask(None)


def test_a_value_that_is_found_to_be_wrong_late_is_told_with_the_lines_that_assign_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Careless(Nic):
        def work(self, speed: Any, total: Any) -> None:
            self.speed = speed
            self.total = total

    line = Careless.work.__code__.co_firstlineno + 1
    device = Careless()
    with attached(device):
        device.work("fast", set())
        with pytest.raises(WrongValue, match=re.escape(f"assigned at {__file__}:{line}")):
            read_register(device, 0, 0, 4)
        device.work(1 << 40, set())
        assert read_register(device, 0, 0, 4) == 0
        assert f"Store it cut, or make it wider; it is assigned at {__file__}:{line}" in caplog.text
        device.work(1, set())
        found = f"total is set, not int: set(); it is assigned at {__file__}:{line + 1}"
        with pytest.raises(ProtocolError, match=re.escape(found)):
            function_of(device).check_savable()


def test_a_constructor_that_does_not_call_its_bases_is_named() -> None:
    class Hollow(PciDevice):
        ids = PciIds(1, 2)

        def __init__(self) -> None:
            pass

    with pytest.raises(DeclarationError, match=r"Hollow.__init__ does not call super\(\).__init__\(\)"):
        Hollow()


NOWHERE: dict[str, Callable[[], type[PciDevice]]] = {
    "no ids": lambda: type("D", (PciDevice,), {}),
    "a BAR too small": lambda: type(
        "D", (PciDevice,), {"ids": PciIds(1, 2), "bars": (Bar(0, 16),), "ram": memory(64, bar=0)}
    ),
    "no such region": lambda: type("D", (PciDevice,), {"ids": PciIds(1, 2), "ram": memory(64, bar=9)}),
    "an overlap": lambda: type(
        "D", (PciDevice,), {"ids": PciIds(1, 2), "ram": memory(64, bar=0), "rim": memory(64, bar=0, offset=32)}
    ),
    "a BAR beyond the last": lambda: type("D", (PciDevice,), {"ids": PciIds(1, 2), "bars": (Bar(5, 4096, bits=64),)}),
}


@for_each(NOWHERE.values(), ids=NOWHERE)
def test_declarations_that_contradict_each_other_name_the_class(wrong: Callable[[], type[PciDevice]]) -> None:
    with pytest.raises(DeclarationError, match=r"^D[ :.]"):
        wrong()()


@for_each([1 << 50, 1 << 70])
def test_memory_that_cannot_be_had_is_named(size: int) -> None:
    class Greedy(PciDevice):
        ids = PciIds(1, 2)
        small: memoryview = memory(16)
        large: memoryview = memory(size)

    files = open_fds()
    with pytest.raises(DeclarationError, match=r"Greedy: .*large"):
        Greedy()
    assert open_fds() == files


def test_an_overlap_names_both() -> None:
    class Crowded(Limited):
        window: memoryview = memory(64, bar=0, offset=2)

        @register(bar=0, offset=0x40, width=8)
        def copy(self) -> int:
            return 0

    with pytest.raises(DeclarationError, match="Crowded: limit and window overlap at 0x2 of BAR 0"):
        Crowded()


def test_a_constructor_that_has_failed_leaves_nothing_and_is_followed_when_it_is_called_again() -> None:
    class Tried:
        def __init__(self, wrong: bool) -> None:
            if wrong:
                raise ValueError("wrong")

    finished: list[object] = []
    Tried.__init__ = followed_by(Tried.__init__, finished.append)  # type: ignore[method-assign]
    tried = Tried.__new__(Tried)
    with pytest.raises(ValueError, match="wrong"):
        tried.__init__(True)  # type: ignore[misc]
    assert (finished, vars(tried)) == ([], {})
    tried.__init__(False)  # type: ignore[misc]
    assert (finished, vars(tried)) == ([tried], {})
