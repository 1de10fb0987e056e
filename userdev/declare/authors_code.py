"""An author's code, looked at without running it: what a class's functions read, and where something is written."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from userdev.declare.declared import OURS, Source

_LOADS = ("LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF")
_TOLD = 3  # places, in one error


def bodies_of(code: CodeType, name: str) -> Iterator[CodeType]:
    """The bodies of the classes of that name in a piece of code."""
    return (inner for inner in code.co_consts if isinstance(inner, CodeType) and inner.co_name == name)


def line_of(name: str, bodies: Iterable[CodeType]) -> int | None:
    """The line of a class's body that gives an attribute its value."""
    for code in bodies:
        for each in dis.get_instructions(code):
            if each.opname == "STORE_NAME" and each.argval == name and each.positions is not None:
                return each.positions.lineno
    return None


def codes_of(classes: Iterable[type]) -> Iterator[CodeType]:
    """The functions of classes, and of what declarations in them have."""
    for base in classes:
        for value in vars(base).values():
            for function in (value, *_parts(value)):
                plain = inspect.unwrap(function) if callable(function) else function
                if isinstance(plain, FunctionType):
                    yield plain.__code__


def loaded(code: CodeType) -> set[str]:
    """The names that a piece of code reads, with what is in it."""
    found = {each.argval for each in dis.get_instructions(code) if each.opname in _LOADS}
    return found.union(*(loaded(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def assigned_at(device_class: type, name: str) -> str:
    """Where functions of an author assign an attribute, "; it is assigned at FILE:LINE"; nothing where none does."""
    places = assignments(device_class, name)
    return f"; it is assigned at {', '.join(map(str, places[:_TOLD]))}" if places else ""


def assignments(device_class: type, name: str) -> list[Source]:
    """The places where functions of an author assign an attribute."""
    own = [base for base in device_class.__mro__ if not base.__module__.startswith((*OURS, "builtins"))]
    return sorted({place for code in codes_of(own) for place in _stores(code, name)})


def _stores(code: CodeType, name: str) -> Iterator[Source]:
    for each in dis.get_instructions(code):
        if each.opname == "STORE_ATTR" and each.argval == name and each.positions is not None:
            yield Source(code.co_filename, each.positions.lineno or code.co_firstlineno)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _stores(inner, name)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, staticmethod | classmethod):
        yield value.__func__
    elif isinstance(value, property):
        yield from (value.fget, value.fset)
    elif not isinstance(value, type | FunctionType):
        yield from getattr(value, "__dict__", {}).values()
