"""What passes from a command to what it calls: each call out of its module, with the arguments as plain data."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, Self

from pydantic import BaseModel

import vfio_user
from vfio_user.harness.scratch import _base
from vfio_user.wire import Dialect

Flat = dict[str, Any]
"""Values by their paths: "lab.Lab.boot image"."""
_COMMANDS = (
    "vfio_user.cli",
    "vfio_user.server.command_line",
    "vhost_user.backend.command_line",
    "userdev.serving.command_line",
)
_OURS = ("userdev_servers", "vfio_user.", "vhost_user.", "userdev.", "webbrowser", "tests.tellings.stand_ins")
_WORDS = ("userdev.counted", "userdev.errors", "userdev.printable", "vfio_user.extras", "vfio_user.cli._errors")
"""What only makes words of something."""
_DRAWN = ("aligned",)
"""What draws what came of a command, of which other rooms tell."""
_MANY = 8
"""Of a list with more the number is told: catalogues grow."""
_DEEP = 3
_SCRATCH = re.compile(re.escape(str(_base())) + r"/vfio-user-\w+")
_WHEN = re.compile(r"-\d{8}-\d{6}(-\d+)?")
_WHOSE = ("self", "cls")
_FOR_OTHERS = {
    ("contextlib", "contextmanager.<locals>.helper"): ("func", "args", "kwds"),
    ("tests.tellings.stand_ins", "instead_of.<locals>.stand_in"): ("real", "given", "said"),
}
"""Functions that are called in place of others: where they have those, and what these are given."""


class Border:
    """A block in which calls out of the commands' modules are told: of each function the first, and how often."""

    def __init__(self, folder: Path) -> None:
        self.told: Flat = {}
        self._places = {
            sys.executable: "PYTHON",
            str(folder): "FOLDER",
            str(Path(vfio_user.__file__).parents[1]): "CHECKOUT",
        }
        self._times: dict[str, int] = {}

    def __enter__(self) -> Self:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or (caller := frame.f_back) is None:
            return
        of, module = str(caller.f_globals.get("__name__")), str(frame.f_globals.get("__name__"))
        if not of.startswith(_COMMANDS) or of == module:
            return
        name, given = frame.f_code.co_qualname, _arguments(frame)
        if (module, name) in _FOR_OTHERS:
            of_real, positional, named = _FOR_OTHERS[module, name]
            real = given[of_real]
            bound = inspect.signature(real).bind(*given[positional], **given[named])
            bound.apply_defaults()
            given = {each: value for each, value in bound.arguments.items() if each not in _WHOSE}
            module, name = real.__module__, real.__qualname__
        if not module.startswith(_OURS) or module in _WORDS or name in _DRAWN or "<" in name:
            return
        self._tell(f"{module.rpartition('.')[2]}.{name.removesuffix('.__init__')}", given)

    def _tell(self, name: str, given: Mapping[str, Any]) -> None:
        number = self._times[name] = self._times.get(name, 0) + 1
        if number == 1:
            self.told.update(flat({name: self._plain(given)}) if given else {name: ""})
        else:
            self.told[f"{name} times"] = number

    def _plain(self, value: Any, deep: int = 0) -> Any:
        match value:
            case str() | Path():
                text = _WHEN.sub("-DATE-TIME", str(value))
                text = functools.reduce(lambda text, place: text.replace(*place), self._places.items(), text)
                return _SCRATCH.sub("SCRATCH", text)
            case Enum():
                return str(value)
            case None | bool() | int() | float():
                return value
            case type() | FunctionType():
                return value.__qualname__
            case functools.partial():
                return {"of": self._plain(value.func), "given": self._plain([*value.args, *value.keywords.values()])}
            case _ if deep == _DEEP:
                return type(value).__name__
            case Mapping() if "PATH" in value:
                return "an environment"
            case Mapping():
                return {str(key): self._plain(each, deep + 1) for key, each in value.items()}
            case list() | tuple() | set() | frozenset():
                if len(value) > _MANY:
                    return f"{len(value)} of them"
                found = [self._plain(each, deep + 1) for each in value]
                return sorted(found, key=str) if isinstance(value, set | frozenset) else found
            case Dialect():
                return value.name
            case BaseModel():
                return {name: self._plain(each, deep + 1) for name, each in value}
            case _ if isinstance(getattr(value, "id", None), str):
                return value.id
            case _ if is_dataclass(value):
                return {each.name: self._plain(getattr(value, each.name, None), deep + 1) for each in fields(value)}
            case _:
                return type(value).__name__


def _arguments(frame: FrameType) -> dict[str, Any]:
    """What a function was called with, but for whose method it is; also what it has of where it was defined."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    names = [*code.co_varnames[:count], *code.co_freevars]
    return {name: frame.f_locals[name] for name in names if name in frame.f_locals and name not in _WHOSE}


def flat(told: Mapping[str, Any], where: str = "") -> Flat:
    """What is within mappings, each by its path."""
    found: Flat = {}
    for key, value in told.items():
        at = f"{where} {key}" if where else key
        found.update(flat(value, at) if isinstance(value, dict) and value else {at: value})
    return found


def difference(base: Flat, told: Flat) -> Flat:
    """What is told otherwise or beside, and, under `gone`, what is told no more."""
    found = {name: value for name, value in told.items() if name not in base or base[name] != value}
    gone = sorted({name.partition(" ")[0] for name in base if name not in told})
    return {**found, "gone": gone} if gone else found
