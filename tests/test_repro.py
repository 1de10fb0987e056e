"""Doing a bundle again: what is said before anything starts, how often it is done, and what cannot be done."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.bundle_kit import FAILED, RECIPE, make_bundle
from tests.cases import for_each_row
from tests.test_harness_qemu import answers_like_qemu
from userdev.errors import UserError
from vfio_user.bundle import Outcome, Recipe, open_bundle
from vfio_user.bundle import again as doing
from vfio_user.bundle.again import Attempt, Command, do_again
from vfio_user.bundle.difference import About, Difference, differences
from vfio_user.bundle.model import QemuFacts
from vfio_user.cli import repro
from vfio_user.harness import qemu
from vfio_user.harness.cell import Cell

PASSED = Outcome(verdict="PASS")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a QEMU 10.1 of its own, on which results go to a folder that is thrown away."""
    monkeypatch.setenv(qemu.ENVIRONMENT, str(answers_like_qemu(tmp_path / "bin" / qemu.PROGRAM, "10.1.0")))
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path / "results"))


class Guests:
    """Runs that never are: each has the next outcome; `said` is what was printed before the first."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes: Iterator[Outcome] = itertools.cycle(outcomes)
        self.commands: list[list[str]] = []

    def __call__(self, found: Any, command: Command, folder: Path, **_: Any) -> Attempt:
        self.commands.append(command.argv(folder / "bundle"))
        make_bundle(folder / "bundle", outcome=next(self._outcomes), recipe=found.bundle.recipe)
        made = open_bundle(folder / "bundle")
        return Attempt(made, differences(found, made), 0.1)


def repeated(monkeypatch: pytest.MonkeyPatch, place: Path, *words: str, guests: Guests | None = None) -> Result:
    """`vfio-user repro` with guests that are none; without any, nothing may be started."""

    def nothing(*_: object, **__: object) -> Attempt:
        raise AssertionError("something was started")

    monkeypatch.setattr(repro, "do_again", guests or nothing)
    return CliRunner().invoke(repro.command, [str(place), *words])


def test_the_same_is_said_to_be_and_the_status_is_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "kept")
    result = repeated(monkeypatch, tmp_path / "kept", guests=Guests(FAILED))
    assert result.exit_code == 0, result.output
    assert "1: FAIL, the same" in result.output


def test_the_same_came_of_it_whatever_it_was_made_with_and_whatever_was_on_the_wire(tmp_path: Path) -> None:
    make_bundle(tmp_path / "kept")
    found = open_bundle(tmp_path / "kept")
    for about in About:
        attempt = Attempt(found, [Difference(about, "it", "so", "otherwise")], 0.1)
        assert attempt.same is (about not in (About.VERDICT, About.CAUSE, About.SAW)), about
    assert Attempt(found, [], 0.1).same


@pytest.mark.parametrize(
    ("outcome", "words", "said"),
    [
        (FAILED, ["--times", "2"], []),
        (FAILED, ["--until", "FAIL"], ["1: FAIL"]),
        (PASSED, ["--times", "2"], ["1: PASS", "2: PASS", "0 of 2", "verdict: FAIL -> PASS"]),
    ],
)
def test_a_quiet_one_says_only_what_is_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, words: list[str], said: list[str]
) -> None:
    make_bundle(tmp_path / "kept")
    output = repeated(monkeypatch, tmp_path / "kept", *words, "--quiet", guests=Guests(outcome)).output
    assert all(each in output for each in said)
    assert FAILED.cause not in output
    assert said or output == ""


def test_what_is_otherwise_is_said_and_the_status_is_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "kept")
    result = repeated(monkeypatch, tmp_path / "kept", guests=Guests(PASSED))
    assert result.exit_code == 1
    assert "verdict: FAIL -> PASS" in result.output


def test_another_qemu_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_with = QemuFacts(version="11.1.3", program="a" * 64)
    make_bundle(tmp_path / "kept", recipe=RECIPE.model_copy(update={"qemu": made_with}))
    result = repeated(monkeypatch, tmp_path / "kept")
    assert isinstance(result.exception, AssertionError)
    assert "otherwise here: version: QEMU: 11.1.3 -> 10.1" in result.output
    assert "otherwise here: version: QEMU's program: aaaaaaaaaaaa" in result.output


def test_the_same_version_of_another_program_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_with = QemuFacts(version="10.1.0", program="a" * 64)
    make_bundle(tmp_path / "kept", recipe=RECIPE.model_copy(update={"qemu": made_with}))
    output = repeated(monkeypatch, tmp_path / "kept").output
    assert "QEMU's program" in output
    assert "QEMU: 10.1" not in output


def test_a_server_that_was_changed_or_is_not_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "server"
    program.write_text("mended")
    recipe = RECIPE.model_copy(
        update={
            "arguments": ("--server", f"{program} {{socket}}"),
            "files": {str(program): "1" * 64, "/nowhere/helper": "2" * 64},
        }
    )
    make_bundle(tmp_path / "kept", recipe=recipe)
    output = repeated(monkeypatch, tmp_path / "kept").output
    assert f"{program}: {'1' * 12} ->" in output
    assert f"/nowhere/helper: {'2' * 12} -> nothing" in output


@for_each_row(
    [
        ((FAILED,), ["--times", "3"], ["FAIL"] * 3, 0),
        ((FAILED, PASSED), ["--times", "3"], ["FAIL", "PASS", "FAIL"], 1),
        ((PASSED, PASSED, FAILED), ["--until", "FAIL"], ["PASS", "PASS", "FAIL"], 0),
        ((PASSED,), ["--until", "fail", "--times", "2"], ["PASS", "PASS"], 1),
        ((FAILED, PASSED), ["--until", "PASS"], ["FAIL", "PASS"], 0),
    ]
)
def test_it_is_done_as_often_as_was_said(
    outcomes: tuple[Outcome, ...],
    words: list[str],
    verdicts: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_bundle(tmp_path / "kept")
    result = repeated(monkeypatch, tmp_path / "kept", *words, "--json", guests=Guests(*outcomes))
    assert [attempt["verdict"] for attempt in json.loads(result.stdout)["attempts"]] == verdicts
    assert result.exit_code == status
    until = words[words.index("--until") + 1].upper() if "--until" in words else "none"
    missed = f"{until} did not come in {len(verdicts)} times"
    assert (missed in result.stderr) is (until not in (verdicts[-1], "none")), words


OTHER_SERVERS = {
    "run": (
        ("--server", "./mine {socket}", "--cpus", "2"),
        "./other {socket}",
        ("--cpus", "2", "--server", "./other {socket}"),
    ),
    "migrate": (("--device", "./mine {socket}"), "./other {socket}", ("--device", "./other {socket}")),
    "soak": (("--device", "edu", "--seed", "3"), "./other {socket}", ("--seed", "3", "--device", "./other {socket}")),
}


@pytest.mark.parametrize("name", OTHER_SERVERS)
def test_another_server_is_put_where_the_command_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, server, after = OTHER_SERVERS[name]
    make_bundle(tmp_path / "kept", recipe=Recipe(command=name, arguments=before))
    guests = Guests(FAILED)
    for option in ("--server-command", "--server", "--device"):
        repeated(monkeypatch, tmp_path / "kept", option, server, guests=guests)
        words = guests.commands.pop()
        assert tuple(words[words.index(name) + 1 : words.index("--bundle")]) == after, option


def test_a_device_is_another_server_as_it_is_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where that is a guest's device, as its command where that is a server, with its name for a test."""
    edu = "edu --dma-mask 0xffff"
    said = []
    for name, before in {"soak": ("--device", "edu"), "run": ("--device", "edu"), "test-e2e": ("dma",)}.items():
        make_bundle(tmp_path / name, recipe=Recipe(command=name, arguments=before))
        guests = Guests(FAILED)
        repeated(monkeypatch, tmp_path / name, "--device", edu, guests=guests)
        said.append(guests.commands[0])
    of_soak, of_run, of_test = said
    assert of_soak[of_soak.index("--device") + 1] == edu
    served = shlex.split(of_run[of_run.index("--server") + 1])
    assert served[-5:] == ["edu", "--socket-path", "{socket}", *edu.split()[1:]]
    assert json.loads(of_test[of_test.index("--cell") + 1])["servers"].keys() == {"edu"}
    for words in (("--device", "qemu:edu"), ("--device", edu, "--server-command", "./mine {socket}")):
        assert isinstance(repeated(monkeypatch, tmp_path / "run", *words).exception, UserError), words


def test_another_server_of_a_test_is_said_with_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(command="test-e2e", arguments=("dma",), cell={"servers": {"edu": "./mine {socket}"}, "new": 1})
    make_bundle(tmp_path / "kept", recipe=recipe)
    guests = Guests(FAILED)
    repeated(monkeypatch, tmp_path / "kept", "--server-command", "edu=./other {socket}", guests=guests)
    [words] = guests.commands
    assert json.loads(words[words.index("--cell") + 1])["servers"] == {"edu": "./other {socket}"}
    refused = repeated(monkeypatch, tmp_path / "kept", "--server-command", "./other {socket}")
    assert isinstance(refused.exception, UserError)


def test_a_secret_that_was_left_out_has_to_be_said_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPE.model_copy(update={"arguments": ("--server", "./server --token {secret} {socket}")})
    make_bundle(tmp_path / "kept", recipe=recipe)
    refused = repeated(monkeypatch, tmp_path / "kept", guests=Guests(FAILED))
    assert isinstance(refused.exception, UserError)
    assert "secret" in str(refused.exception)
    words = ("--server-command", "./server --token again {socket}")
    assert repeated(monkeypatch, tmp_path / "kept", *words, guests=Guests(FAILED)).exit_code == 0


@for_each_row(
    [
        ("test-e2e", (), "/cell", "/cell"),
        ("test-e2e", (), "", ""),
        ("run", ("--cpus", "2"), "", ""),
        ("run", ("--qemu", "/word", "--cpus", "2"), "", "/word"),
        ("pytest", ("tests", "--qemu", "/word"), "", "/word"),
        ("run", ("--cpus", "2", "--qemu"), "", ""),
    ]
)
def test_the_qemu_of_a_command_is_where_the_command_says_it_and_another_goes_in_its_place(
    name: str, words: tuple[str, ...], of_cell: str, qemu: str
) -> None:
    command = Command(name, words, Cell(qemu=of_cell))
    assert command.qemu == qemu
    if words[-1:] != ("--qemu",):
        assert command.with_qemu("/other").qemu == "/other"
        assert command.with_qemu("").qemu == ""
        assert command.with_qemu("/other").arguments[: len(words)].count("--qemu") == words.count("--qemu")


@for_each_row(
    [
        ({}, []),
        ({"accelerator": "kvm"}, []),
        ({"accelerator": "tcg"}, ["accelerator"]),
        ({"qemu": QemuFacts(version="10.1.0")}, []),
        ({"qemu": QemuFacts(version="9.9.0")}, ["QEMU"]),
    ]
)
def test_what_a_bundle_does_not_say_it_was_made_with_is_not_otherwise_here(
    known: dict[str, Any], told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doing, "probe_accelerator", lambda _: "kvm")
    monkeypatch.setattr(doing, "qemu_facts", lambda _: QemuFacts(version="10.1.0"))
    monkeypatch.setattr(doing, "own_versions", dict)
    make_bundle(tmp_path / "kept", recipe=Recipe(command="run", **known))
    here = doing.prepare(open_bundle(tmp_path / "kept"), say=lambda _: None).here
    assert [difference.what for difference in here] == told


@pytest.mark.parametrize("words", [["--times", "0"], ["--until", "MAYBE"], []])
def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    refused = repeated(monkeypatch, tmp_path / "nowhere", *words)
    assert isinstance(refused.exception, UserError) or refused.exit_code == 2


def test_a_command_that_does_not_come_as_far_as_a_guest_is_told(tmp_path: Path) -> None:
    make_bundle(tmp_path / "kept", recipe=Recipe(command="run", arguments=("--device", "no-such-device")))
    found = open_bundle(tmp_path / "kept")
    with pytest.raises(UserError, match="exited with status 2") as caught:
        do_again(found, Command.of(found), tmp_path / "again")
    assert "no-such-device" in caught.value.evidence
    assert "--server-command" not in caught.value.hint


def test_a_server_that_is_not_on_this_machine_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "kept", recipe=Recipe(command="run"))
    found = open_bundle(tmp_path / "kept")
    says = ["/bin/sh", "-c", "echo 'user error: cannot start ./mine: No such file or directory'; exit 2"]
    monkeypatch.setattr(Command, "argv", lambda *_: says)
    with pytest.raises(UserError) as caught:
        do_again(found, Command.of(found), tmp_path / "again")
    assert "--server-command" in caught.value.hint


def test_a_qemu_of_the_bundle_that_is_not_here_is_not_insisted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.model_copy(
        update={
            "arguments": ("--qemu", "/opt/their/qemu", *RECIPE.arguments),
            "qemu": QemuFacts(version="11.1.3"),
        }
    )
    make_bundle(tmp_path / "kept", recipe=recipe)
    guests = Guests(FAILED)
    result = repeated(monkeypatch, tmp_path / "kept", guests=guests)
    assert "/opt/their/qemu" not in guests.commands[0]
    assert "cannot be had" in result.output
    assert doing.Command.of(open_bundle(tmp_path / "kept")).qemu == "/opt/their/qemu"


def test_of_several_times_the_last_that_was_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "kept")
    for quiet in ([], ["--quiet"]):
        guests = Guests(PASSED, FAILED)
        output = repeated(monkeypatch, tmp_path / "kept", "--times", "2", *quiet, guests=guests).output
        assert "1 of 2 the same" in output, quiet
        assert "verdict: FAIL -> PASS" in output, quiet
