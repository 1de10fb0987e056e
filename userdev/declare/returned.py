"""Values of a device that are not what they have to be, as of a function that has no `return`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from userdev.declare.declared import authors_frame, source_of
from userdev.declare.values import shown

T = TypeVar("T")


class WrongValue(TypeError):
    """A device has for a value what it may not have; says where its author has written that, as no frame does."""


class WrongReturn(WrongValue):
    """A device's function has returned what it may not, as one without `return` does."""

    def __init__(self, function: Callable[..., object], returned: object, wanted: str) -> None:
        """`wanted`: what it has to return."""
        super().__init__(f"{written_at(function)} has returned {shown(returned)}: it has to return {wanted}")


def check_by(on_check: Callable[[T], object], values: T) -> None:
    """Have an author look at a saved state: what it says no by is what it raises, and not what it returns.

    Raises:
        WrongReturn: it has returned something, as one does that is meant to be a `check` of `state`.
    """
    if (returned := on_check(values)) is not None:
        raise WrongReturn(on_check, returned, "nothing: what is refused is refused by raising ProtocolError")


def check_work(asked: str, work: object) -> None:
    """Look whether work that is done later can be: by then nobody knows who asked for it.

    asked: the name of what is called with it.

    Raises:
        WrongValue: it is no function, as where parentheses stand behind it.
    """
    if not callable(work):
        where = source_of(authors_frame())
        raise WrongValue(f"{asked} is given {shown(work)} ({where}): give it a function, without parentheses behind it")


def written_at(function: Callable[..., object]) -> str:
    """The name of a function and where it is written, under whatever binds it or its arguments."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{getattr(function, '__qualname__', function)}{where}"
