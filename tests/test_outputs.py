"""Where results cannot go is said before the work that they come of."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.test_conformance_told import no_server, told
from userdev.errors import UserError
from userdev.trace import TraceWriter
from userdev.writable import require_writable
from vfio_user.bundle import Keeping, Recipe
from vfio_user.cli import cli
from vfio_user.cli._completion import completer
from vfio_user.cli._durations import Duration
from vfio_user.cli._outputs import Output

__all__ = ["no_server"]

_NOWHERE = "/nope/deeper/x"
_COMMANDS = (
    ("trace", "export", "t.trace", "--format", "json", "-o"),
    ("minimize", "t.trace", "--server-command", "s", "-o"),
    ("show", "t.trace", "-o"),
    ("conformance", "s", "--junit"),
    ("conformance", "s", "--json"),
    ("migrate", "--file"),
)


@for_each(_COMMANDS)
def test_a_file_in_no_folder_is_refused_before_anything_is_read(words: tuple[str, ...]) -> None:
    said = CliRunner().invoke(cli, [*words, _NOWHERE])
    assert isinstance(said.exception, UserError)
    assert _NOWHERE in str(said.exception)
    assert said.exception.hint


def test_a_folder_below_a_file_is_refused_where_folders_are_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "a" / "b"
    for words in (("fuzz", "s", "--output"), ("soak", "--journal"), ("run", "--bundle"), ("migrate", "--bundle")):
        said = CliRunner().invoke(cli, [*words, str(below)])
        assert isinstance(said.exception, UserError), words
        assert str(below) in str(said.exception), words
    require_writable(tmp_path / "a" / "b", makes_folders=True)
    assert not (tmp_path / "a").exists()


_READ = (
    # What is read, and what would be written over it.
    "trace export {trace} --format perfetto --qmp-log {kept} -o {again}",
    "trace export {trace} --format perfetto --console-log {kept} -o {again}",
    "trace export {trace} --format json --registers {kept}.yaml -o {again}.yaml",
    "show {trace} --no-open --registers {kept}.yaml -o {again}.yaml",
    "minimize {trace} --server-command false --registers {kept}.yaml -o {again}.yaml",
    "interpose --listen a --connect b --faults {kept} --trace {again}",
    "interpose --listen a --connect b --registers {kept}.yaml --trace {again}.yaml",
)


def test_nothing_that_is_read_is_written_over_whichever_option_names_it(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "t", "vfio-user", {}).close()
    for name in ("kept", "kept.yaml"):
        (tmp_path / name).write_text("mine")
        (tmp_path / name.replace("kept", "link")).symlink_to(tmp_path / name)
    for line in _READ:
        for name in ("kept", "link"):
            again = tmp_path / name
            words = line.format(trace=tmp_path / "t", kept=tmp_path / "kept", again=again).split()
            said = CliRunner().invoke(cli, words)
            assert isinstance(said.exception, UserError), (line, said.output)
            assert "is read" in str(said.exception), (line, said.exception)
            assert {(tmp_path / each).read_text() for each in ("kept", "kept.yaml")} == {"mine"}, line


def test_the_results_of_conformance_are_files_apart_from_its_checks_and_each_other(tmp_path: Path) -> None:
    for name in ("x", "./x"):
        result = told("--junit", str(tmp_path / "x"), "--json", f"{tmp_path}/{name}")
        assert isinstance(result.exception, UserError), name
        assert not (tmp_path / "x").exists(), name
    (tmp_path / "own.py").write_text("mine")
    for option in ("--json", "--junit"):
        result = told("--checks", str(tmp_path / "own.py"), option, f"{tmp_path}/./own.py")
        assert isinstance(result.exception, UserError), option
        assert (tmp_path / "own.py").read_text() == "mine", option
    for words in (["--junit", "/dev/null", "--json", "/dev/null"], ["--junit", str(tmp_path / "x"), "--json", "-"]):
        assert told(*words).exit_code == 0, words


def test_what_may_not_be_written_is_refused_and_a_device_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_writable(Path("/dev/null"))
    require_writable(tmp_path / "x")
    monkeypatch.setattr("os.access", lambda *_: False)
    for path in (tmp_path / "x", tmp_path):
        with pytest.raises(UserError, match="may not write"):
            require_writable(path)
    assert Output(allow_dash=True).convert("-", None, None) == Path("-"), "the standard output"
    with pytest.raises(UserError, match="may not write"):
        Output().convert("-", None, None)
    with pytest.raises(UserError, match="may not write"):
        Keeping(str(tmp_path / "bundle"), Recipe(command="run", arguments=()), of="a run")


def test_the_counts_are_told_though_the_results_cannot_be_written_at_the_end() -> None:
    for option in ("--junit", "--json"):
        said = told(option, "/dev/full")
        assert isinstance(said.exception, OSError)
        assert said.exception.errno == errno.ENOSPC
        assert "1 check: 1 passed" in said.stdout


def test_a_duration_is_as_long_as_it_says() -> None:
    durations = {"90": 90, "90s": 90, " 5 ": 5, "10m": 600, "10min": 600, "1h30m": 5400, "2h": 7200, "1h1m1s": 3661}
    for text, seconds in durations.items():
        assert Duration().convert(text, None, None) == seconds, text
    assert Duration().convert(0.5, None, None) == 0.5
    for text in ("", "0", "0s", "0h0m", "s", "m", "1.5h", "-1", "1s1m", "1 h"):
        with pytest.raises(click.BadParameter):
            Duration().convert(text, None, None)


def test_a_shell_completes_what_begins_so_and_files_where_nothing_does() -> None:
    def broken() -> Any:
        raise UserError("there is none")

    context, option = click.Context(click.Command("x")), click.Option(["--it"])
    for words, incomplete, offered in (
        (lambda: [("edu", "a"), ("my-edu", "b")], "edu", [("edu", "plain", "a")]),
        (lambda: [("edu", "a"), ("my-edu", "b")], "", [("edu", "plain", "a"), ("my-edu", "plain", "b")]),
        (lambda: [("edu", "a")], "./x", [("./x", "file", None)]),
        (broken, "e", [("e", "file", None)]),
    ):
        found = completer(words)(context, option, incomplete)
        assert [(item.value, item.type, item.help) for item in found] == offered, incomplete
