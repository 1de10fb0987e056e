"""What tests are called: the same on every machine, wherever their files are; and which was meant where none is."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from userdev.errors import UserError, meant
from vfio_user.avocado_job.no_tests import why_no_tests
from vfio_user.avocado_job.selection import chosen_of, package_folder

_TAGS = re.compile(r":avocado: *tags=(\S+)")
_SHOWN = 12
"""Names that an error lists."""


class MissingTest(UserError):
    """Nothing is found of a reference; `index` says which of several it is."""

    def __init__(self, what: str, *, hint: str, index: int) -> None:
        super().__init__(what, hint=hint)
        self.index = index


def name_of(file: Path, base: Path) -> str:
    """The name of a file of tests, none of whose parts is of this machine: both are absolute.

    It begins where the file's package does. One that is in none is called as from `base`, or by its name alone where
    it is not below that.
    """
    root = package_folder(file) or base
    return str(file.relative_to(root)) if file.is_relative_to(root) else file.name


def name_tests(suite: Any, base: Path) -> None:
    """Have the tests of one of avocado's suites called so, FILE:CLASS.METHOD.

    Raises:
        UserError: two files would be called the same.
    """
    files: dict[str, Path] = {}
    for runnable in suite.tests:
        path, colon, test = runnable.uri.partition(":")
        file = Path(path).resolve()
        name = name_of(file, base)
        if (first := files.setdefault(name, file)) != file:
            raise UserError(
                f"{first} and {file} would both be called {name}", hint=f"have both below {base}, or rename one"
            )
        runnable._identifier = f"{name}{colon}{test}"  # its URI is where it is, and cannot be told apart otherwise


def tests_in(file: str) -> list[str]:
    """CLASS.METHOD of all tests that avocado finds in a file."""
    from avocado.core.suite import TestSuite, TestSuiteError

    try:
        suite = TestSuite.from_config({"resolver.references": [file]})
    except TestSuiteError:
        return []
    return [runnable.uri.partition(":")[2] for runnable in suite.tests]


def missing_test(references: Sequence[str]) -> MissingTest | None:
    """What to say of the first of these, as `reference` makes them, of which avocado finds nothing; None: of all."""
    for index, told in enumerate(references):
        path, chosen = told.partition(":")[0], chosen_of(told)
        there = tests_in(path)
        if not there:
            what, hint = why_no_tests(path)
            return MissingTest(what, hint=hint, index=index)
        classes = dict.fromkeys(name.partition(".")[0] for name in there)
        if chosen and chosen not in {*there, *classes}:
            names = there if "." in chosen else [*classes]
            return MissingTest(f"{path} has no test {chosen}", hint=told_names(chosen, names), index=index)
    return None


def check_tags(filters: Sequence[str], references: Sequence[str]) -> None:
    """Look whether any of the tests has each tag of these filters, as avocado's option takes them.

    Raises:
        UserError: none has one.
    """
    wanted = {word.strip().removeprefix("-") for told in filters for word in told.split(",")} - {""}
    if wanted <= _written_tags(references):
        return
    there = _tags(references)
    if unknown := sorted(wanted - there):
        raise UserError(f"no test has the tag {unknown[0]!r}", hint=told_names(unknown[0], sorted(there)))


def _written_tags(references: Sequence[str]) -> set[str]:
    """What looks like a tag in the folders of these files: avocado takes seconds to find those that tests have."""
    folders = {Path(told.partition(":")[0]).parent for told in references}
    texts = (path.read_text(errors="replace") for folder in folders for path in folder.glob("*.py"))
    found = {word for text in texts for told in _TAGS.findall(text) for word in told.split(",")}
    return found | {word.partition(":")[0] for word in found}


def _tags(references: Sequence[str]) -> set[str]:
    """NAME and NAME:VALUE of all tags that avocado finds."""
    from avocado.core.suite import TestSuite

    suite = TestSuite.from_config({"resolver.references": list(references)})
    tags = [(tag, values) for test in suite.tests for tag, values in (test.tags or {}).items()]
    return {told for tag, values in tags for told in (tag, *(f"{tag}:{value}" for value in values or ()))}


def told_names(name: str, names: Collection[str]) -> str:
    """A hint: the name that was perhaps meant, and those that there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{meant(name, names)}there are: {', '.join([*names][:_SHOWN])}{more}"
