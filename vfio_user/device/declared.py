"""What a device class declares in its body: found once, subclasses before bases, in the order of writing."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", bound="Declaration")


class Declaration:
    """Something written as a class attribute and known by its name there."""

    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        # A second attribute for the same thing (the function that completes a register) does not rename it.
        self.name = self.name or name


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
