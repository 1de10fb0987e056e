"""A map of registers as a file, YAML or JSON::

    registers:
      - {region: 0, offset: 0x08, width: 4, name: compute}
      - {region: 0, offset: 0x100, width: 4, name: queue, count: 16, stride: 8}

`region` is 4 for BAR4, 7 for config space; a list without the outer key will do as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError, model_validator

from userdev.documents import parse, read_text
from userdev.errors import UserError
from userdev.written import Written, refuse_unmeant, refused
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap

_EXAMPLE = "registers: [{region: 0, offset: 8, width: 4, name: compute}]"
Index = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Entry(Written):
    """One register, or `count` of them every `stride` bytes; `bar` is another word for `region`."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    region: Index | None = None
    bar: Index | None = None
    offset: Index
    name: str
    width: Positive = 4
    count: Positive = 1
    stride: Positive | None = None

    @model_validator(mode="after")
    def _is_somewhere(self) -> _Entry:
        if self.region is None and self.bar is None:
            raise ValueError("say where it is: region: 0 is BAR0, 7 configuration space")
        return self

    @property
    def register(self) -> NamedRegister:
        """The same for a map."""
        region = self.region if self.region is not None else self.bar
        assert region is not None
        return NamedRegister(region, self.offset, self.name, self.width, self.count, self.stride or 0)


class _Registers(Written):
    """The document."""

    registers: tuple[_Entry, ...] | None = None


def load_registers(path: str | Path) -> RegisterMap:
    """The map in a YAML or JSON file.

    Raises:
        UserError: it cannot be read, or is no map; with the line of each mistake.
    """
    source = str(path)
    content, root = parse(read_text(path, "register map"), source)
    if root is not None:
        refuse_unmeant(source, root)
    try:
        given = {} if content is None else {"registers": content} if isinstance(content, list) else content
        return RegisterMap(entry.register for entry in _Registers.model_validate(given).registers or ())
    except ValidationError as error:
        what = refused(source, root, error.errors())
        raise UserError(str(what), hint=_EXAMPLE) from None
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
