"""Whether a command that a page shows is one: the program is there, with such a subcommand and such options."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click

from vfio_user.cli import cli, vhost_user_cli

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = {"vfio-user": cli, "vhost-user": vhost_user_cli}
OPTION = re.compile(r"--?[a-zA-Z][\w-]*")
DEVICE = ("serve", "peer")
"""Subcommands whose options are those of what they serve."""


def check_command(line: str) -> None:
    """Look at a command line as a shell would split it; anything that is not ours is passed over.

    Raises:
        AssertionError: there is no such subcommand, option, script or module.
    """
    words = shlex.split(line.replace("\\\n", " "), comments=True)
    for number, word in enumerate(words):
        if word in PROGRAMS:
            check_words(line, PROGRAMS[word], words[number + 1 :])
        elif word.removeprefix("./").startswith("scripts/"):
            assert (ROOT / word.removeprefix("./")).exists(), f"{line}: there is no {word}"
        elif word == "-m" and words[number + 1].split(".")[0] in ("benchmarks", "tests", "vfio_user", "vhost_user"):
            assert importlib.util.find_spec(words[number + 1]), f"{line}: there is no {words[number + 1]}"


def check_words(line: str, command: click.Command, words: list[str]) -> None:
    """Follow the subcommands, then look for each option in those that the last one has."""
    end = next((at for at, word in enumerate(words) if word in ("|", ">", ">>", "&&", ";", "&", "--")), len(words))
    words = words[:end]
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{line}: there is no subcommand {words[0]!r}"
        if words[0] in DEVICE:
            return
        command, words = found, words[1:]
    known = {
        option for parameter in command.get_params(context) for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in words:
        name = word.partition("=")[0]
        assert not OPTION.fullmatch(name) or name in known, f"{line}: there is no option {name}"
