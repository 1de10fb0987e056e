"""`control`: a program's control socket from the command line."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.interposed import Interposed, interposed_edu
from userdev.control import ControlError
from userdev.errors import UserError
from userdev_servers.gpio import Gpio
from vfio_user.cli import cli, vhost_user_cli
from vfio_user.cli._trace_stats import traced_file


@pytest.fixture
def edu(tmp_path: Path) -> Iterator[Interposed]:
    with interposed_edu(tmp_path, trace=str(tmp_path / "trace")) as interposed:
        interposed.client()
        yield interposed


def say(path: Path, *words: str) -> str:
    done = CliRunner().invoke(cli, ["control", str(path), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(path: Path, *words: str) -> str:
    with pytest.raises(UserError) as error:
        say(path, *words)
    return f"{error.value}\n{error.value.hint}"


def test_what_is_answered_is_printed_for_people_and_for_programs(edu: Interposed, tmp_path: Path) -> None:
    """Each value with the names of what it is in; bytes as digits; nothing where nothing is answered."""
    control = tmp_path / "control"
    assert "session.state: " in say(control, "status")
    assert json.loads(say(control, "status", "--json"))["session"]["state"]
    assert say(control, "mark", "text=here") == ""
    assert say(Path(f"unix:{control}"), "hold") == ""
    assert say(control, "resume") == "released: 0\n"
    identification = ("region_read", "region=BAR0", "offset=0x0", "size=4")
    assert say(control, *identification) == "data: ed000001\n"
    assert json.loads(say(control, *identification, "--json")) == {"data": "7QAAAQ=="}


def test_parameters_are_numbers_bytes_lists_and_text(edu: Interposed, tmp_path: Path) -> None:
    control = tmp_path / "control"
    for data in ("hex:5a000000", "WgAAAA=="):
        say(control, "region_write", "region=0", "offset=4", f"data={data}")
        assert say(control, "region_read", "region=0", "offset=4", "size=4") == "data: a5ffffff\n"
    assert say(control, "dma_write", "runs=[]") == "messages: 0\nbytes: 0\n"
    for said, text in (("5", "5"), ("[half", None), ('"[half"', "[half"), ("a = b", "a = b")):
        if text is None:
            assert "quotes" in refused(control, "mark", f"text={said}")
        else:
            say(control, "mark", f"text={said}")
    marks = [line.split("text=")[1] for line in _shown(tmp_path / "trace") if "text=" in line]
    assert marks == ["5", "[half", "a = b"]


def _shown(trace: Path) -> list[str]:
    return CliRunner().invoke(cli, ["trace", "show", str(trace)]).stdout.splitlines()


def test_what_is_wrong_is_told_with_what_was_meant(edu: Interposed, tmp_path: Path) -> None:
    control = tmp_path / "control"
    for words, about in {
        "statsu": "did you mean 'status'?",
        "region_read region=0 ofset=0 size=4": "did you mean 'offset'? region_read takes: region, offset, size",
        "region_read region=0 size=4": "'offset' is missing",
        "status now=1": "status takes nothing",
        "mark": "'text' is missing",
        "region_write region=0 offset=0 data=%%": "hex:",
        "region_read region": "NAME=VALUE",
        "mark text=a text=b": "twice",
        "mark command=stop": "no parameter",
        "region_read region=0 offset=0 size=-1": "region_read takes: region, offset, size",
        "dma_write iova=0": """'runs=[{"iova": ..., "size": ...}]', data""",
        "dma_logging_start page_size=some": """'ranges=[{"iova": ..., "size": ...}]'""",
    }.items():
        assert about in refused(control, *words.split()), words


def test_who_does_not_answer_or_speaks_otherwise_is_no_defect_of_ours(tmp_path: Path) -> None:
    """Neither for `control` nor where `trace stats` asks for the trace's name."""
    path = tmp_path / "control"
    for answer, about in (
        (None, "no answer to status in 0.05 s"),
        (b"7\n", "no control socket"),
        (b"{}\n", "no control"),
        (b'{"ok": true}\n', "no control"),
        (b'{"ok": 1, "result": {}}\n', "no control"),
        (b'{"ok": true, "result": 5}\n', "no control"),
        (b'{"ok": true, "result": {"raw": -1}}\n', "no control"),
        (b'{"ok": true, "result": {"raw": "1"}}\n', "no control"),
        (b'{"ok": false}\n', "no control"),
        (b'{"ok": false, "error": "no"}\n', "no control"),
        (b'{"ok": false, "error": {"what": 5}}\n', "no control"),
        (b'{"ok": false, "error": {"what": "no", "hint": 5}}\n', "no control"),
        (b'{"ok": false, "error": {"what": "no", "errno": "5"}}\n', "no control"),
        (b'{"event": 5}\n', "no control"),
        (b'{"ok": false, "error": {"what": "not now", "hint": "later", "errno": 11}}\n', "not now"),
    ):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            if answer is not None:
                served = threading.Thread(target=_serve, args=(listener, answer))
                served.start()
            assert about in refused(path, "status", "--timeout", "0.05" if answer is None else "60"), answer
            if answer is not None:
                served.join(60)
        path.unlink()
    assert "no control socket" in refused(path, "status")


def _serve(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(answer)


def test_the_trace_of_an_interposer_that_was_stopped_is_not_waited_for_as_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise TimeoutError

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        monkeypatch.setattr("userdev.control.client.ControlClient.call", silent)
        with pytest.raises(UserError, match="no answer to status"):
            traced_file(tmp_path / "control")


def test_a_devices_own_commands_are_taken_and_its_events_printed_until_it_goes(tmp_path: Path) -> None:
    device = Gpio(control=str(tmp_path / "control"))
    try:
        assert "inputs: 33" in say(tmp_path / "control", "set", "inputs=33").splitlines()
        told: list[str] = []

        def watch() -> None:
            done = CliRunner().invoke(cli, ["control", str(tmp_path / "control"), "watch"])
            told.append(done.stdout)
            assert isinstance(done.exception, ControlError)

        watching = threading.Thread(target=watch)
        watching.start()
        control = device._control
        assert control is not None
        while not any(each.watches for each in control._connected()):
            assert watching.is_alive()
            os.sched_yield()
        control.tell({"outputs": 3})
        while any(each._unread for each in control._connected()):
            assert watching.is_alive()
            os.sched_yield()
    finally:
        device.close()
    watching.join(60)
    assert told == ['watching: true\n{"outputs": 3}\n']


def test_commands_and_parameters_are_completed_by_protocol() -> None:
    """What an interposer of it takes; a parameter that is there already is not offered again."""
    for root, words, incomplete, wanted, unwanted in (
        (cli, ["c", ""], "region_", {"region_read", "region_write"}, {"status"}),
        (vhost_user_cli, ["c", ""], "", {"status", "session", "mark"}, {"region_read"}),
        (cli, ["c", "region_read", ""], "", {"region=", "offset=", "size="}, {"command=", "id="}),
        (cli, ["c", "region_read", "region=0", ""], "", {"offset=", "size="}, {"region="}),
    ):
        found = _completed(root, words[:-1], incomplete)
        assert wanted <= found, words
        assert not unwanted & found, words


def _completed(root: click.Command, words: list[str], incomplete: str) -> set[str]:
    from click.shell_completion import ShellComplete

    complete = ShellComplete(root, {}, str(root.name), "_COMPLETE")
    return {item.value for item in complete.get_completions(["control", *words], incomplete)}
