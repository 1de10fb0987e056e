"""`vfio-user soak` as a person meets it: what is refused and how, how it ends, and the page that it leaves."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pygal
import pytest

from tests.cases import for_each, for_each_row
from tests.soak_kit import Loses, Pretended
from userdev.errors import UserError, VerdictError
from vfio_user.cli import soak as soak_command
from vfio_user.cli._soak_line import Teller, status_line
from vfio_user.soak import EVENTS, Done, Failed, Happening, Journal, Until
from vfio_user.soak.measuring import trends
from vfio_user.soak.plots import _histogram, plots
from vfio_user.soak.reduction import Reduction

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: str, loses: Loses = lambda _: "") -> Pretended:
    """The command with guests that are none."""
    pretended = Pretended(loses)
    monkeypatch.setattr(soak_command, "performances", lambda *_, **__: pretended)
    soak_command.command.main(list(words), standalone_mode=False)
    return pretended


def summary(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(results.glob("soak-*/summary.json")).read_text())
    return found


class Wanting(HTMLParser):
    """What a page would have to fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            return  # a person goes there
        wanted = {name: value for name, value in attrs if name in ("src", "href", "xlink:href") and value}
        self.fetched += [value for value in wanted.values() if value and not value.startswith("#")]
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def page(results: Path) -> Wanting:
    found = Wanting()
    found.feed(next(results.glob("soak-*/index.html")).read_text())
    return found


def test_a_good_soak_leaves_a_page_that_needs_nothing_and_a_summary(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--until", "30", "--seed", "3")
    assert page(results).fetched == []
    assert "30 events" in page(results).text
    found = summary(results)
    assert (found["ok"], found["events"], found["seed"]) == (True, 30, 3)
    assert sum(kind["count"] for kind in found["by_event"].values()) == 30
    assert found["downtime"] == {"median": 0.1, "longest": 0.1}
    assert found["left_out"] == {"flr edu": "it has none"}
    said = capsys.readouterr()
    assert "left out: flr edu: it has none" in said.err
    assert "nothing was lost" in said.out


def test_what_was_lost_is_told_with_the_command_that_repeats_it(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loses(lived: Sequence[Happening]) -> str:
        return "work of <edu>" if lived[-1].event == "kill" else ""

    with pytest.raises(VerdictError, match="work of <edu>"):
        run(monkeypatch, "--until", "first-failure", "--seed", "3", "--weight", "kill=1", loses=loses)
    [failure] = summary(results)["failures"]
    assert len(failure["reduced"]) == 1
    told = page(results).text
    assert "work of <edu>" in told
    assert 'href="guest1/index.html"' in next(results.glob("soak-*/index.html")).read_text()
    assert f"--weight kill=1 --seed 3 --only {failure['number']}" in told


def test_an_interrupted_soak_leaves_its_page_and_the_same_command_goes_on(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses(lived: Sequence[Happening]) -> str:
        if lived[-1].number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return ""

    with pytest.raises(click.Abort):
        run(monkeypatch, "--until", "10", loses=loses)
    assert "the same command goes on" in page(results).text
    first = summary(results)
    assert first["events"] in (4, 5)
    assert (first["ok"], bool(first["undone"])) == (False, True), (
        "who reads this alone would take it for one that passed"
    )
    pretended = run(monkeypatch, "--until", "10")
    assert pretended.guests[0].lived[0].number == first["events"] + 1


def test_what_has_failed_is_counted_where_a_soak_is_interrupted_behind_it(
    results: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was eight lines higher, or on the page."""

    def loses(lived: Sequence[Happening]) -> str:
        if lived[-1].number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return "work of edu" if lived[-1].number == 2 else ""

    with pytest.raises(click.Abort):
        run(monkeypatch, "--until", "10", loses=loses)
    told = capfd.readouterr()
    [last] = [line for line in (told.out + told.err).splitlines() if "interrupted after" in line]
    assert "1 failure so far" in last


def test_an_event_that_takes_long_is_said_to_where_no_line_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A hop whose guest does not answer is waited for for minutes, in which nothing was said; none of one that ends."""
    timers: list[Any] = []

    class Timed:
        daemon, over = False, False

        def __init__(self, seconds: float, function: Callable[..., None], words: list[str]) -> None:
            self.tell = lambda: function(*words)
            timers.append(self)

        def start(self) -> None: ...

        def cancel(self) -> None:
            self.over = True

    monkeypatch.setattr("vfio_user.cli._soak_line.Timer", Timed)
    events = [Happening(number, "hop") for number in (1, 2, 3)]
    for quiet in (False, True):
        with Teller(Journal(tmp_path / str(quiet), {}, 7), Until(events=9), quiet=quiet, as_json=False) as teller:
            teller.happens(events[0])
            teller.happened({"number": 1, "event": "hop", "target": "", "seconds": 1.0, "whole": 1.0})
            teller.happens(events[1])
            teller.failed(events[1], Failed("work", "it is gone"))
            teller.happens(events[2])
            assert [timer.over for timer in timers] == [True, True, quiet]
        assert [timer.over for timer in timers] == [True] * 3, "quiet adds none"
    timers[2].tell()
    assert "3 hop: goes on" in capfd.readouterr().err


def test_a_second_interruption_ends_it_at_once(tmp_path: Path) -> None:
    """Whoever is still ending things in order does not get to the end of it."""
    program = """
import time
from vfio_user.harness.interruption import interruptible
with interruptible(at_once_when_repeated=True):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for said in ("working", "ending"):
            assert process.stdout.readline().strip() == said
            process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(30) == 130
        assert time.monotonic() - began < 20


def test_a_disk_that_is_full_ends_it_with_the_reason_and_what_was_done(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal cannot be written any more, and neither can the page."""

    def loses(lived: Sequence[Happening]) -> str:
        if lived[-1].number == 4:
            monkeypatch.setattr(os, "fsync", full)
            monkeypatch.setattr(Path, "write_text", full)
        return ""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left") as refused:
        run(monkeypatch, "--until", "10", loses=loses)
    assert "there is no page" in refused.value.__notes__[0]
    monkeypatch.undo()
    monkeypatch.setenv("VFIO_USER_RESULTS", str(results))
    assert run(monkeypatch, "--until", "10").guests[0].lived[0].number == 5


@for_each_row(
    [
        (["--weight", "hopp=1"], "did you mean 'hop'"),
        (["--only-events", "hopp"], "did you mean 'hop'"),
        (["--only-events", "flr", "--weight", "flr=0"], "there are: hop"),
        (["--until", "soon"], "8h"),
        (["--device", "edu", "--workload", "dmaa"], "did you mean 'dma'"),
        (["--device", "edu", "--workload", "fio"], "edu has dma"),
        (["--device", "edo"], "edu"),
        (["--device", "dorbell:Doorbell"], "there is no module 'dorbell'"),
        (["--only", "x"], "3,17"),
        (["--only", "3"], "--seed"),
    ]
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(
    words: list[str], told: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as refused:
        run(monkeypatch, *words)
    assert told in f"{refused.value} {refused.value.hint}"
    assert not [*results.iterdir()]


def test_what_is_refused_before_a_program_is_started_leaves_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the journal of a soak before it, as it was; hosts are looked for by the lab."""
    for before in (None, '{"kind": "end"}\n'):
        if before is not None:
            (results / "soak.jsonl").write_text(before)
        with pytest.raises(UserError) as refused:
            soak_command.command.main(
                ["--until", "1", "--hosts", "local,ssh://nobody@127.0.0.1:1"], standalone_mode=False
            )
        assert not getattr(refused.value, "__notes__", [])
        assert [path.name for path in results.iterdir()] == ["soak.jsonl"] * (before is not None)
        assert before is None or (results / "soak.jsonl").read_text() == before


def test_a_journal_is_one_soaks_at_a_time(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would go on with the first, or have its events behind a beginning of its own."""
    told: list[str] = []

    def loses(lived: Sequence[Happening]) -> str:
        if not told:
            with pytest.raises(UserError) as refused:
                run(monkeypatch, "--until", "3")
            told.append(f"{refused.value} {refused.value.hint}")
            run(monkeypatch, "--until", "3", "--journal", str(results / "own.jsonl"))
        return ""

    run(monkeypatch, "--until", "5", loses=loses)
    assert "soak.jsonl" in told[0]
    assert "--journal" in told[0]
    assert len([*results.glob("soak-*")]) == 2, "nothing is left of the one that was refused"
    lines = [json.loads(line) for line in (results / "soak.jsonl").read_text().splitlines()]
    assert [line.get("number") for line in lines if line["kind"] == "event"] == [1, 2, 3, 4, 5]
    run(monkeypatch, "--until", "3")


def test_a_journal_that_cannot_be_read_leaves_no_results(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (results / "own.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="cannot read"):
        run(monkeypatch, "--until", "3", "--journal", str(results / "own.jsonl"))
    assert [path.name for path in results.iterdir()] == ["own.jsonl"]


def test_on_a_terminal_there_is_one_line_that_is_always_true(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TERM": "xterm", "COLUMNS": "150"}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = os.openpty()
    with ThreadPoolExecutor() as reader:
        shown = reader.submit(all_of, ours)
        with open(theirs, "w") as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            monkeypatch.setattr(sys, "stderr", terminal)
            run(monkeypatch, "--until", "7", "--seed", "3")
            monkeypatch.undo()
    text = shown.result().decode()
    assert "7 events, " in text
    assert "worst downtime 100 ms" in text
    assert "0 MiB, 10 descriptors" in text
    assert "looked at in" not in text, "a line for each event is for whoever reads it later"


def all_of(terminal: int) -> bytes:
    """What is shown on a terminal until nobody has its other end."""
    shown = b""
    with open(terminal, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # EIO: its last end was closed
        while piece := screen.read(65536):
            shown += piece
    return shown


def test_the_line_says_how_long_it_will_still_take() -> None:
    last = {"qemu_rss": 400 << 10, "harness_rss": 100 << 10, "qemu_fds": 90, "harness_fds": 20}
    line = status_line(Done(120, 6, 1), 3.0, last, 0.25, 3 * 3600 + 60, "now 7 hop")
    said = "6 events, 3.0 a minute, worst downtime 250 ms, 500 MiB, 110 descriptors, 1 failure, 3 h 01 min left"
    assert line == f"{said}, now 7 hop"
    assert status_line(Done(), 0.0, {}, 0, None, "") == "0 events"


def test_only_some_events_are_done_alone(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = run(monkeypatch, "--only", "3,5", "--seed", "1")
    assert [happening.number for happening in pretended.guests[0].lived] == [3, 5]
    assert not (results / "soak.jsonl").exists()


def test_hops_alone_have_a_short_form(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = run(monkeypatch, "--hops", "4", "--quiet")
    assert {happening.event for happening in pretended.guests[0].lived} == {"hop"}
    assert len(pretended.guests[0].lived) == 4
    assert summary(results)["soaked"]["devices"] == ["edu"]


def test_each_event_says_what_it_is_needs_and_verifies() -> None:
    for name, event in EVENTS.items():
        assert event.what, name
        assert event.needs, name
        assert event.verifies, name
        assert event.weight > 0, name


def test_the_guide_has_every_event_as_it_is() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "soak.md").read_text()
    for name, event in EVENTS.items():
        assert f"| {name} | {event.what} | {event.weight:g} | {event.needs} | {event.verifies} |" in guide


# -- what grows -------------------------------------------------------------------------------------------------------


def soaked(count: int, **growth: float) -> list[dict[str, Any]]:
    steady = {
        "harness_fds": 22,
        "harness_rss": 70_000,
        "qemu_fds": 92,
        "qemu_rss": 600_000,
        "servers_fds": 9,
        "servers_rss": 26_000,
        "downtime": 0.06,
    }
    return [{name: value + growth.get(name, 0) * event for name, value in steady.items()} for event in range(count)]


def test_events_that_are_all_alike_have_no_trend() -> None:
    assert trends(soaked(1000)) == []


@for_each_row([("harness_fds", 1), ("harness_rss", 2000), ("downtime", 0.01)])
def test_what_grows_with_every_event_is_named(name: str, each: float) -> None:
    [found] = trends(soaked(100, **{name: each}))
    assert found.startswith(name)


def test_a_night_tells_what_an_event_leaves_behind_in_the_harness() -> None:
    """One that forgot nothing grew by 38 KiB a hop, one that forgets grows by 4 KiB at most."""
    [found] = trends(soaked(1000, harness_rss=38))
    assert found.startswith("harness_rss")
    assert trends(soaked(1000, harness_rss=4)) == []


def test_one_slow_event_is_no_trend() -> None:
    some = soaked(40)
    some[-1]["downtime"] = 5.0
    assert trends(some) == []


def test_events_that_had_no_downtime_are_left_out() -> None:
    some = soaked(80, downtime=0.01)
    for line in some[::2]:
        line["downtime"] = None
    [found] = trends(some)
    assert found.startswith("downtime")


def test_a_few_events_tell_no_trend() -> None:
    assert trends(soaked(10, harness_fds=5)) == []


# -- plots ------------------------------------------------------------------------------------------------------------


@for_each([0, 1, 1000])
def test_plots_are_pictures_with_a_point_for_each_event(count: int) -> None:
    events = [
        {
            "number": n,
            "event": "hop",
            "target": "",
            "at": 60.0 * n,
            "whole": 1.0,
            "downtime": n / 1000,
            "qemu_rss": 1024,
        }
        for n in range(1, count + 1)
    ]
    failure = {"number": 0, "event": "kill", "target": "a<b>", "at": 30.0}
    drawn = plots(events, [failure])
    roots = [ET.fromstring(picture) for picture in drawn]
    assert {root.tag for root in roots} == {"{http://www.w3.org/2000/svg}svg"}
    titles = [title.text or "" for title in roots[0].iter("{http://www.w3.org/2000/svg}title")]
    assert sum(" hop" in title for title in titles) == count
    assert any("kill a<b>" in title for title in titles)


def test_plots_leave_later_imports_alone() -> None:
    """What draws them puts a hook before each import that finds nothing."""
    assert not any(isinstance(finder, pygal.PluginImportFixer) for finder in sys.meta_path)
    with pytest.raises(ModuleNotFoundError):  # and no warning, which would be an error here
        importlib.import_module("not_there")


def test_plots_have_the_values_of_the_journal_in_the_units_of_their_headings() -> None:
    usual = {"event": "hop", "target": "", "whole": 1.5, "qemu_fds": 5}
    events = [
        {"number": n, "at": 60.0 * n, "downtime": n / 1000, "qemu_rss": 2048 * n, "dirty_pages": 3 * n, **usual}
        for n in (1, 2, 30)
    ]
    told: dict[str, list[str]] = {}
    for picture in plots(events, []):
        root = ET.fromstring(picture)
        heading, *titles = (title.text or "" for title in root.iter(f"{SVG}title"))
        assert all(float(dot.get("cx", 0)) <= 1100 for dot in root.iter(f"{SVG}circle")), f"{heading}: within the plot"
        told[heading] = [title for title in titles if " hop" in title]
    for heading, values in {
        "Downtime, ms": (1, 2, 30),
        "Memory, MiB": (2, 4, 60),
        "Descriptors": (5, 5, 5),
        "Seconds until all was looked at": (1.5, 1.5, 1.5),
        "Pages that devices had written when a hop stopped them": (3, 6, 90),
    }.items():
        assert [title.split()[0] for title in told[heading]] == ["1", "2", "30"], heading
        for minute, value, title in zip((1, 2, 30), values, told[heading], strict=True):
            numbers = [float(word) for word in re.findall(r"[\d.]+", title.partition("hop")[2])]
            assert numbers == [minute, value], (heading, title)


def test_each_hop_is_in_the_bar_that_its_downtime_is_within_and_the_axis_has_all_of_them() -> None:
    """From nothing to beyond the longest. The bar of one hop of 657.4 ms was told as 635.5243348, and its axis as from
    636 to 656.
    """
    for downtimes in ([657.4], [0.0, 0.9, 1.0, 1.6, 29.9, 30.0], [0.0], [0.3, 1000.0, 5000.0], []):
        root = ET.fromstring(_histogram("it", downtimes))
        told = [bar.findtext(f"{SVG}title") or "" for bar in root.iter(f"{SVG}g") if bar.get("class") == "histbar"]
        bars = [[float(number) for number in re.findall(r"[\d.]+", text)] for text in told]
        assert sum(count for count, _, _ in bars) == len(downtimes), told
        for count, least, most in bars:
            assert len([one for one in downtimes if least <= one < most]) == count, (downtimes, told)
        axis = next(group for group in root.iter(f"{SVG}g") if group.get("class") == "axis x") if downtimes else None
        labels = [float(text.text or "") for text in axis.iter(f"{SVG}text")] if axis is not None else []
        assert not labels or labels[0] == 0, (downtimes, labels)
        assert not labels or labels[-1] + labels[1] >= max(downtimes), (downtimes, labels)


def test_what_is_left_of_a_failure_is_told_with_whether_less_of_it_might_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teller = Teller(Journal(tmp_path / "j", {}, 7), Until(events=9), quiet=True, as_json=False)
    event = Happening(3, "flr", "edu")
    for minimal, reproduced, said in (
        (True, True, "after 8 tries: still fails: 3 flr edu"),
        (False, True, "after 8 tries: still fails: 3 flr edu; fewer might, but --tries allows no more"),
        (False, False, "after 8 tries: did not fail again"),
    ):
        teller.reduced(Reduction((event,), 8, reproduced, minimal))
        assert capsys.readouterr().err == f"{said}\n", said
