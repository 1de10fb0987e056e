"""What people write in YAML, read into a model, or refused with file, line and what is allowed there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from userdev.documents import parse, read_text
from userdev.errors import UserError, meant

M = TypeVar("M", bound="Written")

Place = tuple[str | int, ...]
"""Where something stands in a document: keys and indices."""

MOST_MISTAKES = 5
"""Mistakes that are told at once."""


class Written(BaseModel):
    """A table of a document, of which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, given: Any) -> Any:
        allowed = [field.alias or name for name, field in cls.model_fields.items()]
        for key in given if isinstance(given, dict) else ():
            if key not in allowed and key not in cls.model_fields:
                raise PydanticCustomError("unknown_key", "{what}", {"what": unknown("key", key, allowed), "key": key})
        return given


class WrittenDocument(NamedTuple, Generic[M]):
    """A document as a model, and where its parts stand."""

    value: M
    source: str
    root: yaml.Node

    def at(self, *place: str | int) -> str:
        """FILE:LINE of a part: that of the nearest one around it, where it is not there itself."""
        return f"{self.source}:{_line(self.root, place)}"

    def refuse(self, place: Place, what: str, *, hint: str = "") -> UserError:
        """The error for a part with which something is wrong."""
        return UserError(f"{self.at(*place)}: {what}", hint=hint)


def read_document(model: type[M], path: Path, what: str) -> WrittenDocument[M]:
    """A file as `model`; `what` it is, for the error.

    Raises:
        UserError: it cannot be read, is no YAML, has a key twice, or is not what the model says; each with its line.
    """
    value, root = read_table(path, what, model.model_fields)
    try:
        return WrittenDocument(model.model_validate(value), str(path), root)
    except ValidationError as error:
        raise refused(str(path), root, error.errors()) from None


def read_table(path: Path, what: str, keys: Iterable[str]) -> tuple[dict[str, Any], yaml.Node]:
    """The table in a file, and where its parts stand; of `keys` it may have, for the error.

    Raises:
        UserError: it cannot be read, is no YAML, no table, or has a key twice; each with its line.
    """
    value, root = parse(read_text(path, what), str(path))
    if not isinstance(value, dict) or root is None:
        raise UserError(f"{path}:1: a {what} is a table: {', '.join(keys)}")
    _refuse_twice(str(path), root)
    return value, root


def parse_list(model: type[M], text: str, source: str) -> list[M]:
    """A YAML text that is a list of `model`; `source` is its name in errors.

    Raises:
        UserError: as `read_document`.
    """
    value, root = parse(text, source)
    if not isinstance(value, list) or root is None:
        raise UserError(f"{source}:1: it is a list of entries, each with: {', '.join(model.model_fields)}")
    _refuse_twice(source, root)
    try:
        return TypeAdapter(list[model]).validate_python(value)  # type: ignore[valid-type]
    except ValidationError as error:
        raise refused(source, root, error.errors()) from None


def refused(source: str, root: yaml.Node, mistakes: Sequence[ErrorDetails]) -> UserError:
    """The error for what a model says of a document, each mistake with its line."""
    told = [_mistake(source, root, dict(each)) for each in mistakes]
    more = f"\nand {len(told) - MOST_MISTAKES} more" if len(told) > MOST_MISTAKES else ""
    return UserError("\n".join(told[:MOST_MISTAKES]) + more)


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that nobody knows, with those that are allowed."""
    names = sorted(allowed)
    return f"there is no {kind} {name!r}; {meant(str(name), names)}there are: {', '.join(names) or 'none'}"


def _mistake(source: str, root: yaml.Node, error: dict[str, Any]) -> str:
    place: Place = error["loc"]
    if error["type"] == "unknown_key":
        return f"{source}:{_line(root, (*place, error['ctx']['key']))}: {error['msg']}"
    where = ".".join(str(word) for word in place)
    message = error["msg"].removeprefix("Value error, ")
    return f"{source}:{_line(root, place)}: {f'{where}: ' if where else ''}{message}"


def _line(root: yaml.Node, place: Sequence[str | int]) -> int:
    node = root
    line = root.start_mark.line
    for word in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(word)), None)
            if found is None:
                continue  # the name that a model gives one of several kinds
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(word, int) and word < len(node.value):
            node = node.value[word]
            line = node.start_mark.line
    return int(line) + 1


def _refuse_twice(source: str, root: yaml.Node) -> None:
    for node, key in _twice(root):
        raise UserError(f"{source}:{node.start_mark.line + 1}: the key {key!r} is there twice")


def _twice(node: yaml.Node) -> Iterator[tuple[yaml.Node, str]]:
    """Keys that a table has a second time: YAML takes the last one, in silence."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                yield key, key.value
            seen.add(str(key.value))
            yield from _twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _twice(child)
