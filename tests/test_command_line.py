"""The command line as a person types it: options that are alike, words nearly right, what is told."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import pytest

from tests.cases import for_each, for_each_row
from userdev.errors import UserError, VerdictError, meant
from userdev.trace import TraceWriter
from vfio_user.cli import COMMANDS, VHOST_USER_COMMANDS, cli, run_command, vhost_user_cli
from vfio_user.cli._errors import explain
from vfio_user.cli._hardware import guest_hardware
from vfio_user.cli.exec import NOT_RUN
from vfio_user.harness.command_line import HardwareOptions

GUESTS = ("boot", "exec", "migrate", "run")
ROOTS: dict[str, click.Command] = {"vfio-user": cli, "vhost-user": vhost_user_cli}


BESIDE = (
    # What of these words would say nothing beside the others.
    ("--workload", "migrate --device edu --workload dma --workload dma"),
    ("--only-events", "soak --hops 3 --only-events flr"),
    ("--until", "soak --only 3 --seed 1 --until 5"),
    ("--hops", "soak --only 3 --seed 1 --hops 5"),
    ("--tries", "soak --only 3 --seed 1 --tries 5"),
    ("--journal", "soak --only 3 --seed 1 --journal j"),
    ("--qmp-log", "trace export t --format pcapng --qmp-log q"),
    ("--console-log", "trace export t --format json --console-log c"),
    ("--json", "trace stats t --watch --json"),
    ("--interval", "trace stats t --interval 2"),
    ("--wait", "nightly --plan p --wait compare . ."),
    *(
        (option.split()[0], f"interpose --listen a --connect b {option}")
        for option in (
            *("--msg-timeout 9", "--pending fail", "--pending-errno EIO", "--kick", "--signal-error"),
            *("--hang-timeout 9", "--give-up-after 9"),
        )
    ),
    ("--server-pid", "interpose --listen a --server-command {socket} --server-pid 1"),
    ("--interpose", "boot --print-command --interpose"),
    ("--faults", "boot --print-command --faults /dev/stdin"),
    ("--trace", "boot --print-command --trace"),
    ("--bundle-size", "run --bundle-size 3"),
    ("--bundle-size", "soak --bundle-size 3"),
    ("--bundle-size", "test-e2e --bundle-size 3"),
    ("--bundle-size", "nightly --plan p --bundle-size 3"),
)


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    status: object
    stdout: str
    stderr: str


Say = Callable[..., Said]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run a command in this process, as its program does."""

    def run_words(*words: str, program: str = "vfio-user") -> Said:
        monkeypatch.setattr(sys, "argv", [program, *words])
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, getattr(sys, name))  # the program wraps it
        with pytest.raises(SystemExit) as ended:
            run_command(ROOTS[program])
        return Said(ended.value.code, *capsys.readouterr())

    return run_words


def options_of(name: str) -> dict[str, click.Option]:
    return {
        flag: option
        for option in command_of("vfio-user", name).params
        if isinstance(option, click.Option)
        for flag in option.opts
    }


def table_of(program: str) -> dict[str, tuple[str, str]]:
    return COMMANDS if program == "vfio-user" else VHOST_USER_COMMANDS


def command_of(program: str, name: str) -> click.Command:
    command: click.Command = import_module(f"vfio_user.cli.{table_of(program)[name][0]}").command
    return command


def test_an_option_that_would_say_nothing_beside_another_is_refused(say: Say) -> None:
    for option, words in BESIDE:
        done = say(*words.split())
        assert done.status == 2, words
        assert option in done.stderr or "2 workloads for 1 device" in done.stderr, words
        assert not done.stdout, words


def test_nothing_is_written_over_what_it_is_made_of(say: Say, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    TraceWriter(trace, "vfio-user", {}).close()
    written = trace.read_bytes()
    (tmp_path / "link").symlink_to(trace)
    for output in ("t", "link"):
        for words in ("trace export --format json", "show --no-open", "minimize --server-command false"):
            done = say(*words.split(), str(trace), "-o", str(tmp_path / output))
            assert done.status == 2, (words, output)
            assert str(tmp_path / output) in done.stderr, (words, output)
            assert trace.read_bytes() == written, (words, output)


@for_each(["--device", "--qemu", "--memory", "--cpus", "--iommu", "--modules", "--root-bus"])
def test_all_commands_that_boot_a_guest_take_the_same_hardware(flag: str) -> None:
    found = [options_of(name)[flag] for name in GUESTS]
    assert len({option.type.name for option in found}) == 1
    assert len({option.help for option in found if flag != "--device"}) <= 1


def test_modules_are_all_that_were_named_however_often_and_with_whatever_between_them() -> None:
    given: list[object] = []

    @click.command()
    @guest_hardware()
    def command(hardware: HardwareOptions, **_: object) -> None:
        given.append(hardware.get("modules", ()))

    for words in ([], ["--modules", "a,b"], ["--modules", " a ,,b,", "--modules", "c"], ["--modules", ","]):
        command.main(words, standalone_mode=False)
    assert given == [(), ("a", "b"), ("a", "b", "c"), ()]


@for_each_row(
    [
        ("vfio-user", ["bot"], "did you mean 'boot'?"),
        ("vfio-user", ["peer", "passt"], "`vhost-user peer`"),
        ("vhost-user", ["boot"], "`vfio-user boot`"),
        ("vfio-user", ["boot", "--devise", "edu"], "--device"),
        ("vfio-user", ["image", "buld"], "build"),
        ("vfio-user", ["soak", "edu", "--until", "3"], "--device edu"),
        ("vfio-user", ["run", "--cpus", "2", "edu"], "--device edu"),
        ("vfio-user", ["migrate", "my.py:Mine"], "--device my.py:Mine"),
        ("vfio-user", ["boot", "--print-command", "--device", "vhost-user-blc"], "did you mean 'vhost-user-blk'?"),
        ("vfio-user", ["image", "build", "storrage"], "did you mean 'storage'?"),
        ("vfio-user", ["qemu", "install", "forki"], "did you mean 'forky'?"),
        ("vfio-user", ["qemu", "which", "--qemu", "forki"], "did you mean 'forky'?"),
        ("vfio-user", ["serve", "edu --msix 0"], "without the quotes"),
        ("vfio-user", ["serve", "gpoi"], "did you mean 'gpio'?"),
        ("vhost-user", ["serve", "vhost-user-rgn"], "did you mean 'rng'?"),
        ("vfio-user", ["test-e2e", "--list", "migratoin"], "did you mean 'migration'?"),
        ("vfio-user", ["known-issues", "eject-twise"], "did you mean 'eject-twice'?"),
        ("vfio-user", ["known-issues", "late-repl"], "did you mean 'late-reply-loses-device'?"),
        ("vfio-user", ["conformance", "--list", "--only", "heder"], "did you mean 'header'?"),
        ("vfio-user", ["migrate", "--mode", "coordinatd"], "did you mean 'coordinated'?"),
        ("vfio-user", ["probe", "--dialect", "draft-v7"], "did you mean 'draft-v6'?"),
        ("vhost-user", ["peer", "virtiofs"], "did you mean 'virtiofsd'?"),
    ]
)
def test_a_word_that_is_nearly_right_is_told_what_was_meant(
    program: str, words: list[str], hint: str, say: Say
) -> None:
    done = say(*words, program=program)
    assert done.status == 2, done.stderr
    assert hint in done.stderr


def test_the_beginning_of_a_word_is_taken_for_it_if_it_is_no_mere_syllable() -> None:
    words = ["late-reply-loses-device", "register-descriptions", "migration"]
    for word, near in {
        "migratoin": "migration",
        "regi": "register-descriptions",
        "reg": None,
        "late-": "late-reply-loses-device",
        "ster": None,
        "nothing-like-any": None,
        "": None,
    }.items():
        assert meant(word, words) == (f"did you mean {near!r}? " if near else ""), word


def test_whatever_was_added_to_an_error_is_told_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    for error, status in ((UserError("no"), 2), (VerdictError("no"), 1), (OSError(errno.ENOENT, "no", "x"), 2)):
        error.add_note("logs: /a")
        error.add_note("evidence: /b")
        assert explain(error) == status
        assert capsys.readouterr().err.splitlines()[-2:] == ["  logs: /a", "  evidence: /b"], error


def test_a_disk_that_is_full_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        explain(OSError(number, "it is full", "results/log"))
        assert "make room" in capsys.readouterr().err


def test_a_file_in_a_folder_that_may_not_be_written_to_is_told_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "night" / "log"))
    explain(wrong)
    assert "may not write" not in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    explain(wrong)
    assert f"may not write to {tmp_path}:" in capsys.readouterr().err


@for_each_row(
    [
        ("vfio-user", ["conformance", "--json"], "--json FILE: Write JSON; - is the standard output"),
        ("vhost-user", ["conformance", "s", "--json"], "--json FILE: Write JSON; - is the standard output"),
        ("vfio-user", ["fuzz", "--for"], "90s, 10m"),
        ("vfio-user", ["serve", "edu", "--msix"], "--msix INT: "),
        ("vhost-user", ["serve", "blk", "--socket-path", "s", "--image"], "image"),
        ("vfio-user", ["trace", "export", "x", "--registers"], "Names of registers"),
    ]
)
def test_an_option_without_its_argument_is_told_what_that_would_be(
    program: str, words: list[str], what: str, say: Say
) -> None:
    done = say(*words, program=program)
    assert done.status == 2
    assert what in " ".join(done.stderr.split())
    depth = 2 if words[0] in ("serve", "trace") else 1
    assert f"{program} {' '.join(words[:depth])} --help" in done.stderr


@pytest.mark.parametrize("program", ROOTS)
def test_every_command_without_what_it_needs_says_what_that_is_and_explains_itself_all_the_same(
    say: Say, program: str
) -> None:
    """Groups print their help then, at whose end nobody looks for a mistake."""
    lists = {"serve": "DEVICE"}
    for name in ("", *table_of(program)):
        words = [name] if name else []
        command = command_of(program, name) if name else ROOTS[program]
        explained = say(*words, "--help", program=program)
        assert (explained.status, explained.stderr) == (0, ""), name
        if isinstance(command, click.Group) and command.no_args_is_help:
            alone = say(*words, program=program)
            assert alone.status == 2
            assert alone.stderr.splitlines()[-1] == f"Error: Missing {lists.get(name, 'COMMAND')}."


def test_a_device_has_the_same_name_where_it_is_served_and_where_it_is_plugged_in(say: Say) -> None:
    by_either = [say("serve", name, "--print-capabilities", program="vhost-user") for name in ("rng", "vhost-user-rng")]
    assert by_either[0].stdout == by_either[1].stdout != ""


@for_each_row(
    [
        (["--device", "edu"], "behind --"),
        (["minimal", "uname", "-r"], "behind --"),
        (["--image", "minimal", "storage", "--", "true"], "two images"),
        (["--image", "no-such-image", "--", "true"], "no-such-image"),
        (["--timeout", "0", "--", "true"], "--timeout"),
        (["no-such-image", "--", "true"], "no-such-image"),
        (["--device", "no-such-device", "--", "true"], "no-such-device"),
    ]
)
def test_what_was_not_run_in_a_guest_ends_with_a_status_of_its_own(
    words: Sequence[str], why: str, say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path))
    done = say("exec", *words)
    assert (done.status, done.stdout) == (NOT_RUN, "")
    assert why in done.stderr


WITH_NEITHER = {
    "boot": "a terminal of a guest",
    "serve": "a program",
    "interpose": "a program",
    "completion": "a script for a shell",
    "docs": "a browser",
    "man": "a page",
    "bundle schema": "JSON itself",
    "trace dissector": "a path",
    "trace cut": "a file",
    "trace export": "a file",
}
"""Commands of which neither a program nor a silent run is anything, and what they are instead."""
ANSWERS = {
    "bundle",
    "control",
    "image list",
    "known-issues",
    "nightly compare",
    "probe",
    "qemu list",
    "qemu which",
    "show",
    "trace",
}
"""Commands, and groups of them, that only answer: with --quiet there would be nothing."""


def commands_of(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group) and path != "serve":
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands_of(found, f"{path} {name}".strip())
    if path and (not isinstance(command, click.Group) or command.invoke_without_command or path == "serve"):
        yield path, command


@for_each(ROOTS)
def test_every_command_is_for_programs_and_whatever_takes_a_while_can_be_quiet(program: str) -> None:
    """But those of which that would be nothing, each with what it is instead."""
    for name, command in commands_of(ROOTS[program], ""):
        has = {flag for option in command.params for flag in option.opts} & {"--json", "--quiet"}
        only_answers = name in ANSWERS or name.partition(" ")[0] in ANSWERS
        wanted = set() if name in WITH_NEITHER else {"--json"} if only_answers else {"--json", "--quiet"}
        assert has == wanted, f"{program} {name}"


@for_each(ROOTS)
def test_every_argument_has_a_name_in_the_usage_of_which_the_manual_is_made(program: str) -> None:
    for name, command in commands_of(ROOTS[program], ""):
        assert all(command.collect_usage_pieces(click.Context(command))), f"{program} {name}"


@for_each_row(
    [
        ("vfio-user", ["probe", "--device", "edu --msix 0"], "1234:11e8"),
        ("vfio-user", ["conformance", "--device", "edu", "--only", "info", "--quiet"], "\n6 checks: 6 passed"),
        ("vhost-user", ["probe", "--device", "vhost-user-rng"], "queues:             1"),
        ("vhost-user", ["conformance", "--device", "rng", "--only", "features", "--quiet"], " 0 failed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_device_is_named_where_a_server_is_as_where_guests_have_it(
    program: str, words: list[str], shown: str, say: Say
) -> None:
    done = say(*words, program=program)
    assert (done.status, done.stderr) == (0, "")
    assert shown in done.stdout
    assert "--quiet" not in words or done.stdout.count("\n") == 2, "what is right is not shown"


@for_each_row(
    [
        ("vfio-user", ["probe"], "one server"),
        ("vfio-user", ["probe", "s", "--device", "edu"], "one server"),
        ("vfio-user", ["conformance", "s", "--device", "edu"], "one server"),
        ("vfio-user", ["probe", "--server-command", "x {socket}", "--device", "edu"], "one server"),
        ("vfio-user", ["replay", "t", "--connect", "x", "--device", "edu"], "one server"),
        ("vfio-user", ["minimize", "t", "--server-command", "x {socket}", "--device", "edu"], "one server"),
        ("vfio-user", ["minimize", "t"], "--device says which"),
        ("vfio-user", ["interpose", "--listen", "a", "--connect", "x", "--device", "edu"], "one server"),
        ("vhost-user", ["interpose", "--listen", "a", "--connect", "x", "--device", "rng"], "one server"),
        ("vhost-user", ["probe", "--server-command", "x {socket}", "--device", "blk"], "one server"),
        ("vfio-user", ["conformance", "--device", "vhost-user-rng"], "vhost-user"),
        ("vfio-user", ["probe", "--device", "qemu:edu"], "no server"),
        ("vhost-user", ["probe", "--device", "edu"], "vfio-user"),
        ("vhost-user", ["conformance", "s", "--device", "bkl"], "'blk'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_server_of_the_right_protocol_is_asked_for(program: str, words: list[str], why: str, say: Say) -> None:
    done = say(*words, program=program)
    assert done.status == 2
    assert why in done.stderr


def test_json_on_the_standard_output_is_all_that_is_there(say: Say) -> None:
    document = json.loads(say("conformance", "--device", "edu", "--only", "info", "--json", "-").stdout)
    assert {check["outcome"] for check in document["checks"]} == {"pass"}


def test_where_no_dma_goes_by_message_none_is_captured(say: Say) -> None:
    done = say("soak", "--capture-dma", "--device", "vhost-user-blk", "--device", "qemu:edu")
    assert done.status == 2
    assert "shared memory" in done.stderr


def test_a_register_map_that_cannot_be_read_is_told_where_nothing_is_traced_too(say: Say, tmp_path: Path) -> None:
    """And before a guest is booted."""
    done = say("run", "--registers", str(tmp_path / "nonesuch.yaml"))
    assert done.status == 2
    assert "nonesuch.yaml" in done.stderr
    assert done.stdout == ""


def test_every_command_with_guests_that_stay_captures_dma() -> None:
    assert all("--capture-dma" in options_of(command) for command in ("run", "test-e2e", "soak"))


def test_every_option_with_a_few_values_says_what_was_meant() -> None:
    folder = Path(__file__).parent.parent / "vfio_user" / "cli"
    without = [path.name for path in folder.glob("*.py") if "type=click.Choice" in path.read_text()]
    assert without == []
