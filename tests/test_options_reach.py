"""What an option says reaches what it is for, and nothing else: beside others, and in its smallest value."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

import click
import pytest
from click.testing import CliRunner, Result

from tests.cases import for_each_row
from userdev.declare.options import Option
from userdev.errors import UserError
from userdev.serving.command_line import Setting
from vfio_user.cli import (
    _conformance,
    _devices,
    _fuzzing,
    _interposing,
    cli,
    fuzz,
    image,
    interpose,
    vhost_conformance,
    vhost_fuzz,
    vhost_interpose,
    vhost_probe,
    vhost_user_cli,
)
from vfio_user.harness.image import GuestImage, ImageStatus
from vfio_user.interposer.survival import Policy
from vfio_user.wire import DRAFT_V6
from vhost_user.frontend.conformance import DEVICES

PROGRAMS: Mapping[str, click.Command] = {"vfio-user": cli, "vhost-user": vhost_user_cli}


def say(line: str) -> Result:
    """What comes of a command line, which is not one that fails of itself."""
    program, *words = line.split()
    done = CliRunner().invoke(PROGRAMS[program], words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, f"{line}: {done.output}"
    return done


# -- interposers

BOTH = ("vfio-user", "vhost-user")
SURVIVING: Mapping[str, dict[str, object]] = {
    "": {},
    "--msg-timeout 9": {"msg_timeout": 9.0},
    "--pending fail": {"pending": "fail"},
    "--pending-errno ENXIO": {"errno": errno.ENXIO},
    "--pending-errno 16": {"errno": errno.EBUSY},
    "--no-kick": {"kick": False},
    "--signal-error": {"signal_error": True},
    "--hang-timeout 7": {"hang_timeout": 7.0},
    "--give-up-after 11": {"give_up_after": 11.0},
}
OF_ANY: Mapping[str, dict[str, object]] = {
    "--connect b": {"connect": "b"},
    "--connect b --server-pid 77": {"connect": "b", "server_pid": 77},
    "--connect b --trace t": {"connect": "b", "trace": "t"},
    "--connect b --faults f": {"connect": "b", "faults": "f"},
    "--connect b --control c": {"connect": "b", "control": "c"},
    "--connect b --trace t --control c": {"connect": "b", "trace": "t", "control": "c"},
    "--server-command S": {"server_command": "S"},
}
OF_VFIO_USER: Mapping[str, dict[str, object]] = {
    "--connect b --dialect draft-v6": {"connect": "b", "dialect": DRAFT_V6},
    "--connect b --capture-dma": {"connect": "b", "capture_dma": True},
    "--connect b --capture-interrupts": {"connect": "b", "capture_interrupts": True},
    **{
        f"{server} {survives} {words}": {**given, "survive": Policy(**said)}  # type: ignore[arg-type]
        for server, survives, given in (
            ("--server-command S", "--keep-alive", {"server_command": "S"}),
            ("--connect b", "--reconnect", {"connect": "b"}),
        )
        for words, said in SURVIVING.items()
    },
}


@pytest.fixture
def setups(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the interposers were told that were to be run."""
    made: list[Any] = []
    for module in (interpose, vhost_interpose):
        monkeypatch.setattr(module, "Interposer", lambda setup: made.append(setup))
        monkeypatch.setattr(module, "run", lambda interposer, listen, target: None)
    return made


def test_an_interposer_is_told_what_its_options_say_and_no_more(setups: list[Any]) -> None:
    for program, table in (*((each, OF_ANY) for each in BOTH), ("vfio-user", OF_VFIO_USER)):
        for words, wanted in table.items():
            setups.clear()
            say(f"{program} interpose --listen a {words}")
            [setup] = setups
            usual = type(setup)(listen="a")
            fields = [each.name for each in dataclasses.fields(setup)]
            told = {name: getattr(setup, name) for name in fields if getattr(setup, name) != getattr(usual, name)}
            assert told == wanted, f"{program} {words}"


def test_what_is_no_errno_is_refused(setups: list[Any]) -> None:
    for word in ("EWHAT", "eio", "E", "", "0x", "0", "-5", "4096"):
        words = ["interpose", "--listen", "a", "--connect", "b", "--reconnect", "--pending-errno", word]
        assert CliRunner().invoke(cli, words).exit_code == 2, word
    assert not setups


class Stopped:
    """An interposer that takes the signals that are to end it, as a person or a test sends them."""

    def __init__(self) -> None:
        self.loop = SimpleNamespace(stop_on=lambda *signals: self.signals.extend(signals))
        self.signals: list[signal.Signals] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def run(self) -> None:
        assert {signal.SIGTERM, signal.SIGINT} == set(self.signals), "it is known before it serves"


def test_an_interposer_ends_with_either_signal() -> None:
    _interposing.run(Stopped(), "a", "b")  # type: ignore[arg-type]


# -- what asks a server


class Done(Exception):
    """It came as far as the server."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How servers were asked for, and with what they would have been tried."""
    told: list[Any] = []

    @contextmanager
    def server(address: str | None, command: str | None, greet: object, *, timeout: float) -> Iterator[Any]:
        told.append((address, command and command.split()[0], timeout))
        yield SimpleNamespace(try_out=lambda: "", connect=lambda: None)

    def subject(*given: Any, **more: Any) -> Any:
        told.append((given[1], more["timeout"], more["level"]))
        raise Done

    def checks(*given: Any, timeout: float = 5.0) -> Iterator[Any]:
        told.append((given[2], timeout))
        return iter(())

    def front_end(stream: object, *, timeout: float = 5.0) -> Any:
        told.append(timeout)
        raise Done

    for module in (_conformance, _fuzzing, vhost_probe):
        monkeypatch.setattr(module, "server", server)
    monkeypatch.setattr(vhost_fuzz, "VhostUserSubject", subject)
    monkeypatch.setattr(fuzz, "VfioUserSubject", subject)
    monkeypatch.setattr(vhost_conformance, "run", checks)
    monkeypatch.setattr(vhost_probe, "FrontEnd", front_end)
    return told


BLK = DEVICES["blk"]
ASKED: Mapping[str, Sequence[object]] = {
    "vhost-user fuzz s": [("s", None, 5.0), (None, 5.0, "reference")],
    "vhost-user fuzz s --timeout 0.5": [("s", None, 0.5), (None, 0.5, "reference")],
    "vhost-user fuzz s --level must": [("s", None, 5.0), (None, 5.0, "must")],
    "vhost-user fuzz s --device blk": [("s", None, 5.0), (BLK, 5.0, "reference")],
    "vhost-user fuzz s --device vhost-user-blk": [("s", None, 5.0), (BLK, 5.0, "reference")],
    "vhost-user fuzz --server-command S --device blk": [(None, "S", 5.0), (BLK, 5.0, "reference")],
    "vhost-user fuzz s --against R --timeout 3": [(None, "R", 3.0), (None, 3.0, "reference")],
    "vhost-user conformance s": [("s", None, 5.0), (None, 5.0)],
    "vhost-user conformance s --timeout 0.5": [("s", None, 0.5), (None, 0.5)],
    "vhost-user conformance s --device vhost-user-blk": [("s", None, 5.0), (BLK, 5.0)],
    "vhost-user conformance --server-command S --device blk": [(None, "S", 5.0), (BLK, 5.0)],
    "vhost-user probe s --timeout 0.5": [("s", None, 0.5), 0.5],
    "vhost-user probe --server-command S": [(None, "S", 5.0), 5.0],
}


def test_a_server_is_tried_as_the_options_say(asked: list[Any]) -> None:
    for line, wanted in ASKED.items():
        asked.clear()
        program, *words = line.split()
        done = CliRunner().invoke(PROGRAMS[program], words)
        assert done.exception is None or isinstance(done.exception, Done), f"{line}: {done.exception!r} {done.output}"
        assert asked == wanted, line


def test_a_device_without_a_server_is_started_and_known_by_its_short_name(asked: list[Any]) -> None:
    for command in ("fuzz", "conformance"):
        for device in ("blk", "vhost-user-blk", "blk --size 1M"):
            asked.clear()
            CliRunner().invoke(vhost_user_cli, [command, "--device", device])
            (address, started, _), (kind, *_) = asked
            assert address is None, (command, device)
            assert started, (command, device)
            assert kind is BLK, (command, device)


# -- what is told on the way, to whom


@for_each_row([("", True, False), ("--quiet", False, False), ("--json", True, True), ("--quiet --json", False, True)])
def test_an_image_is_built_with_its_progress_beside_what_it_is(
    words: str, is_told: bool, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {each.name: f"the-{each.name}" for each in dataclasses.fields(GuestImage)}
    built = SimpleNamespace(**fields)

    def build(name: str, progress: Callable[[str], None]) -> Any:
        progress("a step of it")
        return built

    monkeypatch.setattr(image, "build_image", build)
    done = say(f"vfio-user image build minimal {words}")
    assert ("a step of it" in done.stderr) is is_told
    assert "a step of it" not in done.stdout
    assert ("{" in done.stdout) is is_json
    for name in ("digest", "kernel", "bzimage", "initramfs", "ssh_key", "host_key"):
        assert done.stdout.count(f"the-{name}") == 1, name


def test_programs_are_told_the_bytes_of_an_image_and_people_its_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {each.name: f"the-{each.name}" for each in dataclasses.fields(GuestImage)}
    built: Any = SimpleNamespace(**fields, size=12_345_678)
    there = [ImageStatus("there", "an image", built), ImageStatus("missing", "another", None)]
    monkeypatch.setattr(image, "list_images", lambda: there)
    first, second = json.loads(say("vfio-user image list --json").stdout)
    assert (first["size"], first["image"]["host_key"]) == (12_345_678, "the-host_key")
    assert (second["size"], second["image"]) == (0, None)
    _, *lines = say("vfio-user image list").stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [["there", "the-digest", "12"], ["missing", "no", "another"]]


def test_a_list_for_people_is_refused_beside_what_is_for_programs() -> None:
    """The names were printed where JSON was asked for, and no file of results was written."""
    for line in (
        "vfio-user fuzz --oracles --json",
        "vhost-user fuzz --oracles --json",
        "vfio-user conformance --list --json -",
        "vhost-user conformance --list --json results.json",
        "vfio-user conformance --list --junit results.xml",
        "vfio-user test-e2e --list --json",
    ):
        program, *words = line.split()
        done = CliRunner().invoke(PROGRAMS[program], words)
        assert (done.exit_code, done.stdout) == (2, ""), line
        assert words[-1] in done.stderr or words[-2] in done.stderr, line


# -- numbers

ANY_TIME = {"--since", "--until"}
"""Options that name a moment, of which a trace need not have one."""


def numbers() -> Iterator[tuple[str, click.Option]]:
    """Every option of both programs that takes a number with a fraction, such as seconds."""
    for program, root in PROGRAMS.items():
        left: list[tuple[str, click.Command]] = [(program, root)]
        while left:
            name, command = left.pop()
            options = [option for option in command.params if isinstance(option, click.Option)]
            yield from ((f"{name} {each.opts[0]}", each) for each in options if _converted(each, "1.5") == 1.5)
            if isinstance(command, click.Group) and not isinstance(command, _devices.DeviceGroup):
                context = click.Context(command)
                below = {each: command.get_command(context, each) for each in command.list_commands(context)}
                left += [(f"{name} {each}", one) for each, one in below.items() if one is not None]


def _converted(option: click.Option, text: str) -> object:
    """What a text is for an option; None where it is refused."""
    try:
        return option.type(text, option, click.Context(click.Command("x")))
    except (click.BadParameter, UserError):
        return None


def test_no_time_is_none_endless_or_no_number() -> None:
    """With no time for its answer the best server would be found to be wrong."""
    found = dict(numbers())
    assert {"vfio-user probe --timeout", "vhost-user fuzz --timeout", "vfio-user replay --patience"} <= found.keys()
    for name, option in found.items():
        for text in ("nan", "inf", "-inf", "1e300", "-1e300", "1,5", ""):
            assert _converted(option, text) is None, (name, text)
        if option.opts[0] not in ANY_TIME:
            assert _converted(option, "-1") is None, name
        if "timeout" in name or "patience" in name:
            assert _converted(option, "0") is None, name
        assert _converted(option, "3") == 3, name


# -- options of devices


def test_an_option_of_a_device_says_its_default_whatever_that_is() -> None:
    for default, type, told in ((0, int, "0"), (False, bool, "False"), ("", str, ""), (None, int, ""), (7, int, "7")):
        option = _devices._own_option(Option("some_size", type, default, "Help."))
        assert option.opts == ["--some-size"]
        assert ("[default:" in (option.help or "")) is bool(told), default
        assert (option.help or "").endswith(f"[default: {told}]" if told else "Help."), default


def test_a_setting_of_serve_takes_what_it_may_be_and_shows_what_that_is() -> None:
    """The default is shown where there is one."""
    for setting, good, bad, shown in (
        (
            Setting("seconds", "Help.", float, 1.0, at_least=0.5),
            ["0.5", "2"],
            ["0.4", "0", "-1", "x", "nan", "inf"],
            True,
        ),
        (Setting("way", "Help.", default="a", choices=("a", "b")), ["a", "b"], ["c", ""], True),
        (Setting("fd", "Help.", int, flags=("-f",)), ["3"], ["x"], False),
        (Setting("path", "Help."), ["", "x"], [], False),
    ):
        command = click.Command("serve", params=[_devices._setting_option(setting)], callback=lambda **_: None)
        for text in good + bad:
            for flag in (setting.flag, *setting.flags):
                assert _is_taken(setting, text) is (text in good), (setting.name, text)
                status = CliRunner().invoke(command, [flag, text]).exit_code
                assert status == (0 if text in good else 2), (setting.name, flag, text)
        assert ("default" in CliRunner().invoke(command, ["--help"]).output) is shown, setting.name


def _is_taken(setting: Setting, text: str) -> bool:
    """Whether `serve` takes it where a command line is plain, and no person is asked."""
    try:
        setting.value(text)
    except ValueError:
        return False
    return True


def test_a_device_that_is_broken_hides_no_other() -> None:
    class Good:
        """It works.

        And more.
        """

    class Silent:
        pass

    def find(name: str) -> type:
        if name == "bad":
            raise UserError("bad.py has a mistake")
        return {"good": Good, "silent": Silent}[name]

    catalogue = SimpleNamespace(names=lambda: ["bad", "good", "silent"], find=find)
    group = _devices.DeviceGroup(name="serve", serving=SimpleNamespace(catalogue=catalogue))  # type: ignore[arg-type]
    lines = CliRunner().invoke(group, ["--help"]).output.partition("Devices:")[2].splitlines()
    told = {name: " ".join(words) for name, *words in map(str.split, filter(str.strip, lines))}
    assert told == {"bad": "bad.py has a mistake", "good": "It works.", "silent": ""}
