"""`serve DEVICE ...` of any protocol: its options as a table, and a plain command line taken apart.

Whoever starts a server says `serve DEVICE --NAME VALUE`, and waits until it listens: to load what makes a command line
comfortable takes as long as all else that a server needs, and is a sixth of its memory. So what is exactly as the table
has it is served at once. All else (help, mistakes, completion) is left to `vfio_user.cli`, which is made of the same
table: it says what is wrong, and nothing is refused here.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from userdev.declare.options import Option, device_options, parse_options
from userdev.errors import UserError
from userdev.serving.authored import authored
from userdev.serving.catalogue import Catalogue
from userdev.serving.program import log_to_stderr


class Closable(Protocol):
    """A device: its owner gives it back."""

    def close(self) -> None:
        """Give it back."""


D = TypeVar("D", bound=Closable)

Given = dict[str, Any]
"""What a command line says, by the names of its options."""


class Setting(NamedTuple):
    """An option of `serve`, whatever the device. `flags` are those beside --NAME; of type bool it takes no value."""

    name: str
    help: str
    type: type = str
    default: Any = None
    metavar: str | None = None
    choices: Sequence[str] = ()
    at_least: float | None = None
    flags: Sequence[str] = ()

    @property
    def flag(self) -> str:
        """Its long form."""
        return "--" + self.name.replace("_", "-")

    def value(self, text: str) -> Any:
        """The value that a text means.

        Raises:
            ValueError: it is none.
        """
        value = self.type(text)
        if self.choices and value not in self.choices:
            raise ValueError(text)
        if self.at_least is not None and not self.at_least <= value < float("inf"):
            raise ValueError(text)
        return value


FIRST = (Setting("socket_path", "Listen on this UNIX socket; it is removed at the end."),)
LAST = (
    Setting("print_capabilities", "Print the JSON description and end.", bool, False),
    Setting("verbose", "Log every refused command.", bool, False, flags=("-v",)),
)
"""What every protocol has, around its own."""


class Serving(Generic[D]):
    """The `serve` of one protocol."""

    def __init__(
        self, catalogue: Catalogue[D], settings: Sequence[Setting], serve: Callable[[type[D], Given], None]
    ) -> None:
        """`serve` is given the class, and what the command line says of `settings` and of the device's own options."""
        self.catalogue = catalogue
        self.settings = (*FIRST, *settings, *LAST)
        self._serve = serve

    def own_options(self, device: type[D]) -> list[Option]:
        """Those of the class, which must not have the name of one that every device has.

        Raises:
            UserError: one has.
        """
        own = device_options(device)
        taken = {setting.name for setting in self.settings} | {"help"}
        if twice := [option.name for option in own if option.name in taken]:
            raise UserError(
                f"{device.__qualname__} has an option that `serve` has itself: {', '.join(twice)}",
                hint="give it another name",
            )
        return own

    def run(self, device: type[D], given: Given) -> None:
        """Do what a command line says: serve until the end, or describe the device."""
        if given.pop("print_capabilities"):
            print(json.dumps(self.catalogue.description(device)))
            return
        log_to_stderr(verbose=given.pop("verbose"))
        self._serve(device, given)

    def run_plain(self, words: Sequence[str]) -> bool:
        """Do what `words` behind `serve` say; False where that is not plain, and nothing was done.

        Raises:
            UserError: as `Catalogue.find` and `run` raise it.
        """
        if not words or words[0].startswith("-") or any(word in ("-h", "--help") for word in words):
            return False
        device = self.catalogue.find(words[0])
        given = self._given(device, words[1:])
        if given is None or given["print_capabilities"]:
            return False
        gc.freeze()  # the collector never looks at what was loaded, between two accesses of a guest neither
        gc.enable()
        self.run(device, given)
        return True

    def _given(self, device: type[D], words: Sequence[str]) -> Given | None:
        """What options say; None where one is not known, or not as it has to be."""
        own = [Setting(option.name, option.help) for option in self.own_options(device)]
        known = {flag: setting for setting in (*self.settings, *own) for flag in (setting.flag, *setting.flags)}
        given = {setting.name: setting.default for setting in known.values()}
        left = iter(words)
        for word in left:
            flag, joined, text = word.partition("=")
            setting = known.get(flag)
            if setting is None or (joined and setting.type is bool):
                return None
            if setting.type is bool:
                given[setting.name] = True
                continue
            text = text if joined else next(left, "")
            if not text.strip():
                return None
            try:
                given[setting.name] = setting.value(text)
            except ValueError:
                return None
        return given


@contextmanager
def made(device_class: type[D], given: Mapping[str, str | None]) -> Iterator[D]:
    """A device of the options that a command line says, closed at the end.

    Raises:
        UserError: as `authored` raises it.
    """
    texts = {name: text for name, text in given.items() if text is not None}
    with authored(f"{device_class.__qualname__} cannot be made"):
        device = device_class(**parse_options(device_class, texts))
    try:
        yield device
    finally:
        device.close()


def address_of(given: Given, *others: str) -> str:
    """The address to listen at, which is taken out of what the command line says.

    `others` are options for addresses of transports that only some protocols can have.

    Raises:
        UserError: it is not exactly one place.
    """
    prefixes = {"socket_path": "unix:", "fd": "fd:", **dict.fromkeys(others, "")}
    places = [f"{prefix}{text}" for name, prefix in prefixes.items() if (text := given.pop(name)) is not None]
    if len(places) != 1:
        *first, last = ("--" + name.replace("_", "-") for name in prefixes)
        raise UserError(f"give one of {', '.join(first)} and {last}", hint="for example --socket-path /tmp/d.sock")
    return places[0]
