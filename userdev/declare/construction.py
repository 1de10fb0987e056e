"""What is done when the construction of an object is over, however deep its class."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

_UNDER_WAY = "_under_construction"


def followed_by(constructor: Callable[..., None], finish: Callable[[Any], None]) -> Callable[..., None]:
    """A constructor that calls `finish` on the object when it is done, unless it is called by another such one."""

    @wraps(constructor)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        inside = _UNDER_WAY in vars(self)
        vars(self)[_UNDER_WAY] = True
        try:
            constructor(self, *args, **kwargs)
        finally:
            if not inside:
                del vars(self)[_UNDER_WAY]
        if not inside:
            finish(self)

    return construct
