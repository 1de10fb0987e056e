"""State that a device author declares: reset clears it, migration saves it, the digest covers it.

On an instance a declared value is a plain attribute; nothing stands between a register's handler and its number.
"""

from __future__ import annotations

import copy
import errno
import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, cast

from userdev.declare.authors_code import assigned_at
from userdev.declare.declared import Declaration, declarations, no_flag
from userdev.declare.plain import NotPlain, check_unsigned, from_plain, to_plain
from userdev.declare.values import encode, shown
from userdev.errors import AUTHORS_FAILURES, DeclarationError, ProtocolError

T = TypeVar("T")

ValueCheck = Callable[[Any, Any], bool]
"""Whether a device can have a value; what it raises says no too."""


class State(Declaration):
    """A declared value; `userdev.declare.plain` says of which types, and `state` what the rest is."""

    def __init__(
        self,
        default: object,
        keep: bool,
        *,
        bits: int | None = None,
        depth: int | None = None,
        check: ValueCheck | None = None,
    ) -> None:
        super().__init__()
        self.default = default
        self.keep = keep
        self.bits = bits
        self.depth = isinstance(default, (list, tuple, dict)) if depth is None else depth
        self._check = check

    def mistake(self) -> str:
        """The mistake in the declaration itself, in words for its author; nothing: it may be used."""
        if self.bits is not None and (type(self.bits) is not int or self.bits < 1):
            return f"bits are how many a number has, not {self.bits!r}"
        if not isinstance(self.depth, int) or self.depth < 0:
            return f"depth is how deep numbers are in lists, not {self.depth!r}"
        if wrong := no_flag(keep=self.keep):
            return wrong
        if self._check is None:
            return ""
        try:
            inspect.signature(self._check).bind(None, None)
        except (TypeError, ValueError):
            return f"check is called with the device and a value, and {self._check!r} cannot be"
        return ""

    def fresh(self) -> object:
        """A copy of the default."""
        return copy.deepcopy(self.default)

    def to_plain(self, value: object) -> object:
        """A copy of a value, as a saved state carries it.

        Raises:
            NotPlain: it is not made of plain values.
        """
        return self._in_range(to_plain(value, type(self.default)))

    def from_plain(self, value: object) -> object:
        """A copy of a saved value, of the default's type; None may have become anything.

        Raises:
            NotPlain: it is of another type.
        """
        return from_plain(copy.deepcopy(self._in_range(value)), type(self.default))

    def save(self, device: object, value: object) -> object:
        """`to_plain` of a value that the device can have.

        Raises:
            NotPlain: it is not plain, or none that the device can have.
        """
        plain = self.to_plain(value)
        if self._check is not None:
            self.load(device, plain)
        return plain

    def load(self, device: object, saved: object) -> object:
        """`from_plain` of a value that the device can have.

        Raises:
            NotPlain: it is of another type, or none that the device can have.
        """
        value = self.from_plain(saved)
        if self._check is None:
            return value
        try:
            reason = "" if self._check(device, value) else "it does not pass its check"
        except AUTHORS_FAILURES as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if reason:
            raise NotPlain(f"is {shown(value)}, which the device cannot have: {reason}")
        return value

    def _in_range(self, value: object) -> object:
        """A plain value, as it is.

        Raises:
            NotPlain: it has not the bits.
        """
        if self.bits is None:
            return value
        if is_dataclass(self.default) and isinstance(value, dict):
            for name, field in value.items():
                try:
                    check_unsigned(field, self.bits, self.depth)
                except NotPlain as error:
                    raise error.within(f".{name}") from None
        else:
            check_unsigned(value, self.bits, self.depth)
        return value


def state(
    default: T,
    *,
    keep: bool = False,
    bits: int | None = None,
    depth: int | None = None,
    check: Callable[[Any, T], bool] | None = None,
) -> T:
    """Declare state: `total: int = state(0, bits=32)`.

    A saved state with a value that the device cannot have is refused, and a device that has come to one says so before
    a migration stops it. What is declared here is what can be known of that; types are held to anyway.

    keep: resets leave it alone; migration and digest still cover it.
    bits: it is an unsigned number of so many bits; a list, tuple, dict or dataclass has nothing but such numbers.
    depth: how deep in lists, tuples and dicts these are; 1 in one of them, unless told.
    check: called with the device and a value of the default's type; tells whether the device can have it. What it
        raises says no as well, a ValueError in its own words. It changes nothing, and the device may be running.
    """
    return cast(T, State(default, keep, bits=bits, depth=depth, check=check))


class Snapshot:
    """Reset, save and load of one device's declared state."""

    def __init__(self, device: object) -> None:
        self._device = device
        self._values = declarations(type(device), State)
        self._after_reset: dict[str, object] = {}
        """Plain values, by name."""

    def power_on(self) -> None:
        """Set what the author has not set before."""
        for value in self._values:
            if value.name not in vars(self._device):
                setattr(self._device, value.name, value.fresh())

    def take_as_after_reset(self) -> None:
        """Resets bring back what the values are now, where that is not the default: an option of the device, say.

        Raises:
            DeclarationError: what resets bring back could not be saved, be it a default that its own check refuses.
        """
        for value in self._values:
            if value.keep:
                continue  # `on_save` may note it before it is looked at
            now = getattr(self._device, value.name)
            is_default = type(now) is type(value.default) and now == value.default
            try:
                plain = value.save(self._device, now)
            except NotPlain as error:
                which = f"{type(self._device).__qualname__}.{value.name}"
                place = "" if is_default else assigned_at(type(self._device), value.name)
                wrong = "a default" if is_default else "__init__ has set something that"
                what = f"{wrong} could not be saved: {which}{error} ({value.source}){place}"
                raise DeclarationError(what, hint="`vfio-user docs devices` has a table of what state may be") from None
            if not is_default:
                self._after_reset[value.name] = plain

    def reset(self) -> None:
        """Set every value that resets do not leave alone to what it is after one."""
        for value in self._values:
            if not value.keep:
                setattr(self._device, value.name, self._fresh(value))

    def _fresh(self, value: State) -> object:
        if value.name in self._after_reset:
            return value.from_plain(self._after_reset[value.name])
        return value.fresh()

    def save(self) -> dict[str, Any]:
        """Copies of the values, by name.

        Raises:
            ProtocolError: EIO, a value that no other device could load, by its name.
        """
        values = {value.name: getattr(self._device, value.name) for value in self._values}
        try:
            return self._each(State.save, values)
        except NotPlain as error:
            place = assigned_at(type(self._device), error.declared)
            raise ProtocolError(f"{type(self._device).__name__} cannot be saved: {error}{place}", errno.EIO) from None

    def check_savable(self) -> None:
        """Look whether the values can be saved.

        Raises:
            ProtocolError: EIO, one cannot be saved, or they are more than a saved state may have.
        """
        saved = self.save()
        try:
            encode(saved)
        except TypeError as error:
            name = next((name for name, value in saved.items() if not _can_be_encoded(value)), "all state together")
            what = f"{type(self._device).__name__} cannot be saved: {name}: {error}"
            raise ProtocolError(what, errno.EIO) from None

    def check(self, values: Mapping[str, Any]) -> None:
        """Compare saved values with what is declared.

        Raises:
            ProtocolError: EINVAL, something is missing, is not declared, or is nothing that the device can have.
        """
        declared = {value.name for value in self._values}
        if missing := declared - values.keys():
            raise ProtocolError(f"saved state lacks {', '.join(sorted(missing))}", errno.EINVAL)
        if unknown := values.keys() - declared:
            raise ProtocolError(f"saved state has unknown {', '.join(sorted(unknown))}", errno.EINVAL)
        self._loaded(values)

    def load(self, values: Mapping[str, Any]) -> None:
        """Set the values, which were checked before."""
        for name, value in self._loaded(values).items():
            setattr(self._device, name, value)

    def _loaded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._each(State.load, values)
        except NotPlain as error:
            raise ProtocolError(f"saved state: {error}", errno.EINVAL) from None

    def _each(self, change: Callable[[State, object, object], object], values: Mapping[str, object]) -> dict[str, Any]:
        """The values, changed as their declarations have it; raises NotPlain with the name."""
        found = {}
        for value in self._values:
            try:
                found[value.name] = change(value, self._device, values[value.name])
            except NotPlain as error:
                error.declared = value.name
                raise error.within(value.name) from None
        return found


def _can_be_encoded(value: object) -> bool:
    try:
        encode(value)
    except TypeError:
        return False
    return True
