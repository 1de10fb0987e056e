"""Construction of a device: whose mistake a failure is."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from userdev.declare.declared import Source
from userdev.errors import DeclarationError

C = TypeVar("C", bound=Callable[..., None])
SOURCE = "_source"
"""Class attribute: where the class is written."""


def of_declarations(constructor: C) -> C:
    """A constructor whose ValueErrors are its class's: `DeclarationError`, with the class and where it is written."""

    @wraps(constructor)
    def construct(self: object, *args: Any, **kwargs: Any) -> None:
        try:
            constructor(self, *args, **kwargs)
        except DeclarationError:
            raise
        except (ValueError, OverflowError) as error:
            source: Source | None = getattr(type(self), SOURCE, None)  # PciDevice itself has none
            where = f" ({source})" if source else ""
            hint = "its declarations contradict each other, or PCI"
            raise DeclarationError(f"{type(self).__qualname__}: {error}{where}", hint=hint) from error

    return cast(C, construct)
