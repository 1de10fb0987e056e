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
V = TypeVar("V")

Place = tuple[str | int, ...]
"""Where something stands in a document: keys and indices."""

MOST_MISTAKES = 5
"""Mistakes that are told at once."""

_SHOULD_BE = "Input should be "
_SHAPES = {
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
    "mapping_type": "a table",
    "list_type": "a list",
    "tuple_type": "a list",
}
"""Kinds of mistakes that are about the shape of a value: what it should be, in the words of YAML."""
_AMOUNTS = {
    "missing": "it is missing",
    "too_short": "it has {actual_length}, and needs at least {min_length}",
    "too_long": "it has {actual_length}, and takes at most {max_length}",
    "string_too_short": "it is too short for a text of at least {min_length}",
    "string_too_long": "it is too long for a text of at most {max_length}",
}
"""Kinds of mistakes that are about what is not there, or too much of it: what is wrong, in the words of YAML."""
_NAMES: dict[type, str] = {dict: "a table", list: "a list", tuple: "a list", set: "a set"}


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


class WrittenDocument(NamedTuple, Generic[V]):
    """A document as a model, or as it is, and where its parts stand."""

    value: V
    source: str
    root: yaml.Node

    def at(self, *place: str | int) -> str:
        """FILE:LINE of a part: that of the nearest one around it, where it is not there itself."""
        return f"{self.source}:{_locate(self.root, place)[1]}"

    def refuse(self, place: Place, what: str, *, hint: str = "") -> UserError:
        """The error for a part with which something is wrong."""
        return self.refuse_all([(place, what, hint)])

    def refuse_all(self, mistakes: Iterable[tuple[Place, str, str]]) -> UserError:
        """The error for several parts: where each is, what is wrong with it, and a hint or ""."""
        found = list(mistakes)
        hints = dict.fromkeys(hint for _, _, hint in found[:MOST_MISTAKES] if hint)
        return UserError(_at_once([f"{self.at(*place)}: {what}" for place, what, _ in found]), hint="\n  ".join(hints))


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
    refuse_unmeant(str(path), root)
    return value, root


def parse_list(model: type[M], text: str, source: str, *, unique: str) -> list[M]:
    """A YAML text that is a list of `model`; `source` is its name in errors.

    Raises:
        UserError: as `read_document`, or two have the same value of their field `unique`.
    """
    value, root = parse(text, source)
    if not isinstance(value, list) or root is None:
        raise UserError(f"{source}:1: it is a list of entries, each with: {', '.join(model.model_fields)}")
    refuse_unmeant(source, root)
    try:
        found: list[M] = TypeAdapter(list[model]).validate_python(value)  # type: ignore[valid-type]
    except ValidationError as error:
        raise refused(source, root, error.errors()) from None
    first: dict[object, int] = {}
    for index, entry in enumerate(found):
        name = getattr(entry, unique)
        if first.setdefault(name, index) != index:
            here, there = (f"{source}:{_locate(root, (each, unique))[1]}" for each in (index, first[name]))
            raise UserError(f"{here}: the {unique} {name!r} is that of the entry at {there} already")
    return found


def each_once(what: str, names: Iterable[str]) -> None:
    """Refuse, from a validator of a model, a name that is there twice.

    Raises:
        ValueError: there is one.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {what} {name!r} is there twice")
        seen.add(name)


def refused(source: str, root: yaml.Node | None, mistakes: Sequence[ErrorDetails]) -> UserError:
    """The error for what a model says of a document, each mistake with its line."""
    found = [_Mistake.of(root, dict(each)) for each in mistakes]
    inside = {each.place[:depth] for each in found for depth in range(len(each.place))}
    told: list[str] = []
    for (where, line), at_once in _by_place(each for each in found if not (each.is_shape and each.place in inside)):
        begin = f"{source}:{line}: {f'{where}: ' if where else ''}"
        wanted = list(dict.fromkeys(each.wanted for each in at_once if each.wanted))
        if wanted:
            told.append(f"{begin}{_SHOULD_BE}{' or '.join(wanted)}, not {at_once[0].given}")
        told += dict.fromkeys(f"{begin}{each.what}" for each in at_once if not each.wanted)
    return UserError(_at_once(told))


def _at_once(told: Sequence[str]) -> str:
    """As many mistakes as one reads, a line each."""
    more = f"\nand {len(told) - MOST_MISTAKES} more" if len(told) > MOST_MISTAKES else ""
    return "\n".join(told[:MOST_MISTAKES]) + more


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that nobody knows, with those that are allowed."""
    names = sorted(allowed)
    return f"there is no {kind} {name!r}; {meant(str(name), names)}there are: {', '.join(names) or 'none'}"


class _Mistake(NamedTuple):
    """What a model says of a part of a document."""

    place: Place
    """As the document has it: without the names that a model gives the kinds of which a value may be."""
    line: int
    where: str
    wanted: str
    """What the value should be; "": `what` is all that there is to say."""
    given: str
    what: str
    is_shape: bool
    """Whether a value of another shape would have been looked into. Where several kinds may stand there, and one was,
    that one was meant."""

    @classmethod
    def of(cls, root: yaml.Node | None, error: dict[str, Any]) -> _Mistake:
        """From an error of pydantic's."""
        kind, place, said = error["type"], error["loc"], error["msg"].removeprefix("Value error, ")
        given = _shown(error["input"])
        if kind == "unknown_key":
            words, line = _locate(root, (*place, error["ctx"]["key"]))
            return cls(words, line, "", "", given, said, False)
        words, line = _locate(root, place)
        if kind == "missing":
            words = (*words, place[-1])
        if kind in _AMOUNTS:
            said = _AMOUNTS[kind].format(**error.get("ctx", {}))
        if kind == "string_pattern_mismatch":
            said = f"{said}, not {given}"
        is_wanted = said.startswith(_SHOULD_BE)
        wanted = _SHAPES.get(kind) or said.removeprefix(_SHOULD_BE).partition(", unable")[0] if is_wanted else ""
        return cls(words, line, ".".join(map(str, words)), wanted, given, said, kind.endswith("_type"))


def _by_place(mistakes: Iterable[_Mistake]) -> Iterable[tuple[tuple[str, int], list[_Mistake]]]:
    found: dict[tuple[str, int], list[_Mistake]] = {}
    for each in mistakes:
        found.setdefault((each.where, each.line), []).append(each)
    return found.items()


def _shown(value: object) -> str:
    """A value that somebody has written, for an error."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"  # of which Python may refuse to write the digits
    shape = next((name for kind, name in _NAMES.items() if isinstance(value, kind)), "")
    return shape or f"{value!r:.100}"


def _locate(root: yaml.Node | None, place: Place) -> tuple[Place, int]:
    """Where a part is: its place as far as the document has it, and the line of that."""
    node, line = root, root.start_mark.line if root is not None else 0
    words: list[str | int] = []
    for word in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(word)), None)
            if found is None:
                continue  # the name that a model gives one of several kinds, or what is missing
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(word, int) and word < len(node.value):
            node = node.value[word]
            line = node.start_mark.line
        else:
            continue
        words.append(word)
    return tuple(words), line + 1


def refuse_unmeant(source: str, root: yaml.Node) -> None:
    """Refuse a document of which a table has a key twice, or in which a text is empty: nobody has meant that.

    Raises:
        UserError: one has, or is.
    """
    for node, key in _twice(root):
        raise UserError(f"{source}:{node.start_mark.line + 1}: the key {key!r} is there twice")
    for place, node in _empty(root, ()):
        where = ".".join(map(str, place))
        raise UserError(f"{source}:{node.start_mark.line + 1}: {where} is empty: say what it is, or leave it out")


def _empty(node: yaml.Node, place: Place) -> Iterator[tuple[Place, yaml.Node]]:
    """Texts of nothing, or of spaces alone: without quotation marks that is no text, but null."""
    match node:
        case yaml.MappingNode():
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    yield from _empty(key, (*place, key.value))
                yield from _empty(value, (*place, str(key.value)))
        case yaml.SequenceNode():
            for number, value in enumerate(node.value):
                yield from _empty(value, (*place, number))
        case yaml.ScalarNode() if node.style is not None and not node.value.strip():
            yield place, node


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
