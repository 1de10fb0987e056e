"""Registers, declared where their handlers are written.

    @register(bar=0, offset=0x0, width=4)
    def ring(self, value: int) -> None:        # takes a value: the writer
        self.total += value

    @ring.reader
    def _(self) -> int:                        # takes none: the reader
        return self.total

    scratch: int = stored_register(bar=0, offset=0x4, width=4)

A register that has no reader reads as zero; one without writer ignores writes. Handlers run on the session's thread,
one at a time, and get exactly the register's value. An access that is exactly one register costs one dictionary look-up
and the call of the handler; all others are composed (see `vfio_user.device.region`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast, overload

from userdev.declare.authors_code import assigned_at
from userdev.declare.declared import Declaration, Source, authors_frame, by_keyword, no_flag, runs_later, source_of
from userdev.declare.returned import WrongReturn, WrongValue
from userdev.declare.state import State, ValueCheck
from userdev.declare.values import shown
from userdev.errors import DeclarationError
from vfio_user.device.hooks import Hooks

D = TypeVar("D", bound=Hooks)
WIDTHS = (1, 2, 4, 8)
log = logging.getLogger("vfio_user.device")


class Fit:
    """Makes a reader's value one of so many bytes: a negative one is its two's complement, one too wide is cut, which
    is said.
    """

    def __init__(self, name: str, device: Hooks, width: int, origin: Callable[..., object] | Source) -> None:
        """`origin`: the author's function that the values are from, or where the register is declared."""
        self.name = name
        self._origin = origin
        self._device = type(device)
        self._device_name = self._device.__qualname__
        self._width = width
        self._mask = (1 << 8 * width) - 1
        self._said = False

    def __call__(self, value: int) -> int:
        """The value, cut to the register's bits.

        Raises:
            WrongValue: it is something else than an int, as of a reader that returns nothing.
        """
        if not isinstance(value, int):
            raise self._wrong(value) from None
        cut = value & self._mask
        if not (-self._mask // 2 <= value <= self._mask or self._said):
            self._said = True  # once is enough: a guest may read it for ever
            log.error(
                "%s.%s is %#x, more than its %d bytes hold: the client reads %#x. %s it cut, or make it wider%s",
                *(self._device_name, self.name, value, self._width, cut),
                *(("Store", self._places) if isinstance(self._origin, Source) else ("Return", "")),
            )
        return cut

    @property
    def _places(self) -> str:
        return assigned_at(self._device, self.name)

    def _wrong(self, value: object) -> WrongValue:
        which = f"{self._device_name}.{self.name}"
        if isinstance(self._origin, Source):
            what = f"{which} is {shown(value)}, not an int of {self._width} bytes ({self._origin}){self._places}"
            return WrongValue(what)
        return WrongReturn(self._origin, value, f"the value of {which}, an int of {self._width} bytes")


class Cell(NamedTuple):
    """One register of one device: where it is, and what to call."""

    region: int
    offset: int
    widths: tuple[int, ...]
    """Widths in bytes of the accesses that carry its whole value; the largest is its extent."""
    read: Callable[[], int]
    write: Callable[[int], None]
    fit: Fit
    merge: bool

    @property
    def width(self) -> int:
        """Bytes that it covers."""
        return max(self.widths)


def read_as_zero() -> int:
    """The reader of a register that has none."""
    return 0


def ignore_write(value: int) -> None:
    """The writer of a register that has none."""


@dataclass(frozen=True)
class RegisterPlace:
    """The place where a register, or an array of them, is declared."""

    bar: int
    offset: int
    widths: tuple[int, ...]
    count: int | None
    stride: int
    """0: the width."""
    merge: bool

    def mistake(self) -> str:
        """The mistake in it by itself, in a sentence; "" where there is none."""
        if not self.widths or any(each not in WIDTHS for each in self.widths):
            return f"a register is 1, 2, 4 or 8 bytes wide, not {' or '.join(map(repr, self.widths))}"
        if wrong_flag := no_flag(merge=self.merge):
            return wrong_flag
        count, stride = 1 if self.count is None else self.count, self.stride or self.width
        wrong = any(type(each) is not int for each in (self.bar, self.offset, count, stride))
        if wrong or min(self.bar, self.offset, count - 1, stride - self.width) < 0:
            return (
                f"no register can be at offset {self.offset!r} of BAR {self.bar!r}, count {count!r}, stride {stride!r}"
            )
        return ""

    @property
    def width(self) -> int:
        """Bytes of one register."""
        return max(self.widths)

    def cell(self, index: int, read: Callable[[], int], write: Callable[[int], None], fit: Fit) -> Cell:
        """The register of that index, with the functions to call."""
        return Cell(
            self.bar, self.offset + index * (self.stride or self.width), self.widths, read, write, fit, self.merge
        )


class BaseRegister(Declaration):
    """A declared register, or array of registers."""

    def __init__(self, place: RegisterPlace) -> None:
        Declaration.__init__(self)
        self.place = place

    def mistake(self) -> str:
        """The mistake in the place, in a sentence; "" where there is none."""
        return self.place.mistake()

    def cells(self, device: Hooks) -> Iterator[Cell]:
        """Its registers, bound to a device."""
        raise NotImplementedError


class HandledRegister(BaseRegister):
    """A register that functions implement."""

    def __init__(self, place: RegisterPlace) -> None:
        super().__init__(place)
        self._read: Callable[..., int] | None = None
        self._write: Callable[..., None] | None = None

    def cells(self, device: Hooks) -> Iterator[Cell]:
        """A cell for each register of the array, or for the one; functions are bound to `device`."""
        read = self._read.__get__(device) if self._read else None
        write = self._write.__get__(device) if self._write else None
        place, fit = self.place, Fit(self.name, device, self.place.width, self._read or self.source)
        if place.count is None:
            yield place.cell(0, read or read_as_zero, write or ignore_write, fit)
            return
        for index in range(place.count):
            yield place.cell(
                index,
                partial(read, index) if read else read_as_zero,
                partial(write, index) if write else ignore_write,
                fit,
            )

    @property
    def call_instead(self) -> str:
        """The functions that complete it."""
        return f"@{self.name}.reader and @{self.name}.writer complete it; what calls it calls a function of its own"

    def _take(self, function: Callable[..., Any]) -> None:
        """The function declared first: the writer if it takes a value (self, [index,] value), else the reader."""
        _refuse_no_function(function)
        self.name = function.__name__  # not that of a reader, which may be `_` as often as one likes
        if self.name == "_":
            raise _mistake(function, "a register needs a name of its own", "`_` is for the function that completes it")
        _refuse_unfit(function)
        if _arguments(function) == len(self._reading):
            self._read = function
        else:
            self._set_writer(function)

    def _set_reader(self, function: Callable[..., Any]) -> None:
        self._check(function, "reader", self._reading, self._read)
        self._read = function

    def _set_writer(self, function: Callable[..., Any]) -> None:
        self._check(function, "writer", (*self._reading, "value"), self._write)
        self._write = function

    @property
    def _reading(self) -> tuple[str, ...]:
        """What a reader takes."""
        return ("self",) if self.place.count is None else ("self", "index")

    def _check(
        self, function: Callable[..., Any], half: str, arguments: Sequence[str], before: Callable[..., Any] | None
    ) -> None:
        _refuse_no_function(function)
        if self.owner is not None:
            where = f"{self.owner.__qualname__}, which is complete"
            raise _mistake(function, f"{self.name} belongs to {where}", "declare the whole register again")
        if before is not None:
            shape = f"({', '.join(inspect.signature(before).parameters)})"
            what = f"{self.name} has a {half} already, the function that takes {shape}"
            reading = f"({', '.join(self._reading)})"
            hint = f"keep one of the two {half}s: what takes {reading} is the reader, with a value behind it the writer"
            raise _mistake(function, what, hint)
        _refuse_unfit(function)
        if _arguments(function) != len(arguments):
            shape = f"({', '.join(arguments)})"
            raise _mistake(
                function, f"the {half} of {self.name} takes {inspect.signature(function)}", f"it gets {shape}"
            )


def _refuse_no_function(function: object) -> None:
    if not hasattr(function, "__qualname__"):
        what = f"a register is made of a function, not of a {type(function).__name__} ({source_of(authors_frame())})"
        raise DeclarationError(what, hint="take away what stands between it and the function")


def _refuse_unfit(function: Callable[..., Any]) -> None:
    if what := runs_later(function):
        raise _mistake(function, f"is {what}", "what lasts is done by call_soon and call_later")
    if isinstance(function, staticmethod | classmethod):
        raise _mistake(function, f"is a {type(function).__name__}, which is not given the device", "take self")


def _arguments(function: Callable[..., Any]) -> int:
    """How many arguments a function takes by position, or -1 for any number."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind in (each.VAR_POSITIONAL, each.KEYWORD_ONLY) and each.default is each.empty for each in parameters):
        return -1
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)


def _mistake(function: Callable[..., Any], what: str, hint: str) -> DeclarationError:
    return DeclarationError(f"{function.__qualname__}: {what} ({source_of(authors_frame())})", hint=hint)


class Register(HandledRegister, Generic[D]):
    """A register that functions implement; `reader` and `writer` add the other half of the one that `register` has
    taken.
    """

    def reader(self, function: Callable[[D], int]) -> Register[D]:
        """Make a function the reader: it takes no value and returns an int.

        Raises:
            DeclarationError: there is a reader already, or the function takes something else.
        """
        self._set_reader(function)
        return self

    def writer(self, function: Callable[[D, int], None]) -> Register[D]:
        """Make a function the writer: it takes the value.

        Raises:
            DeclarationError: there is a writer already, or the function takes something else.
        """
        self._set_writer(function)
        return self


class RegisterArray(HandledRegister, Generic[D]):
    """The same with an index: writers take (index, value), readers (index)."""

    def reader(self, function: Callable[[D, int], int]) -> RegisterArray[D]:
        """Make a function the reader: it takes the index and returns an int.

        Raises:
            DeclarationError: there is a reader already, or the function takes something else.
        """
        self._set_reader(function)
        return self

    def writer(self, function: Callable[[D, int, int], None]) -> RegisterArray[D]:
        """Make a function the writer: it takes index and value.

        Raises:
            DeclarationError: there is a writer already, or the function takes something else.
        """
        self._set_writer(function)
        return self


@dataclass(frozen=True)
class RegisterDecorator:
    """The decorator that `register` without `count` gives."""

    place: RegisterPlace

    @overload
    def __call__(self, function: Callable[[D, int], None]) -> Register[D]: ...
    @overload
    def __call__(self, function: Callable[[D], int]) -> Register[D]: ...
    def __call__(self, function: Callable[..., Any]) -> Register[Any]:
        """Make the register; by its arguments the function is the reader or the writer.

        Raises:
            DeclarationError: it can be neither.
        """
        made: Register[Any] = Register(self.place)
        made._take(function)
        return made


@dataclass(frozen=True)
class RegisterArrayDecorator:
    """The decorator that `register` with `count` gives."""

    place: RegisterPlace

    @overload
    def __call__(self, function: Callable[[D, int, int], None]) -> RegisterArray[D]: ...
    @overload
    def __call__(self, function: Callable[[D, int], int]) -> RegisterArray[D]: ...
    def __call__(self, function: Callable[..., Any]) -> RegisterArray[Any]:
        """Make the array; by its arguments the function is the reader or the writer.

        Raises:
            DeclarationError: it can be neither.
        """
        made: RegisterArray[Any] = RegisterArray(self.place)
        made._take(function)
        return made


@overload
def register(
    *, bar: int, offset: int, width: int | tuple[int, ...], merge: bool = ..., count: None = ...
) -> RegisterDecorator: ...
@overload
def register(
    *, bar: int, offset: int, width: int | tuple[int, ...], merge: bool = ..., count: int, stride: int = ...
) -> RegisterArrayDecorator: ...
@by_keyword
def register(
    *,
    bar: int,
    offset: int,
    width: int | tuple[int, ...],
    merge: bool = True,
    count: int | None = None,
    stride: int = 0,
) -> RegisterDecorator | RegisterArrayDecorator:
    """Declare a register; the function below is its writer (takes a value) or its reader (takes none).

    bar: 0 to 5, or the index of a device-specific region (9 and above).
    width: bytes, 1, 2, 4 or 8. Several, as `(4, 8)`: accesses of each of these widths carry the whole value, a narrow
        write zero-extended and a narrow read cut; the largest is the register's extent.
    merge: a write to a part of the register reads it, replaces these bytes and writes it back. False: the
        missing bytes are zero instead, as is right for doorbells and write-one-to-clear.
    count, stride: an array of registers, `stride` bytes (default: the width) from one to the next; the handlers
        take the index first.

    Raises:
        DeclarationError: it is written without its parentheses, or what is in them without names.
    """
    place = _place(bar, offset, width, count, stride, merge)
    return RegisterDecorator(place) if count is None else RegisterArrayDecorator(place)


class StoredRegister(BaseRegister, State):
    """A register that is nothing but an attribute of the device; see `stored_register`."""

    def __init__(self, place: RegisterPlace, default: int, writable: int, keep: bool, check: ValueCheck | None) -> None:
        bits = None if place.mistake() else 8 * place.width
        State.__init__(self, default, keep, bits=bits, check=check)
        self.place = place
        self.writable = writable

    def mistake(self) -> str:
        """The mistake in mask, place or default, in a sentence; "" where there is none."""
        if type(self.writable) is not int:
            return f"writable is a mask of bits, not {self.writable!r}"
        return self.place.mistake() or State.mistake(self)

    def cells(self, device: Hooks) -> Iterator[Cell]:
        """The one cell, which gets and sets the attribute; bits outside of `writable` keep what they are."""
        everything = (1 << 8 * self.place.width) - 1
        name, writable = self.name, self.writable & everything

        def write_some(value: int) -> None:
            setattr(device, name, (getattr(device, name) & ~writable) | (value & writable))

        write: Callable[[int], None] = ignore_write
        if writable == everything:
            write = partial(setattr, device, name)
        elif writable:
            write = write_some
        yield self.place.cell(
            0, partial(getattr, device, name), write, Fit(name, device, self.place.width, self.source)
        )


@by_keyword
def stored_register(
    *,
    bar: int,
    offset: int,
    width: int | tuple[int, ...],
    default: int = 0,
    writable: int = -1,
    keep: bool = False,
    check: Callable[[Any, int], bool] | None = None,
) -> int:
    """Declare a register that only stores: `scratch: int = stored_register(bar=0, offset=4, width=4)`.

    The device sees an int attribute, which is state as `state` declares it. `writable`: the bits that take what is
    written, all unless told; 0 makes it read-only for the client. `keep` and `check` are those of `state`.
    """
    return cast(int, StoredRegister(_place(bar, offset, width, None, 0, True), default, writable, keep, check))


def _place(
    bar: int, offset: int, width: int | tuple[int, ...], count: int | None, stride: int, merge: bool
) -> RegisterPlace:
    return RegisterPlace(bar, offset, width if isinstance(width, tuple) else (width,), count, stride, merge)
