"""Configuration space of a device, declared: fields in the order of the virtio specification's structure.

On an instance a field is an attribute, a number or bytes, which takes nothing that its bytes do not hold. The driver
reads it as it is then, little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

from userdev.counted import counted
from userdev.declare.declared import authors_frame, declarations, no_flag, source_of
from userdev.declare.state import State
from userdev.declare.values import shown
from userdev.errors import DeclarationError

MAX_CONFIG = 256
"""Bytes that a front-end asks for at most (QEMU, VHOST_USER_MAX_CONFIG_SIZE)."""

WIDTHS = (1, 2, 4, 8)

F = TypeVar("F", int, bytes)


class ConfigField(State):
    """A field of configuration space: declared state that has a place there."""

    offset: int
    """Where it is; known once its class is there (`place`)."""

    def __init__(self, size: int, default: int | bytes, offset: int | None, writable: bool) -> None:
        super().__init__(
            default,
            keep=not writable,
            bits=8 * size if type(default) is int and type(size) is int and size > 0 else None,
            check=self._fits if type(default) is bytes else None,
        )
        self.size = size
        self.writable = writable
        self.wanted = offset

    def mistake(self) -> str:  # noqa: D102 - Declaration has it
        if type(self.default) is int and self.size not in WIDTHS:
            return f"a number has 1, 2, 4 or 8 bytes, not {self.size!r}"
        if type(self.default) is int and not 0 <= self.default < 1 << 8 * self.size:
            most = (1 << 8 * self.size) - 1
            return f"its value is {self.default}, and {counted(self.size, 'byte')} hold 0 to {most}"
        if type(self.default) is bytes and (type(self.size) is not int or len(self.default) != self.size):
            return f"its value has {len(self.default)} bytes, and it is said to have {self.size!r}"
        if type(self.default) not in (int, bytes):
            return f"a field is a number or bytes, not {self.default!r}"
        if self.wanted is not None and (type(self.wanted) is not int or not 0 <= self.wanted < MAX_CONFIG):
            return f"an offset is from 0 to {MAX_CONFIG - 1}, not {self.wanted!r}"
        return no_flag(writable=self.writable) or super().mistake()

    def __set__(self, device: object, value: object) -> None:
        """Take a value that an author assigns: a front-end would be refused what the field has no room for.

        Raises:
            DeclarationError: the field does not hold it; with the line that assigns it.
        """
        try:
            if isinstance(value, int) is not isinstance(self.default, int):
                raise self._unfit(shown(value))
            self.encode(value)
        except ValueError:
            which = f"{type(device).__qualname__}.{self.name}"
            what = f"{which} is set to {shown(value)}, and holds {self._holds} ({source_of(authors_frame())})"
            raise DeclarationError(what, hint=f"the field is declared at {self.source}") from None
        vars(device)[self.name] = value

    @property
    def _holds(self) -> str:
        """What it has room for."""
        if isinstance(self.default, bytes):
            return counted(self.size, "byte")
        return f"a number of {counted(self.size, 'byte')}, 0 to {(1 << 8 * self.size) - 1}"

    def encode(self, value: Any) -> bytes:
        """A value's bytes.

        Raises:
            ValueError: the field has no room for it.
        """
        if isinstance(value, int):
            try:
                return value.to_bytes(self.size, "little")
            except OverflowError:
                raise self._unfit(f"{value:#x}") from None
        if not isinstance(value, (bytes, bytearray)) or len(value) != self.size:
            raise self._unfit(shown(value))
        return bytes(value)

    def _unfit(self, value: str) -> ValueError:
        """What is wrong with a value that has come to be there, and which field that is."""
        kind = "a number" if isinstance(self.default, int) else "bytes"
        return ValueError(f"{self.name} is {value}, and its field is {kind} of {self.size} bytes ({self.source})")

    def decode(self, data: bytes) -> int | bytes:
        """The value that bytes are."""
        return int.from_bytes(data, "little") if isinstance(self.default, int) else data

    def _fits(self, _: object, value: object) -> bool:
        return isinstance(value, (bytes, bytearray)) and len(value) == self.size


def config_field(size: int, value: F, *, offset: int | None = None, writable: bool = False) -> F:
    """Declare a field of configuration space: `capacity: int = config_field(8, 0)`.

    size: bytes; 1, 2, 4 or 8 of a number.
    value: what it is after power-on, a number or bytes.
    offset: where it is; directly behind the field before it otherwise, as the specification's structures are.
    writable: the driver may write it (`on_config` is told); a reset brings `value` back.
    """
    return cast(F, ConfigField(size, value, offset, writable))


def place(fields: Sequence[ConfigField]) -> Iterator[tuple[ConfigField, str]]:
    """Give every field its offset; the fields that cannot have theirs, and why."""
    end = 0
    taken: list[tuple[int, int, str]] = []
    for field in fields:
        field.offset = end if field.wanted is None else field.wanted
        end = field.offset + field.size
        if end > MAX_CONFIG:
            yield field, f"ends at {end}, and configuration space has {MAX_CONFIG} bytes"
        for first, after, name in taken:
            if field.offset < after and first < end:
                yield field, f"overlaps {name} in configuration space, at {max(first, field.offset)}"
        taken.append((field.offset, end, field.name))


def config_size(device_class: type) -> int:
    """Bytes of configuration space that a class declares."""
    return max((field.offset + field.size for field in declarations(device_class, ConfigField)), default=0)


class ConfigSpace:
    """The configuration space of one device, as its front-end reads and writes it (GET_CONFIG, SET_CONFIG)."""

    def __init__(self, device: object, fields: Sequence[ConfigField]) -> None:
        self._device = device
        self._fields = fields
        self.size = config_size(type(device))

    def read(self) -> bytes:
        """All of it, as it is now.

        Raises:
            ValueError: a field has a value that it has no room for.
        """
        space = bytearray(self.size)
        for field in self._fields:
            space[field.offset : field.offset + field.size] = field.encode(getattr(self._device, field.name))
        return bytes(space)

    def write(self, offset: int, data: bytes, *, read_only_too: bool = False) -> list[str]:
        """Have the driver's bytes in the fields that they are for; the names of those fields.

        read_only_too: it is a migration that sets them.

        Raises:
            ValueError: not all of them are for fields that may be written; then nothing has changed.
        """
        space = bytearray(self.read())
        end = offset + len(data)
        if end > len(space):
            raise ValueError(f"{len(data)} bytes at {offset} of a configuration space of {len(space)}")
        space[offset:end] = data
        met = [field for field in self._fields if field.offset < end and offset < field.offset + field.size]
        if not read_only_too and (fixed := [field.name for field in met if not field.writable]):
            raise ValueError(f"{', '.join(fixed)} of configuration space cannot be written")
        for field in met:
            setattr(self._device, field.name, field.decode(bytes(space[field.offset : field.offset + field.size])))
        return [field.name for field in met]
