"""Puts a change into a module that has been imported: its functions get the code that the changed text has for them.

What was computed while the module was imported stays as it was: a change of that is refused.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FunctionType

from tests.seeded_bugs.planting import Change, PlantingError, plant


class Functions:
    """The functions of this process by their files: found once, before changes are put into forks.

    Those that are hidden from the collector of garbage (`gc.freeze`) are not found.
    """

    def __init__(self) -> None:
        self._by_file: dict[str, list[FunctionType]] = defaultdict(list)
        for thing in gc.get_objects():
            if type(thing) is FunctionType:
                self._by_file[thing.__code__.co_filename].append(thing)

    def change(self, change: Change, planted: str) -> None:
        """Have the change from now on; `planted` is its file for processes that import the module yet.

        Raises:
            PlantingError: it cannot be put into what there is already.
        """
        module = sys.modules.get(change.module)
        if module is None:
            plant(planted)
            return
        if not in_functions(change):  # which lines that moved would hide: functions have others then too
            raise PlantingError(f"{change.module}: what is computed while it is imported would change")
        text = change.path.read_text()
        path = str(change.path)
        replacements = {
            old: new for old, new in _pairs(_compiled(text, path), _compiled(change.planted, path)) if old != new
        }
        changed = 0
        for function in self._by_file[path]:
            replacement = replacements.get(function.__code__)
            if replacement is not None:
                try:
                    function.__code__ = replacement
                except ValueError as error:  # another number of variables of the functions around it
                    raise PlantingError(f"{change.module}: {error}") from None
                changed += 1
        if not changed:
            raise PlantingError(f"{change.module}: no function has the code that would change")


def in_functions(change: Change) -> bool:
    """Whether a change is in bodies of functions alone."""
    path = str(change.path)
    pairs = _pairs(_compiled(change.path.read_text(), path), _compiled(change.planted, path))
    return all(old.co_flags & inspect.CO_OPTIMIZED or _own(old) == _own(new) for old, new in pairs)


def _own(code: CodeType) -> list[object]:
    """A body, but for what is within the bodies of its functions and classes."""
    constants = [const.co_name if isinstance(const, CodeType) else const for const in code.co_consts]
    return [code.co_code, code.co_names, *map(repr, constants)]


@functools.cache  # what is changed in a fork was looked at before
def _compiled(text: str, path: str) -> CodeType:
    code: CodeType = compile(text, path, "exec", dont_inherit=True)
    return code


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """What is the same function, before and after."""
    yield old, new
    olds, news = ([const for const in code.co_consts if isinstance(const, CodeType)] for code in (old, new))
    if [code.co_name for code in olds] == [code.co_name for code in news]:
        for before, after in zip(olds, news, strict=True):
            yield from _pairs(before, after)
