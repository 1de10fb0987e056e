"""Values of a device that are not what they have to be, as of a function that has no `return`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from userdev.declare.values import shown


class WrongValue(TypeError):
    """A device has for a value what it may not have; says where its author has written that, as no frame does."""


class WrongReturn(WrongValue):
    """A device's function has returned what it may not, as one without `return` does."""

    def __init__(self, function: Callable[..., object], returned: object, wanted: str) -> None:
        """`wanted`: what it has to return."""
        super().__init__(f"{_written(function)} has returned {shown(returned)}: it has to return {wanted}")


def _written(function: Callable[..., object]) -> str:
    """The name of a function and where it is written, under whatever binds it or its arguments."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{getattr(function, '__qualname__', function)}{where}"
