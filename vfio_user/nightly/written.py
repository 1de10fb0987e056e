"""What people write for a night, in YAML: read into a model, or refused with file, line and what is allowed there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

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
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key", "{what}", {"what": unknown("key", key, cls.model_fields), "key": key}
                )
        return given


class Document(NamedTuple, Generic[M]):
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


def read_document(model: type[M], path: Path, what: str) -> Document[M]:
    """A file as `model`; `what` it is, for the error.

    Raises:
        UserError: it cannot be read, is no YAML, has a key twice, or is not what the model says; each with its line.
    """
    value, root = parse(read_text(path, what), str(path))
    if not isinstance(value, dict) or root is None:
        raise UserError(f"{path}:1: a {what} is a table: {', '.join(model.model_fields)}")
    for node, key in _twice(root):
        raise UserError(f"{path}:{node.start_mark.line + 1}: the key {key!r} is there twice")
    try:
        return Document(model.model_validate(value), str(path), root)
    except ValidationError as error:
        mistakes = [_mistake(path, root, dict(each)) for each in error.errors()]
        more = f"\nand {len(mistakes) - MOST_MISTAKES} more" if len(mistakes) > MOST_MISTAKES else ""
        raise UserError("\n".join(mistakes[:MOST_MISTAKES]) + more) from None


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that nobody knows, with those that are allowed."""
    names = sorted(allowed)
    return f"there is no {kind} {name!r}; {meant(str(name), names)}there are: {', '.join(names) or 'none'}"


def _mistake(path: Path, root: yaml.Node, error: dict[str, Any]) -> str:
    place: Place = error["loc"]
    if error["type"] == "unknown_key":
        return f"{path}:{_line(root, (*place, error['ctx']['key']))}: {error['msg']}"
    where = ".".join(str(word) for word in place)
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}:{_line(root, place)}: {f'{where}: ' if where else ''}{message}"


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
