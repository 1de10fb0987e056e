"""What a device class declares in its body: found once, subclasses before bases, in the order of writing."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, cast

from userdev.errors import DeclarationError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound="Declaration")

MADE = "__declared__"
"""Name in a class body of the list of what was declared there. It is gone when the class is there."""


OURS = ("userdev.", "vfio_user.device", "vhost_user.device")
"""Modules whose frames are not an author's."""


class Source(NamedTuple):
    """A place in an author's file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Declaration:
    """Something written as a class attribute and known by its name there."""

    name: str = ""
    owner: type | None = None
    """The class in whose body it is, once that is there."""

    def __init__(self) -> None:
        frame = authors_frame()
        self.source = source_of(frame)
        if "__qualname__" in frame.f_locals:  # a class body
            frame.f_locals.setdefault(MADE, []).append(self)

    if not TYPE_CHECKING:  # who has types checked is told there

        def __call__(self, *_: object, **__: object) -> NoReturn:
            """Tell an author that this is what was declared, and no function."""
            raise called(self, f", declared at {self.source},", self.call_instead)

    @property
    def call_instead(self) -> str:
        """What its author may have meant who calls it."""
        return "what a function is to do is in one of another name"

    def mistake(self) -> str:
        """The mistake in it, whatever else the class has, in words for its author; nothing: it may be used."""
        return ""

    def __set_name__(self, owner: type, name: str) -> None:
        # A second attribute for the same thing (the function that completes a register) does not rename it.
        self.name = self.name or name
        self.owner = self.owner or owner


def declarations(device_class: type, kind: type[T]) -> list[T]:
    """All declarations of `kind`; a subclass replaces one of its base by using the name again."""
    found: dict[str, T] = {}
    for base in reversed(device_class.__mro__):
        for name, value in vars(base).items():
            if not isinstance(value, kind):
                found.pop(name, None)
            elif value.name == name:
                found[name] = value
    return list(found.values())


def by_keyword(declare: F) -> F:
    """Have what makes a declaration, of keywords alone, say so where it is called without them, as by `@register`.

    Raises:
        DeclarationError: (when that is called) there are arguments by position.
    """
    required = [
        f"{each.name}=..." for each in inspect.signature(declare).parameters.values() if each.default is each.empty
    ]

    @wraps(declare)
    def checked(*misplaced: object, **said: object) -> object:
        if not misplaced:
            return declare(**said)
        name = declare.__name__
        how = f"write {name}({', '.join(required)})"
        if inspect.isroutine(misplaced[0]):
            raise without_parentheses(name, misplaced[0], how.replace(name, f"@{name}"))
        what = f"{name} takes no arguments by position, such as {misplaced[0]!r} ({source_of(authors_frame())})"
        raise DeclarationError(what, hint=how)

    return cast(F, checked)


def without_parentheses(name: str, function: Any, hint: str) -> DeclarationError:
    """A decorator of that name stands above a function as it is, and has to be called."""
    where = source_of(authors_frame())
    return DeclarationError(f"{function.__qualname__}: @{name} is written without parentheses ({where})", hint=hint)


def wrapper_of(body: type, made: Declaration) -> tuple[str, str] | None:
    """What stands in a class in the place of a declaration, as it is written above: its name, and the decorator's."""
    for name, value in vars(body).items():
        if any(getattr(value, inner, None) is made for inner in ("fget", "__func__", "func")):
            return name, type(value).__name__
    return None


def no_flag(**flags: object) -> str:
    """The mistake in words that say yes or no, in a sentence: any text would say yes. "" where there is none."""
    wrong = next((name for name, value in flags.items() if not isinstance(value, bool)), None)
    return f"{wrong} is {flags[wrong]!r}: it has to be True or False" if wrong else ""


def called(what: object, said: str, hint: str, rename: str = "give it another name") -> DeclarationError:
    """The error for a call of what an author has declared; most often that hides the function which declares it.

    said: where it was declared, behind its name
    hint: what else to do, where it hides nothing; `rename`, where it hides something
    """
    frame = authors_frame()
    body = frame.f_locals.get("__qualname__")
    name = next((name for name, value in frame.f_locals.items() if value is what), "") or getattr(what, "name", "")
    if body is not None and str(getattr(frame.f_globals.get(name), "__module__", "")).startswith(OURS):
        hint = f"it hides {name}, which declares more: {rename}"
    which = f"{body}.{name}" if body is not None else name
    return DeclarationError(f"{which}{said} is no function, and is called ({source_of(frame)})", hint=hint)


def runs_later(function: Any) -> str:
    """The kind of function this is, if a call runs nothing of it; else empty."""
    plain = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    return next((what for is_one, what in _RUN_LATER.items() if is_one(plain)), "")


_RUN_LATER = {
    inspect.iscoroutinefunction: "a coroutine function (async def), of which a call runs nothing",
    inspect.isasyncgenfunction: "an asynchronous generator (async def, yield), of which a call runs nothing",
    inspect.isgeneratorfunction: "a generator (yield), of which a call runs nothing",
}


def authors_frame() -> FrameType:
    """The innermost frame that is none of ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(OURS):
        frame = frame.f_back
    assert frame is not None
    return frame


def source_of(frame: FrameType) -> Source:
    """The line that a frame is at."""
    return Source(frame.f_code.co_filename, frame.f_lineno)
