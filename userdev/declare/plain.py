"""Plain values: what a saved state is made of, and how a value of an author's becomes one and comes back.

A saved state carries None, bool, int, float, str, bytes, and lists, tuples and dicts of them. A declared value of
another type than its default's is taken where nothing is lost by it (an int for a float, a flag for an int, an Enum by
its value, a dataclass by its fields), and refused by name where something is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import Enum
from types import NoneType
from typing import Any

from userdev.declare.values import MAX_BITS, MAX_DEPTH, shortened, shown

SCALARS = (NoneType, bool, int, float, str, bytes)
FAMILIES: tuple[tuple[type, ...], ...] = ((int, float), (str,), (bytes, bytearray, memoryview))
"""Types whose values stand for one another where they are equal."""
NESTED = MAX_DEPTH - 2
"""How deep: below the saved state, and its values by name."""
TAKEN = "state holds None, numbers, text, bytes, and lists, tuples and dicts of them"


class NotPlain(Exception):
    """A value that another device could not load; says where it is, and what is wrong with it."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self._what = what
        self._place = ""
        self.declared = ""
        """The name of the declared value that it is about, where that is known."""

    def within(self, place: str) -> NotPlain:
        """The same, in something larger."""
        self._place = place + self._place
        return self

    def __str__(self) -> str:
        return f"{shortened(self._place)} {self._what}"


def to_plain(value: object, kind: type) -> Any:
    """A copy of a value that was declared as `kind`, as a saved state carries it; NoneType: nothing was declared.

    Raises:
        NotPlain: it would not come back.
    """
    if kind is NoneType:
        return _copy(value, 0)
    if dataclasses.is_dataclass(kind):
        return _to_fields(value, kind)
    found = _fitting(value, kind)
    if isinstance(found, Enum):
        found = found.value
    return _copy(bytes(found) if isinstance(found, bytearray) else found, 0)


def from_plain(value: object, kind: type) -> Any:
    """The value that `to_plain` had; a list or dict is the same one.

    Raises:
        NotPlain: it is of another type.
    """
    if kind is NoneType:
        return value
    if dataclasses.is_dataclass(kind):
        return _from_fields(value, kind)
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise NotPlain(f"is {shown(value)}, which is no {kind.__name__}") from None
    return _fitting(value, kind)


def _to_fields(value: object, kind: type) -> dict[str, Any]:
    """A dataclass by the names of its fields."""
    if type(value) is not kind:
        raise NotPlain(f"is {type(value).__name__}, not {kind.__name__}: {shown(value)}")
    found = {}
    for name, of in _fields(kind).items():
        try:
            found[name] = to_plain(getattr(value, name), of)
        except NotPlain as error:
            raise error.within(f".{name}") from None
    return found


def _from_fields(value: object, kind: type) -> Any:
    fields = _fields(kind)
    if not isinstance(value, dict) or value.keys() != fields.keys():
        raise NotPlain(f"is {shown(value)}, and not {', '.join(fields)} of {kind.__name__}")
    found = {}
    for name, of in fields.items():
        try:
            found[name] = from_plain(value[name], of)
        except NotPlain as error:
            raise error.within(f".{name}") from None
    return kind(**found)


def _fields(kind: type) -> dict[str, type]:
    """The types of a dataclass' fields, which are those of their defaults."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = type(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = type(field.default_factory())
        else:
            raise NotPlain(f"is a {kind.__name__}, whose {field.name} has no default")
        if not field.init:
            raise NotPlain(f"is a {kind.__name__}, whose {field.name} cannot be given")
    return found


def check_unsigned(value: object, bits: int, depth: int) -> None:
    """Look whether a plain value is an unsigned number of so many bits, or has nothing but such numbers so deep in
    lists, tuples and dicts.

    Raises:
        NotPlain: it is not.
    """
    if not depth:
        if not isinstance(value, int) or not 0 <= value < 1 << bits:
            raise NotPlain(f"is {shown(value)}, and no unsigned number of {bits} bits")
        return
    if not isinstance(value, (list, tuple, dict)):
        raise NotPlain(f"is {shown(value)}, and no list, tuple or dict")
    items = (
        [(key, each) for key in value for each in (key, value[key])] if isinstance(value, dict) else enumerate(value)
    )
    beyond = 1 << bits
    for key, item in items:
        if depth == 1 and isinstance(item, int) and 0 <= item < beyond:
            continue  # without a call for each: there may be thousands
        try:
            check_unsigned(item, bits, depth - 1)
        except NotPlain as error:
            raise error.within(f"[{shown(key)}]") from None


def _fitting(value: object, kind: type[Any]) -> Any:
    """The value as a `kind`, where nothing is lost by it; raises NotPlain."""
    if type(value) is kind:
        return value
    convert: Callable[[Any], Any] = kind
    for family in FAMILIES:
        if issubclass(kind, family) and isinstance(value, family):
            try:
                made = convert(value)
            except (ValueError, OverflowError):
                break
            if made == value:
                return made
    raise NotPlain(f"is {type(value).__name__}, not {kind.__name__}: {shown(value)}")


def _copy(value: object, depth: int) -> Any:
    """Plain values only; an Enum of numbers or text, such as an IntEnum, is its value here."""
    if depth > NESTED:
        raise NotPlain(f"is nested deeper than {NESTED}, or in itself")
    if isinstance(value, Enum) and isinstance(value, SCALARS):
        value = value.value
    kind = type(value)
    if kind in (list, tuple):
        assert isinstance(value, (list, tuple))
        return kind(_item(item, index, depth) for index, item in enumerate(value))
    if kind is dict:
        assert isinstance(value, dict)
        return _copied_dict(value, depth)
    if kind not in SCALARS:
        raise NotPlain(f"is {kind.__name__}: {TAKEN}")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise NotPlain(f"is an int of {value.bit_length()} bits, and may have {MAX_BITS}")
    return value


def _copied_dict(value: dict[Any, Any], depth: int) -> dict[Any, Any]:
    found = {_item(key, key, depth): _item(item, key, depth) for key, item in value.items()}
    try:
        sorted(found, key=lambda key: (type(key).__name__, key))  # as a digest will
    except TypeError as error:
        raise NotPlain(f"has keys without an order: {error}") from None
    return found


def _item(value: object, key: object, depth: int) -> Any:
    """What has this key or index in something that is so deep already."""
    try:
        return _copy(value, depth + 1)
    except NotPlain as error:
        raise error.within(f"[{shown(key)}]") from None
