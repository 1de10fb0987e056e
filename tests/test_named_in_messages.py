"""What the product's texts name is there: commands, their options, pages, scripts and variables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import click

from tests.tellings import PROGRAMS
from vfio_user.cli._devices import DeviceGroup

ROOT = Path(__file__).parents[1]
_PACKAGES = ("userdev", "vfio_user", "vhost_user", "servers")
_COMMAND = re.compile(r"`((?:vfio|vhost)-user [a-z-][^`\n]*)|^ *\$?\(?((?:vfio|vhost)-user [a-z-]+ .*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+[a-z]\b(?!-)")
_FILE = re.compile(r"(?<!/)\b(?:docs/(?:reference/|how-to/)?[\w-]+\.md|scripts/[a-z-]+)")
_ENVIRONMENT = re.compile(r"\$(VFIO_USER_[A-Z_]+)|(VFIO_USER_[A-Z_]+)=")
_OF_OTHERS = {"--slot", "--forward-mode"}
"""Options of programs in the guest and of others, that our texts name."""


@cache
def lines() -> Sequence[tuple[str, str]]:
    """Every line of the product, with where it is: messages, help, and comments, which are to be right too."""
    return [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for package in _PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
    ]


@cache
def options_of(command: click.Command) -> set[str]:
    """All options of a command."""
    own = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    return own | {"--help", "--version"}


def every_option() -> set[str]:
    """Those of all commands of both programs."""

    def below(command: click.Command) -> Iterator[str]:
        yield from options_of(command)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                if (found := command.get_command(context, name)) is not None:
                    yield from below(found)

    return {flag for root in PROGRAMS.values() for flag in below(root)}


def wrong_with(line: str) -> str:
    """What is not there of a command line; "" where all is."""
    program, *words = line.split()
    command, named = PROGRAMS[program], program
    while isinstance(command, click.Group) and words and not isinstance(command, DeviceGroup):
        word = words[0].strip(".,:;)'\"")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", word):
            break
        found = command.get_command(click.Context(command), word)
        if found is None:
            return "" if command.invoke_without_command else f"{named} has no command {word}"
        command, named, words = found, f"{named} {word}", words[1:]
    if isinstance(command, click.Group) and not command.invoke_without_command:
        return ""  # as far as it is said
    own = " ".join(words).partition(" -- ")[0].partition("'")[0]
    missing = [flag for flag in _OPTION.findall(own) if flag not in options_of(command) | _OF_OTHERS]
    return f"{named} has no option {', '.join(missing)}" if missing else ""


def test_every_command_that_a_text_names_is_one_and_has_the_options_that_are_named() -> None:
    named = [
        (where, one or other)
        for where, line in lines()
        for one, other in _COMMAND.findall(line)
        if not other.endswith(".")
    ]
    assert len(named) > 50, "they are found"
    wrong = [f"{where}: {line!r}: {what}" for where, line in named if (what := wrong_with(line))]
    assert not wrong, "\n".join(wrong)


def test_every_option_that_a_text_of_the_commands_or_a_hint_names_is_one() -> None:
    known = every_option() | _OF_OTHERS
    told = [each for each in lines() if "--" in each[1] and (each[0].startswith("vfio_user/cli/") or "hint" in each[1])]
    wrong = [f"{where}: {flag}" for where, line in told for flag in _OPTION.findall(line) if flag not in known]
    assert len(told) > 200, "they are found"
    assert not wrong, "\n".join(wrong)


def test_every_page_script_and_variable_that_a_text_names_is_there() -> None:
    variables = (ROOT / "docs/reference/environment.md").read_text()
    files = [(where, name) for where, line in lines() for name in _FILE.findall(line)]
    named = [(where, one or other) for where, line in lines() for one, other in _ENVIRONMENT.findall(line)]
    wrong = [f"{where}: {name}" for where, name in files if not (ROOT / name).exists()]
    wrong += [f"{where}: {name}" for where, name in named if f"`{name}`" not in variables]
    assert min(len(files), len(named)) > 5, "they are found"
    assert not wrong, "\n".join(wrong)
