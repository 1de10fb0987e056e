"""A device class is looked at when it is made: what would fail, or be overlooked, with a guest is refused here.

Nothing may have a name of the framework's but what replaces a function of it, and takes the same arguments; names that
begin with on_ are the framework's hooks; a declaration is in the class by its own name, makes sense by itself, and its
default can be saved. What else a protocol's devices say in class attributes is its own check (`check_attribute`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from types import FunctionType, MappingProxyType
from typing import NoReturn

from userdev.declare.authors_code import bodies_of, line_of
from userdev.declare.declared import MADE, Declaration, Source, authors_frame, runs_later, source_of, wrapper_of
from userdev.declare.options import constructor_options, suggestion
from userdev.declare.plain import NotPlain
from userdev.declare.state import State
from userdev.declare.unused import warn_of_unused
from userdev.declare.values import shown
from userdev.errors import DeclarationError

HOOK = "on_"
_PLAIN = {kind.__name__: (kind,) for kind in (int, bool, str, bytes, list, tuple, dict)} | {"float": (float, int)}
"""What annotations of declared values are compared with, by name; an int may stand for a float."""


def framework_names(framework: type) -> set[str]:
    """The names that every device has, on the class or on the instance, where it is annotated."""
    return {*dir(framework), *(name for base in framework.__mro__ for name in inspect.get_annotations(base))}


class OpenHook(UserWarning):
    """A hook takes whatever comes, so that nothing in it says what it is called with."""


class ClassCheck:
    """The check of one class, for `framework`, the class that all devices of a protocol have.

    `said` are names of the framework's that authors say in their classes; `guide` is the command that shows their page.
    """

    said: frozenset[str] = frozenset()
    plain: Mapping[str, tuple[type, ...]] = MappingProxyType({})
    """Of these names, those whose values are such as authors have for themselves, with their types."""
    guide = "vfio-user docs devices"

    def __init__(self, device_class: type, framework: type) -> None:
        self._class = device_class
        self._framework = framework
        self._of_class = set(dir(framework))
        self._names = framework_names(framework)
        self._hooks = sorted(name for name in self._of_class if name.startswith(HOOK))

    def run(self) -> None:
        """Check the body of the class, and of what it is made of that is no device.

        Raises:
            DeclarationError: with the class, the name, and the place where that is written.
        """
        self._check_body(self._class)
        for name, value in vars(self._class).items():
            self._check_hook(name, value)
        self._check_options()
        warn_of_unused(self._class, self._framework, self.plain, authors_frame())
        for base in self._class.__mro__:
            if not issubclass(base, self._framework) and base not in self._framework.__mro__:
                self._check_body(base)  # one that has declarations for several devices

    def check_attribute(self, name: str, value: object) -> None:
        """Look at a class attribute; for the protocol's own check."""

    def refuse(
        self, name: str, what: str, source: Source | None = None, hint: str = "give it another name"
    ) -> NoReturn:
        """Refuse the class for what `name` in it is; nothing: for the class itself.

        Raises:
            DeclarationError: always.
        """
        where = source or self.place_of(name)
        which = f"{self._class.__qualname__}.{name}" if name else self._class.__qualname__
        raise DeclarationError(f"{which} {what} ({where})", hint=hint)

    def place_of(self, name: str) -> Source:
        """The line of the class's body that gives an attribute its value; where that is none, the class's."""
        frame = authors_frame()
        bodies = [
            body for body in bodies_of(frame.f_code, self._class.__name__) if body.co_firstlineno <= frame.f_lineno
        ]
        place = line_of(name, bodies[-1:]) if name else None
        return Source(frame.f_code.co_filename, place) if place else source_of(frame)

    def _check_body(self, body: type) -> None:
        made: list[Declaration] = vars(body).get(MADE, [])
        if made:
            delattr(body, MADE)
        for declaration in made:
            self._check_kept(body, declaration)
        for name, value in list(vars(body).items()):
            self._check_name(name, value)
            self._check_override(name, value)
            self.check_attribute(name, value)
            if isinstance(value, Declaration) and (mistake := value.mistake()):
                self.refuse(name, f"makes no sense: {mistake}", value.source, f"`{self.guide}` has examples")
            if isinstance(value, State):
                self._check_annotation(inspect.get_annotations(body).get(name), value)
                self._check_default(name, value)

    def _check_kept(self, body: type, made: Declaration) -> None:
        if found := wrapper_of(body, made):
            name, wrapper = found
            what = f"is declared, and @{wrapper} above hides that"
            self.refuse(name, what, made.source, f"take @{wrapper} away: the function is called with self")
        hint = "a declaration has one name, for itself"
        if not made.name:
            self.refuse("", "has a declaration that something else of its name replaces", made.source, hint)
        if vars(body).get(made.name) is not made:
            what = "is declared, and is not in the class by that name: replaced, or its function's name is another"
            self.refuse(made.name, what, made.source, hint)

    def _check_name(self, name: str, value: object) -> None:
        if isinstance(value, Declaration) and name in self._names:
            what = "is declared, and every device has something else by that name"
            self.refuse(name, what, value.source, f"call it {name}_register, for example")
        if name in self._names - self._of_class - self.said:
            self.refuse(name, "is in the class, and every device has something else by that name", written(value))
        if isinstance(value, State) and value.name != name:
            self.refuse(name, f"is a second name of {value.name}", value.source, "declare each by itself")

    def _check_hook(self, name: str, value: object) -> None:
        if name.startswith(HOOK) and name not in self._hooks:
            from difflib import get_close_matches  # a class without mistakes need not wait for it

            close = get_close_matches(name, self._hooks, 1)
            hint = f"the hooks are {', '.join(self._hooks)}; call what is no hook something without {HOOK}"
            what = f"is no hook, and nobody would call it{f': {close[0]} is one' if close else ''}"
            self.refuse(name, what, written(value), hint)

    def _check_override(self, name: str, value: object) -> None:
        replaced = inspect.getattr_static(self._framework, name, None)
        if name.startswith("__") or not isinstance(replaced, FunctionType):
            return
        signature = inspect.signature(replaced)
        if isinstance(value, property) or not (callable(value) or hasattr(value, "__get__")):
            self.refuse(name, f"takes the place of what is called as {name}{signature}")
        if name in self._hooks and (what := runs_later(value)):
            self.refuse(name, f"is {what}", written(value), "what lasts is done by call_soon and call_later")
        if not isinstance(value, FunctionType):
            return
        given = [each for each in signature.parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
        try:
            inspect.signature(value).bind(*given)
        except TypeError:
            what = f"takes {inspect.signature(value)}, and every device has {name}{signature}"
            hint = "take what it is called with, or give it another name where something else is meant"
            self.refuse(name, what, written(value), hint)
        if name in self._hooks and _takes_anything(name, value, len(given)):
            code = value.__code__
            what = f"{self._class.__qualname__}.{name} takes whatever comes: every device has {name}{signature}"
            warnings.warn_explicit(what, OpenHook, code.co_filename, code.co_firstlineno)

    def _check_annotation(self, annotation: object, value: State) -> None:
        kinds = _kinds_of(annotation)
        if kinds and value.default is not None and not isinstance(value.default, kinds):
            kind, own = kinds[0].__name__, type(value.default).__name__
            what = f"is annotated as {kind}, and its default {shown(value.default)} is {own}"
            hint = f"its type is its default's: write {value.name}: {own}, or a default that is {kind}"
            self.refuse(value.name, what, value.source, hint)

    def _check_default(self, name: str, value: State) -> None:
        try:
            value.to_plain(value.default)
        except NotPlain as error:
            self.refuse(
                name,
                f"has a default that could not be saved: it{error}",
                value.source,
                "`vfio-user docs devices` has a table of what state may be",
            )

    def _check_options(self) -> None:
        constructor = vars(self._class).get("__init__")
        if isinstance(constructor, FunctionType):
            for name, option in constructor_options(constructor).items():
                if isinstance(option, str):
                    hint = f"write {suggestion(constructor, name)}; what is no option stands before the *"
                    self.refuse(name, option, written(constructor), hint)


def _kinds_of(annotation: object) -> tuple[type, ...]:
    """The types that a value of this annotation has; nothing where it is not just one of `_PLAIN`."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return _PLAIN.get(name.partition("[")[0], ()) if "|" not in name else ()


def _takes_anything(name: str, hook: FunctionType, given: int) -> bool:
    """Whether a hook of an author's own names not all of what it is given, and is no step on the way to another."""
    code = hook.__code__
    is_open = bool(code.co_flags & inspect.CO_VARARGS) and max(code.co_argcount, 1) < given
    return is_open and code.co_name == name and "super" not in code.co_names


def written(value: object) -> Source | None:
    """The place where a function or a declaration is written; None of anything else."""
    function = inspect.unwrap(value) if callable(value) else value
    if isinstance(function, Declaration):
        return function.source
    if isinstance(function, FunctionType):
        return Source(function.__code__.co_filename, function.__code__.co_firstlineno)
    return None
