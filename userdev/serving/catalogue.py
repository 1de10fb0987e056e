"""Devices by name: entry points of a group, MODULE:CLASS, or FILE.py:CLASS."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeGuard, TypeVar

from userdev.errors import UserError, meant
from userdev.serving.authored import authored
from userdev.serving.modules import look_in, module_of_file

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

HOW = "give the name of one, MODULE:CLASS, or FILE.py:CLASS"

D = TypeVar("D")


class Catalogue(Generic[D]):
    """The devices of one protocol: classes below `base`, which is made when it is first needed.

    `type` is what the protocol's specification calls such a program in its description.
    """

    def __init__(
        self,
        group: str,
        type: str,
        base: Callable[[], type[D]],
        own: Mapping[str, str],
        capabilities: Callable[[type[D]], Mapping[str, Any]] | None = None,
        others: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`own` are our names, as {name: MODULE:CLASS}: they start without a look at all that is installed.

        `capabilities` are what a class itself says for its description. `others` are hints for devices of other
        protocols, by their base as PACKAGE.CLASS; {name} in one is what was asked for.
        """
        self.group = group
        self._type = type
        self._base = base
        self._own = own
        self._capabilities = capabilities
        self._others = others

    def names(self) -> list[str]:
        """The names that installed packages give to their devices."""
        return sorted(entry.name for entry in _entry_points(self.group))

    def find(self, name: str) -> type[D]:
        """The class that `name` means. Modules are looked for in the current folder too, after the installed ones.

        Raises:
            UserError: there is none, it is no device, or its module fails, with the line of its author's.
        """
        name = self._named(name)
        if ":" in (place := self._own.get(name, name)):
            module_name, _, attribute = place.rpartition(":")
        elif found := _entry_points(self.group).select(name=name):
            entry = next(iter(found))
            module_name, attribute = entry.module, entry.attr
        else:
            names = self.names()
            if len(words := name.split()) > 1 and words[0] in {*names, *self._own}:
                hint = f"without the quotes: its options are words of their own, {name}"
                raise UserError(f"{name!r} is no name of a {self._type} device", hint=hint)
            if name.endswith(".py") and Path(name).is_file():
                raise UserError(f"{name} is a file, and no device", hint=self._classes_of(name))
            near = perhaps(name.removeprefix(f"{self._type}-"), names)
            hint = f"{near}there are: {', '.join(names)}; {HOW}"
            raise UserError(f"there is no {self._type} device {name!r}", hint=hint)
        is_file = module_name.endswith(".py") or "/" in module_name
        what = f"device {name!r}"
        module = module_of_file(Path(module_name), what, hint=HOW) if is_file else _of_name(module_name, what)
        return self._device_in(module, attribute, name)

    def _named(self, name: str) -> str:
        """A name without the protocol before it, as it has where devices of all protocols are meant: vhost-user-blk."""
        for separator in "-:":
            bare = name.removeprefix(f"{self._type}{separator}")
            if bare != name and (separator == ":" or ":" in bare or bare in self._own or bare in self.names()):
                return bare
        return name

    def _classes_of(self, file: str) -> str:
        """What to give for the devices of an author's file."""
        devices = self._devices_of(module_of_file(Path(file), f"device {file!r}", hint=HOW))
        return (
            f"give {' or '.join(f'{file}:{name}' for name in devices)}" if devices else f"it has no class of one; {HOW}"
        )

    def _devices_of(self, module: ModuleType) -> list[str]:
        base = self._base()
        return [key for key, value in vars(module).items() if _is_device(value, base)]

    def description(self, device: type[D]) -> dict[str, Any]:
        """The JSON description that the specification wants of a back-end program: DEVICE.json beside its module.

        A device without one is described by its docstring.

        Raises:
            UserError: the description is no JSON object.
        """
        own = self._capabilities(device) if self._capabilities is not None else {}
        file = getattr(sys.modules.get(device.__module__), "__file__", None)  # of one that was typed in there is none
        beside = Path(file).with_suffix(".json") if file else None
        if beside is None or not beside.is_file():
            first = (device.__doc__ or device.__name__).strip().partition("\n")[0]
            return {"description": first, "type": self._type, **own}
        with authored(f"the description {beside} cannot be read"):
            document = json.loads(beside.read_text())
        if not isinstance(document, dict):
            raise UserError(
                f"the description {beside} is no JSON object", hint="see servers/userdev_servers/edu.json for one"
            )
        return {**document, **own}

    def _device_in(self, module: ModuleType, attribute: str, name: str) -> type[D]:
        base = self._base()
        devices = self._devices_of(module)
        hint = f"its devices are: {', '.join(devices) or 'none'}; a device is a subclass of {_public_name(base)}"
        try:
            found: object = reduce(getattr, attribute.split("."), module)
        except AttributeError:
            raise UserError(f"device {name!r}: {module.__file__} has no {attribute!r}", hint=hint) from None
        if not _is_device(found, base):
            bases = map(_public_name, found.__mro__) if isinstance(found, type) else ()
            for other in filter(self._others.__contains__, bases):
                raise UserError(f"{name!r} is no {self._type} device", hint=self._others[other].format(name=name))
            raise UserError(f"{name!r} is no device", hint=hint)
        return found


def perhaps(name: str, names: Collection[str]) -> str:
    """The beginning of a hint for a name of no device, as `meant`: a class may stand behind a dot, as in Python."""
    module, _, attribute = name.rpartition(".")
    if module and attribute[0:1].isupper():
        return f"did you mean '{module}:{attribute}'? "
    return meant(name, names)


def _entry_points(group: str) -> EntryPoints:
    from importlib.metadata import entry_points  # takes 20 ms, and is not needed for most

    return entry_points(group=group)


def _of_name(module_name: str, what: str) -> ModuleType:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(f"{module_name!r} is no module's name", hint=HOW)
    look_in(Path.cwd())
    with authored(f"{what} cannot be loaded"):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # one that it imports
            where = f"neither installed nor in {Path.cwd()}"
            raise UserError(f"{what}: there is no module {error.name!r}, {where}", hint=HOW) from error


def _public_name(base: type) -> str:
    return f"{base.__module__.partition('.')[0]}.{base.__name__}"


def _is_device(value: object, base: type[D]) -> TypeGuard[type[D]]:
    return isinstance(value, type) and issubclass(value, base) and value is not base
