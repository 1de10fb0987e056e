"""What a device says in class attributes, or gives to `PciDevice.__init__`: of which type each of them is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import NamedTuple

from userdev.declare.values import shown
from vfio_user.device.extra_region import ExtraRegion
from vfio_user.device.mechanism import Mechanism
from vfio_user.pci import Bar, Capability, PciIds, Placed


class Attribute(NamedTuple):
    """`kinds` of the value, or of the items of a sequence of `several`."""

    kinds: tuple[type, ...]
    several: bool
    example: str


ATTRIBUTES = {
    "ids": Attribute((PciIds,), False, "PciIds(vendor=0x1AF4, device=0x10F0)"),
    "bars": Attribute((Bar,), True, "(Bar(0, size=4096),)"),
    "interrupts": Attribute((Mechanism,), False, "MsiX(vectors=2)"),
    "capabilities": Attribute((Capability, Placed), True, "(PciExpress(),)"),
    "extra_regions": Attribute((ExtraRegion,), True, "(ExtraRegion(9, size=4096),)"),
    "rom": Attribute((bytes, bytearray), False, 'b"..."'),
    "state_version": Attribute((int,), False, "2"),
    "error_interrupt": Attribute((bool,), False, "False"),
    "release_interrupt": Attribute((bool,), False, "False"),
    "dma_by_message": Attribute((bool,), False, "True"),
    "migratable": Attribute((bool,), False, "False"),
}

_PLAIN = (bytes, int, bool)
"""What an author's own attributes are of, too."""
PLAIN = {name: attribute.kinds for name, attribute in ATTRIBUTES.items() if attribute.kinds[0] in _PLAIN}
"""Attributes that only their names tell from an author's own."""
_ALIKE = 0.75
"""Of two names, from 0 to 1: bar and bars are, LEGACY_BARS and bars are not."""

FIELDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, NoneType),
    "bool": (bool,),
    "bytes": (bytes, bytearray),
    "Capability": (Capability,),
}
"""Types of the fields of such values, as they are annotated."""


def check_attribute(name: str, value: object) -> None:
    """Compare the value of a class attribute with its type.

    Raises:
        ValueError: it is of another type, or has something in it that is; it has the name.
    """
    attribute = ATTRIBUTES[name]
    if not attribute.several:
        _check(name, value, attribute)
    elif not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"{name} is {shown(value)}, and no tuple: write {name} = {attribute.example}")
    else:
        for index, item in enumerate(value):
            _check(f"{name}[{index}]", item, attribute)


def meant_attribute(name: str, value: object) -> str | None:
    """The attribute that a value of its type is meant for under a name like its own; None where it may be a constant.

    A way to interrupt is never one, whatever its name: an instance does not give it back.
    """
    items = value if isinstance(value, (tuple, list)) and value else (value,)
    for meant, attribute in ATTRIBUTES.items():
        if attribute.kinds[0] in _PLAIN or not all(isinstance(item, attribute.kinds) for item in items):
            continue
        from difflib import get_close_matches  # a class without mistakes need not wait for it

        if Mechanism in attribute.kinds or get_close_matches(name, [meant], cutoff=_ALIKE):
            return meant
    return None


def check_attributes(device: object, given: Mapping[str, object]) -> None:
    """The same for all of a device's: what is given to its constructor, and where that is None what it has."""
    if given["ids"] is None and not hasattr(device, "ids"):
        raise ValueError(f"it says nowhere who it is: ids = {ATTRIBUTES['ids'].example}")
    for name in ATTRIBUTES:
        value = given.get(name)
        owner = type(device) if name == "interrupts" else device  # an instance has them when it is made
        check_attribute(name, getattr(owner, name) if value is None else value)


def _check(place: str, value: object, attribute: Attribute) -> None:
    if (type(value) is bool and bool not in attribute.kinds) or not isinstance(value, attribute.kinds):
        kinds = " or ".join(kind.__name__ for kind in attribute.kinds)
        name = place.partition("[")[0]
        raise ValueError(f"{place} is {shown(value)}, and no {kinds}: write {name} = {attribute.example}")
    for field, found in _wrong_fields(value):
        raise ValueError(f"{place}: {field} is {shown(found)}, in {shown(value, 200)}")


def _wrong_fields(value: object) -> Iterator[tuple[str, object]]:
    if not is_dataclass(value) or isinstance(value, type):
        return
    for field in fields(value):
        annotation = field.type if isinstance(field.type, str) else field.type.__name__
        kinds, found = FIELDS.get(annotation), getattr(value, field.name)
        if kinds is not None and not isinstance(found, kinds):
            yield f"{field.name}, {annotation},", found
