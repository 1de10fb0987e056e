"""Options of a device: the keyword arguments of its `__init__`, for `vfio-user serve DEVICE`.

    def __init__(self, *, msix: Annotated[int, "MSI-X vectors; 0 leaves the capability out"] = 4) -> None:

Name, type and default come from the signature, the help from the annotation. Types: int (with 0x), bool, and
whatever is made from a text: str, Path.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from types import FunctionType, NoneType, UnionType
from typing import Any, NamedTuple

from userdev.errors import UserError

TRUE = frozenset({"1", "yes", "true", "on"})
_CONTAINERS = (list, tuple, dict, set, bytes)
"""What no text makes."""
_EMPTY: Mapping[object, object] = {int: 0, str: "", bool: False}
FALSE = frozenset({"0", "no", "false", "off"})


class Option(NamedTuple):
    """A setting of a device for people, as its constructor says it."""

    name: str
    type: type
    default: object
    help: str


def device_options(device_class: type) -> list[Option]:
    """The options that a person may set: annotated keyword-only arguments with defaults, in order.

    A constructor that takes `**options` has those of its base as well.

    Raises:
        UserError: an annotation that cannot be read.
    """
    found: dict[str, Option] = {}
    for base in device_class.__mro__:
        constructor = vars(base).get("__init__")
        if not isinstance(constructor, FunctionType):
            continue
        for name, option in constructor_options(constructor, strict=True).items():
            if isinstance(option, Option):
                found.setdefault(name, option)
        if all(each.kind is not each.VAR_KEYWORD for each in inspect.signature(constructor).parameters.values()):
            break
    return list(found.values())


def constructor_options(constructor: FunctionType, *, strict: bool = False) -> dict[str, Option | str]:
    """The keyword-only arguments of a constructor: options, or what is wrong with them.

    Without `strict` those are left out whose annotation cannot be read yet, such as a name that comes later.

    Raises:
        UserError: an annotation that cannot be read, if `strict`.
    """
    try:
        hints = typing.get_type_hints(constructor, include_extras=True)
    except Exception as error:
        if not strict:
            return {}
        raise UserError(
            f"an annotation of {constructor.__qualname__} cannot be read: {error} ({_place(constructor)})",
            hint="names in annotations are those of the module",
        ) from error
    parameters = inspect.signature(constructor).parameters.values()
    return {each.name: _option(each, hints.get(each.name)) for each in parameters if each.kind is each.KEYWORD_ONLY}


def _option(parameter: inspect.Parameter, hint: object) -> Option | str:
    if typing.get_origin(hint) is not typing.Annotated:
        return "is a keyword argument of __init__ that is no option: it has no Annotated"
    kind, text = typing.get_args(hint)[:2]
    if typing.get_origin(kind) in (UnionType, typing.Union):  # X | None
        kind = next(part for part in typing.get_args(kind) if part is not NoneType)
    if not isinstance(kind, type) or typing.get_origin(kind) is not None:
        return f"is an option of type {kind}, which cannot be made of a text"
    if not isinstance(text, str):
        return f"is an option whose help is {text!r}, no text"
    if parameter.default is parameter.empty:
        return "is an option without a default"
    return Option(parameter.name, kind, parameter.default, text)


def suggestion(constructor: FunctionType, name: str) -> str:
    """How a keyword-only argument is written as an option: of its own type and default, where that can be one."""
    default = inspect.signature(constructor).parameters[name].default
    hint = typing.get_type_hints(constructor, include_extras=True).get(name)
    help_ = "what it is"
    if typing.get_origin(hint) is typing.Annotated:
        hint, said = typing.get_args(hint)[:2]
        help_ = said if isinstance(said, str) else help_
    if hint is None and default not in (None, inspect.Parameter.empty):
        hint = type(default)
    if not isinstance(hint, type | UnionType) or typing.get_origin(hint) in _CONTAINERS or hint in _CONTAINERS:
        hint, default = str, ""
    if default is inspect.Parameter.empty:
        default = _EMPTY.get(hint)
    kind = hint.__name__ if isinstance(hint, type) else str(hint)
    return f'{name}: Annotated[{kind}, "{help_}"] = {default!r}'


def _place(function: FunctionType) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def parse_options(device_class: type, texts: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments for the device from {name: text}; dashes in names are underscores.

    Raises:
        UserError: no such option, or a text that is not of its type.
    """
    known = {option.name: option for option in device_options(device_class)}
    parsed: dict[str, Any] = {}
    for name, text in texts.items():
        option = known.get(name.replace("-", "_"))
        if option is None:
            names = ", ".join(map(_dashed, known)) or "none"
            raise UserError(f"{device_class.__name__} has no option {_dashed(name)}", hint=f"its options: {names}")
        parsed[option.name] = _parse(option, text)
    return parsed


def _parse(option: Option, text: str) -> object:
    try:
        if option.type is bool:
            return _parse_bool(text)
        return int(text, 0) if option.type is int else option.type(text)
    except Exception:  # what a type raises for a text that is none of its own is the type's affair
        kind = _KINDS.get(option.type, f"of type {option.type.__name__}")
        raise UserError(f"{_dashed(option.name)}: {text!r} is not {kind}", hint=option.help) from None


_KINDS = {int: "a whole number", float: "a number", bool: "yes or no"}


def _dashed(name: str) -> str:
    """An option as a command line has it."""
    return f"--{name.replace('_', '-')}"


def _parse_bool(text: str) -> bool:
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    raise ValueError(text)
