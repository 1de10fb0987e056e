"""A class attribute that nobody looks at, under nearly the name of one that every device has: told, and not refused.

An author's class is the author's namespace (decision 30), so it may be meant. But `migratble = False` says nothing to
anybody, and a device that was to stay where it is would be moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from weakref import WeakKeyDictionary

from userdev.declare.authors_code import assignments, bodies_of, codes_of, line_of, loaded
from userdev.declare.declared import source_of

_ALIKE = 0.85
"""Of two names, from 0 to 1: migratable and migratble are, features and feature_bits are not."""


class UnusedAttribute(UserWarning):
    """An attribute of a device or its class is used by nothing, and is called nearly as one that every device has."""


def warn_of_unused(
    device_class: type, framework: type, attributes: Mapping[str, tuple[type, ...]], frame: FrameType
) -> None:
    """Warn of attributes in a class's body that may be meant for others, which its author says nowhere.

    attributes: those of every device, with the types of their values
    frame: where the class is made
    """
    own = [base for base in device_class.__mro__ if issubclass(base, framework) and base is not framework]
    bases = [base for base in device_class.__mro__ if base not in framework.__mro__ and base is not device_class]
    said = {name for base in own for name in vars(base)}
    for name, value in vars(device_class).items():
        meant = _meant(name, value, attributes)
        if meant is None or meant in said or any(name in vars(base) for base in bases):
            continue
        body = [*bodies_of(frame.f_code, device_class.__name__)]
        if not any(name in loaded(code) for code in (*body, *codes_of(own))):
            place = line_of(name, body) or source_of(frame).line
            which = f"{device_class.__qualname__}.{name}"
            what = f"{which} is used by nothing: did you mean {meant}, which every device has?"
            warnings.warn_explicit(what, UnusedAttribute, frame.f_code.co_filename, place)


def warn_of_unused_in(device: object, framework: type, attributes: Mapping[str, tuple[type, ...]]) -> None:
    """Warn likewise of what the constructor of a device has set, once for each class and name."""
    kind = type(device)
    looked = _looked.setdefault(kind, set())
    own = [base for base in kind.__mro__ if issubclass(base, framework) and base is not framework]
    for name in vars(device).keys() - looked:
        looked.add(name)
        meant = _meant(name, vars(device)[name], attributes)
        places = assignments(kind, name) if meant is not None and meant not in vars(device) else []
        if places and not any(name in loaded(code) for code in codes_of(own)):
            what = f"{kind.__qualname__}.{name} is used by nothing: did you mean {meant}, which every device has?"
            warnings.warn_explicit(what, UnusedAttribute, places[0].file, places[0].line)


_looked: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()
"""By class: names that instances have had."""


def _meant(name: str, value: object, attributes: Mapping[str, tuple[type, ...]]) -> str | None:
    """The attribute that a plain one may be meant for, if there is one; a number says yes or no, too."""
    if name.startswith("_") or name in attributes or not isinstance(value, int | bytes | bytearray):
        return None
    from difflib import get_close_matches  # a class without attributes of its own need not wait for it

    alike = get_close_matches(name, [*attributes], len(attributes), cutoff=_ALIKE)
    return next((meant for meant in alike if isinstance(value, tuple(_widened(attributes[meant])))), None)


def _widened(kinds: Iterable[type]) -> Iterator[type]:
    for kind in kinds:
        yield int if kind is bool else kind
