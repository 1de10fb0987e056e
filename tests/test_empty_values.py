"""A value that is empty, as a variable leaves it that is not set, is refused in words, whatever it is of."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from tests.tellings import PROGRAMS
from tests.tellings.options import commands
from vfio_user.server.command_line import SERVING
from vhost_user.backend.command_line import SERVING as SERVING_BACK_ENDS

pytest_plugins = ["pytester"]


def values() -> Iterator[tuple[str, str, click.Command, click.Parameter]]:
    """All that commands take a value for, with what each is called by."""
    for program, name, command in commands():
        for parameter in command.params:
            if not (isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count)):
                yield program, name, command, parameter


def test_every_option_and_argument_of_every_command_refuses_to_be_empty() -> None:
    """`run --server ""` said "All right" of a device of ours, in the place of the one that was meant."""
    tried = 0
    for program, name, command, parameter in values():
        empty: tuple[list[str], ...] = ([""], [" "])
        if isinstance(parameter, click.Option):
            flag = max(parameter.opts, key=len)
            empty = ([flag, ""], [flag, " "], [f"{flag}="])
        for words in empty:
            context = click.Context(PROGRAMS[program], info_name=program)
            with pytest.raises((click.UsageError, click.exceptions.Exit)) as refused:
                command.make_context(name, [*words], parent=context)
            if isinstance(refused.value, click.exceptions.Exit):
                assert (name, refused.value.exit_code) == ("exec", 125)
            else:
                assert isinstance(refused.value, click.UsageError)
                assert "is empty" in refused.value.message, (program, name, words)
                assert max(parameter.opts, key=len) in refused.value.message or words in ([""], [" "])
        tried += 1
    assert tried > 200


def test_what_a_command_in_a_guest_is_given_may_be_empty() -> None:
    context = click.Context(PROGRAMS["vfio-user"], info_name="vfio-user")
    (command,) = (command for program, name, command in commands() if (program, name) == ("vfio-user", "exec"))
    made = command.make_context("exec", ["--", "printf", "%s", ""], parent=context)
    assert made.meta["command"] == ["printf", "%s", ""]


def test_a_plain_serve_leaves_what_is_empty_to_who_refuses_it() -> None:
    """It is served without click, by the same table."""
    for serving, words in (
        (SERVING, "edu --socket-path"),
        (SERVING, "edu --socket-path s --trace"),
        (SERVING, "nvme --image i --socket-path s --serial"),
        (SERVING_BACK_ENDS, "rng --socket-path s --source"),
    ):
        *plain, flag = words.split()
        for empty in ([flag, ""], [flag, " "], [f"{flag}="]):
            assert serving.run_plain([*plain, *empty]) is False, (words, empty)


def test_pytest_refuses_options_that_are_empty(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    for flag in ("--qemu", "--vfio-results", "--bundle"):
        for value in ("", " "):
            ran = pytester.runpytest_inprocess("-p", "no:cacheprovider", f"{flag}={value}")
            assert ran.ret == pytest.ExitCode.USAGE_ERROR, (flag, value)
    assert pytester.runpytest_inprocess("-p", "no:cacheprovider").ret == pytest.ExitCode.OK
