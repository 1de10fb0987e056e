"""Standing still at a record of a bundle's trace: which message that is in another run, and how it is held there."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.bundle_kit import make_bundle
from tests.cases import for_each, for_each_row
from tests.interposer_bench import read, write
from tests.traced import Written
from userdev.errors import UserError
from userdev.relay.direction import Direction
from vfio_user.bundle import OpenBundle, open_bundle, standing
from vfio_user.bundle.standing import Standing, first_place, place_of, stand
from vfio_user.harness.breakpoint import Breakpoint
from vfio_user.harness.interposition import Interposition
from vfio_user.interposer.faults.scenario import Scenario
from vfio_user.wire import layouts as at

HERE = Breakpoint("guest-dev0-edu", {"direction": "to-server", "command": "REGION_WRITE", "nth": 3}, "told")


class Recorded:
    """A bundle with traces, and the numbers of what is in them."""

    def __init__(self, tmp_path: Path, *servers: str) -> None:
        self.results = tmp_path / "kept-results"
        self.results.mkdir()
        for server in servers:
            with Written(self.results / f"{server}.trace") as trace:
                self.record(trace)
        make_bundle(tmp_path / "kept")
        self.bundle: OpenBundle = open_bundle(tmp_path / "kept")

    def record(self, trace: Written) -> None:
        trace.writer.note("connected")
        self.lost = trace.ask(write(0, 8, b"\1\0\0\0"))
        trace.writer.note("connected")
        self.first = trace.ask(write(0, 8, b"\5\0\0\0"))
        self.other = trace.ask(write(0, 0x60, b"\1\0\0\0"))
        self.status = trace.ask(read(0, 8, 4), at.REGION_ACCESS.pack(8, 0, 4) + b"\7\0\0\0")
        self.second = trace.ask(write(0, 8, b"\6\0\0\0"))
        self.of_server = trace.ask(read(0, 8, 4), None, direction=Direction.TO_CLIENT)


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path, "guest-dev0-edu")


def test_a_record_is_the_nth_of_its_kind_in_its_session(recorded: Recorded) -> None:
    places = {name: place_of(recorded.bundle, str(getattr(recorded, name))) for name in ("first", "other", "second")}
    assert {name: place.nth for name, place in places.items()} == {"first": 1, "other": 1, "second": 2}
    assert places["second"].match == {
        "direction": "to-server",
        "command": "REGION_WRITE",
        "kind": "request",
        "region": 0,
        "offset": 8,
    }
    assert "REGION_WRITE BAR0+0x8" in str(places["second"])


def test_a_reply_is_one_of_its_own(recorded: Recorded) -> None:
    place = place_of(recorded.bundle, str(recorded.status + 1))
    assert (place.match["direction"], place.match["kind"], place.match["offset"]) == ("to-client", "reply", 8)


def test_a_place_is_a_match_of_a_scenario(recorded: Recorded, tmp_path: Path) -> None:
    breakpoint = place_of(recorded.bundle, str(recorded.second)).breakpoint(tmp_path)
    scenario = Scenario.model_validate(breakpoint.within(None).faults)
    assert scenario.rules[0].match.nth == [2]
    assert scenario.rules[0].act[0].name == "hold"


def test_each_time_that_a_run_stands_still_it_goes_on_and_nothing_stays_open_whoever_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Control:
        def __init__(self, path: Path) -> None:
            done.append(f"connect {path}")

        def call(self, command: str) -> dict[str, object]:
            done.append(command)
            return {"server_pid": 5}

        def close(self) -> None:
            done.append("close")

    monkeypatch.setattr("vfio_user.bundle.standing.InterposerControl", Control)
    child = SimpleNamespace(wait=lambda *_, **__: None, running=False)
    told, trace = tmp_path / "processes.jsonl", tmp_path / "t"
    of_server = {"server": "guest-dev0", "control": "c", "trace": str(trace)}
    told.write_text("".join(f"{json.dumps(line)}\n" for line in ({"name": "guest", "pid": 7}, of_server)))
    with Written(trace) as written:
        for _ in range(2):
            written.writer.note("held")
            written.read(8, 7)
    goes_on = ["connect c", "resume", "close"]

    def only_looks(standing: Standing) -> None:
        assert standing.qemu_pid == 7

    def lets_it_go_on(standing: Standing) -> None:
        standing.go_on()
        standing.go_on()

    def fails(standing: Standing) -> None:
        raise KeyboardInterrupt

    here = Breakpoint("guest-dev0-edu", {}, str(told))
    for look in (only_looks, lets_it_go_on):
        assert stand(child, here, look) == 2  # type: ignore[arg-type]
        assert done == 2 * goes_on
        done.clear()
    with pytest.raises(KeyboardInterrupt):
        stand(child, here, fails)  # type: ignore[arg-type]
    assert done == goes_on


def test_the_first_place_is_the_first_message(recorded: Recorded) -> None:
    assert first_place(recorded.bundle) == place_of(recorded.bundle, str(recorded.lost))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1", "no record 1"),
        ("2", "record 2 is no message"),
        ("99", "no record 99"),
        ("x", "no record's"),
        ("b:3", "'b'"),
    ],
)
def test_what_is_no_message_is_refused(recorded: Recorded, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        place_of(recorded.bundle, text)


def test_of_several_traces_one_has_to_be_named(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "guest-dev0-edu", "guest-dev1-nvme")
    with pytest.raises(UserError, match="2 traces") as caught:
        place_of(recorded.bundle, str(recorded.first))
    assert f"guest-dev1-nvme:{recorded.first}" in caught.value.hint
    assert place_of(recorded.bundle, f"guest-dev1-nvme:{recorded.first}").server == "guest-dev1-nvme"


@for_each(["3", "guest:3", ""])
def test_a_bundle_without_a_trace_has_no_record(text: str, tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    with pytest.raises(UserError, match="no trace"):
        place_of(recorded.bundle, text)
    with pytest.raises(UserError, match="no trace"):
        first_place(recorded.bundle)


@for_each_row(
    [("guest-dev0-edu", True), ("guest-dev0-mended", True), ("guest-dev1-edu", False), ("guest2-dev0-edu", False)]
)
def test_the_same_device_is_meant_whatever_serves_it(server: str, meant: bool) -> None:
    assert HERE.is_at(server) is meant


def test_a_breakpoint_is_in_the_environment_of_what_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Breakpoint.of_environment() is None
    for name, value in HERE.exported().items():
        monkeypatch.setenv(name, value)
    assert Breakpoint.of_environment() == HERE


RULES: list[dict[str, Any]] = [{"name": "mine", "match": {"command": "DMA_WRITE"}, "act": "drop"}]


@for_each([True, False])
def test_what_else_an_interposer_does_it_does_with_a_hold_too(as_file: bool, tmp_path: Path) -> None:
    scenario: Any = {"seed": 7, "rules": RULES}
    if as_file:
        (tmp_path / "faults.yaml").write_text(yaml.safe_dump(scenario))
        scenario = tmp_path / "faults.yaml"
    made = HERE.within(Interposition(scenario, keep_alive=True, msg_timeout=30.0, capture_dma=True))
    assert isinstance(made.faults, dict)
    assert made.faults["seed"] == 7
    assert [rule["name"] for rule in made.faults["rules"]] == ["break", "mine"]
    assert made.keep_alive
    assert made.capture_dma
    assert made.msg_timeout is not None
    assert made.msg_timeout > 3600


def test_a_hold_is_told_once_however_its_note_comes() -> None:
    """At any byte a look may come, and no note is told twice or not at all."""
    said = b'x{"event":"held"}y{"event":"held"}{"event":"released"}{"event":"held"}'
    for first in range(len(said)):
        with NamedTemporaryFile() as file:
            trace, seen, told = Path(file.name), 0, 0
            for upto in (first, first + 5, first + 9, len(said)):
                trace.write_bytes(said[:upto])
                found, seen = standing._notes(trace, seen)
                told += found
            assert told == 3, first


def test_the_qemu_of_a_server_is_that_of_the_machine_that_its_name_begins_with() -> None:
    processes = {"guest": 1, "guest.1": 2, "guest.1-dev": 4, "other": 3}
    control: Any = None
    for server, pid in {"guest-dev0-edu": 1, "guest.1-dev0-edu": 2, "other-dev0": 3, "guest.1-dev-dev0": 4}.items():
        for order in (processes, dict(reversed(processes.items()))):
            assert Standing(dict(order), server, control).qemu_pid == pid, server
    assert Standing({"a": 9}, "guest-dev0", control).qemu_pid == 0
    assert Standing({"a": 9, "guest": 1}, "mine", control).qemu_pid == 1
    assert Standing({"guest": 1, "vm": 2}, "vm-dev0", control).qemu_pid == 2, "a longer name is no better one"
