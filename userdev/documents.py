"""YAML documents that people write: read whole, or refused with one error, whatever is wrong with them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from userdev.errors import UserError
from userdev.whole import read_whole

MAX_SIZE = 4 << 20
"""Bytes of a document."""
MAX_VALUES = 200_000
"""Values of a document, those counted each time that stand in it by an alias."""
MAX_LEVELS = 100
"""Brackets that are open at once. The scanner's time grows with the square of them before it gives up."""


class Document(NamedTuple):
    """A document's value, and where its parts stand."""

    value: Any
    node: yaml.Node | None
    """None: the document is empty."""


def read_text(path: str | Path, what: str) -> str:
    """The text of a file; `what` it is meant to be, for the error.

    Raises:
        UserError: it cannot be read, is no text, or more than anybody writes.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_SIZE + 1)
        if len(data) > MAX_SIZE:
            raise UserError(f"the {what} {path} has more than {MAX_SIZE >> 20} MiB")
        return data.decode()
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} {path} is no text: {error}") from None


def read_regular_file(path: str | Path, limit: int) -> bytes:
    """The content of a file that somebody else has named: one that could be waited for is not read.

    Raises:
        OSError: it cannot be read.
        UserError: it is a pipe, a device or a folder, or has more than `limit` bytes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UserError(f"{path} is no file")
        data = read_whole(fd, limit + 1)
        if len(data) > limit:
            raise UserError(f"{path} has more than {limit:,} bytes")
        return data
    finally:
        os.close(fd)


def parse(text: str, source: str) -> Document:
    """The value of a YAML text; `source` is its name in errors.

    Raises:
        UserError: it is none, with the line where that is known.
    """
    try:
        _refuse_levels(text, source)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, None)
        _refuse_bombs(node)
        return Document(loader.construct_document(node), node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise UserError(f"{source}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise UserError(f"{source}: more levels than anybody writes") from None
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        # What a tag makes of a text: a date that is none, a number of too many digits.
        raise UserError(f"{source}: {error}") from None


def _refuse_levels(text: str, source: str) -> None:
    """Count brackets wherever they stand: in a text between quotes nobody leaves that many open."""
    levels = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        levels += 1 if bracket in "[{" else -1
        if levels > MAX_LEVELS:
            raise UserError(f"{source}: more levels than anybody writes")


def _refuse_bombs(root: yaml.Node) -> None:
    """Aliases make a document of a few lines stand for more values than there is memory."""
    weights: dict[int, int] = {}

    def weigh(node: yaml.Node) -> int:
        if id(node) not in weights:
            weights[id(node)] = MAX_VALUES + 1  # one that stands in itself
            weights[id(node)] = min(MAX_VALUES + 1, 1 + sum(weigh(child) for child in _children(node)))
        return weights[id(node)]

    if weigh(root) > MAX_VALUES:
        raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES:,} values", problem_mark=root.start_mark)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
