"""Options of a device: the keyword arguments of its `__init__`, for `vfio-user serve DEVICE --help` and `--set`.

    def __init__(self, *, msix: Annotated[int, "MSI-X vectors; 0 leaves the capability out"] = 4) -> None:

Name, type and default come from the signature, the help from the annotation. Types: int (with 0x), bool, and
whatever is made from a text: str, Path.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from vfio_user.errors import UserError

TRUE = frozenset({"1", "yes", "true", "on"})
FALSE = frozenset({"0", "no", "false", "off"})


class Option(NamedTuple):
    name: str
    type: type
    default: object
    help: str


def device_options(device_class: type) -> list[Option]:
    """The options that a person may set: annotated keyword-only arguments with defaults, in order."""
    constructor = device_class.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(constructor, include_extras=True)
    found: list[Option] = []
    for name, parameter in inspect.signature(constructor).parameters.items():
        hint = hints.get(name)
        if parameter.kind is parameter.KEYWORD_ONLY and typing.get_origin(hint) is typing.Annotated:
            kind, text = typing.get_args(hint)[:2]
            kind = next((part for part in typing.get_args(kind) if part is not type(None)), kind)  # of X | None
            found.append(Option(name, kind, parameter.default, str(text)))
    return found


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
            names = ", ".join(known) or "none"
            raise UserError(f"{device_class.__name__} has no option {name!r}", hint=f"its options: {names}")
        parsed[option.name] = _parse(option, text)
    return parsed


def _parse(option: Option, text: str) -> object:
    try:
        if option.type is bool:
            return _parse_bool(text)
        return int(text, 0) if option.type is int else option.type(text)
    except ValueError:
        raise UserError(
            f"option {option.name}: {text!r} is not of type {option.type.__name__}", hint=option.help
        ) from None


def _parse_bool(text: str) -> bool:
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    raise ValueError(text)
