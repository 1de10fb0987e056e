"""The whole of what commands tell of fixed inputs, as it is kept in `kept/`: one file for each room of the table.

`python -m tests.tellings` writes them anew, after a change that is meant; what `git diff` shows then is to be read.
What depends on a machine, a moment or a version is replaced by the makers in these modules, each by its name, and
nothing is left out of the comparison.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, redirect_stderr
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from userdev.errors import UserError, VerdictError
from vfio_user.cli import cli, vhost_user_cli
from vfio_user.cli._errors import explain

KEPT = Path(__file__).parent / "kept"
Told = dict[str, Any]
"""What was told, by the command or by what it is about."""
Ended = tuple[int, str, str]
"""Status, stdout and stderr of a command."""
Maker = Callable[[Path], Told]
"""Makes its inputs in an empty folder, and asks for all that can be told of them."""
PROGRAMS: Mapping[str, click.Command] = {"vfio-user": cli, "vhost-user": vhost_user_cli}
_WIDTH = 320


def said(folder: Path, line: str, *, in_each_way: bool = True) -> Told:
    """What a command says that is run in a folder, with its status; `line` begins with the program.

    JSON is as it was printed, other text only its facts (`facts`); those of stderr are told where there are some.
    The other ways in which the command tells come to the same (`see_alike`), unless it is another time each time.
    """
    name, *words = line.split()
    told = _told(*_ended(folder, PROGRAMS[name], words), is_json="--json" in words)
    if in_each_way:
        see_alike(folder, line)
    return told


def see_alike(folder: Path, line: str) -> Mapping[tuple[str, ...], Ended]:
    """See to it that it changes nothing but what is told how a command is to tell it: --json, --quiet, and both.

    The status is the same, stdout is JSON where that is asked for, and whoever is quiet says no more. Returns how it
    ended in each way.
    """
    name, *words = line.split()
    without = {"--json"} if _FOR_PEOPLE.intersection(words) else set()
    there = _flags(PROGRAMS[name], words).intersection(_WAYS) - without
    own = [word for word in words if word not in _WAYS]
    at = own.index("--") if "--" in own else len(own)
    ways: Sequence[tuple[str, ...]] = ((), _WAYS[:1], _WAYS[1:], _WAYS)
    ends = {
        way: _timeless(_ended(folder, PROGRAMS[name], [*own[:at], *way, *own[at:]]))
        for way in ways
        if there and there.issuperset(way)
    }
    for way, (status, out, err) in ends.items():
        usual_status, usual_out, usual_err = ends[()]
        assert status == usual_status, f"{line}: status {status} with {way}, {usual_status} without"
        if "--json" in way:
            assert not out or documents(out) is not None, f"{line} with {way}"
            assert out or status, f"{line}: no JSON with {way}"
            assert out == ends[_WAYS[:1]][1], f"{line}: --quiet is other JSON"
        elif "--quiet" in way:
            assert {*out.splitlines()} <= {*usual_out.splitlines()}, f"{line} says more with {way}"
        if "--quiet" in way and not status:
            assert {*err.splitlines()} <= {*usual_err.splitlines(), *usual_out.splitlines()}, f"{line} with {way}"
        assert not status or out or err, f"{line}: not a word of status {status} with {way}"
    return ends


def _timeless(ended: Ended) -> Ended:
    """The same without how long it took, and when: that is another time each time."""
    status, *printed = ended
    out, err = (re.sub(r"\d+(\.\d+)?e-\d+|\d+\.\d+|-\d{8}-\d{6}(-\d+)?", "7.5", text) for text in printed)
    return status, out, err


_WAYS = ("--json", "--quiet")
_FOR_PEOPLE = {"--list", "--oracles"}
"""Beside these --json is refused."""


def _flags(command: click.Command, words: list[str]) -> set[str]:
    """The options without a value of the command that words are for."""
    for word in words:
        if not isinstance(command, click.Group) or word.startswith("-"):
            break
        command = command.get_command(click.Context(command), word) or command
    return {opt for each in command.params if isinstance(each, click.Option) and each.is_flag for opt in each.opts}


def called(folder: Path, function: Callable[[], None], is_json: bool) -> Told:
    """The same of a function that tells as a command does."""
    return _told(*_ended(folder, click.command(name="called")(function), []), is_json=is_json)


def _ended(folder: Path, program: click.Command, words: Sequence[str]) -> Ended:
    """The status of a command, and what it has printed on both streams."""
    with chdir(folder):
        done = CliRunner().invoke(program, words)
    status, also = done.exit_code, io.StringIO()
    match done.exception:
        case None | SystemExit():
            pass
        case VerdictError() | UserError() as error:
            with redirect_stderr(also):
                status = explain(error)
        case error:
            raise error
    out, err = (text.replace(str(folder), "FOLDER") for text in (done.stdout, done.stderr + also.getvalue()))
    return status, out, err


def _told(status: int, out: str, err: str, *, is_json: bool) -> Told:
    told: Told = {"status": status, "out": documents(out) if is_json else facts(out)}
    return {**told, "err": found} if (found := facts(err)) else told


def documents(text: str) -> Any:
    """The JSON documents of a text: the one, or all of them where each is a line."""
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


_PROSE = re.compile(r"[(`\"]?[A-Z]?[a-z]+(?:['-][a-z]+)*[`\")]?[.,:;!?]?")


def facts(text: str) -> list[str]:
    """Of each line what is no wording: the cells of one in columns, else numbers, names, values and places."""
    found = (
        _cells(line) or " ".join(word for word in line.split() if not _PROSE.fullmatch(word)) for line in lines(text)
    )
    return [line for line in found if line]


def _cells(line: str) -> str:
    cells = re.split(r" {2,}", line.strip())
    return " | ".join(cells) if len(cells) > 1 else ""


def lines(text: str) -> list[str]:
    """Its lines, as a terminal shows them."""
    return click.unstyle(text).splitlines()


def plain(told: Any) -> Any:
    """As it is read back: tuples are lists, keys are text."""
    return json.loads(json.dumps(told))


def as_kept(told: Any, indent: int = 0) -> str:
    """JSON in which what fits on a line is one, so that a difference between two files can be read."""
    short = json.dumps(told, ensure_ascii=False)
    if len(short) + indent <= _WIDTH or not isinstance(told, dict | list) or not told:
        return short
    pad = " " * (indent + 1)
    if isinstance(told, dict):
        parts = [f"{pad}{json.dumps(key)}: {as_kept(value, indent + 1)}" for key, value in told.items()]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(f"{pad}{as_kept(value, indent + 1)}" for value in told) + "\n" + " " * indent + "]"


def differences(kept: Any, told: Any, where: str = "") -> Iterator[str]:
    """The path of each value that is otherwise, with both."""
    if isinstance(kept, dict) and isinstance(told, dict):
        if [*kept] != [*told] and kept.keys() == told.keys():
            yield f"{where}: its fields are in another order: {', '.join(told)}, not {', '.join(kept)}"
        for key in {**kept, **told}:
            at = f"{where} > {key}" if where else key
            if key not in told or key not in kept:
                yield f"{at}: {'is told now' if key in told else 'is told no more'}: {(told | kept)[key]!r}"
            else:
                yield from differences(kept[key], told[key], at)
    elif isinstance(kept, list) and isinstance(told, list) and len(kept) == len(told):
        for number, (one, other) in enumerate(zip(kept, told, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif kept != told or type(kept) is not type(told):
        yield f"{where}: {told!r}, not {kept!r}"
