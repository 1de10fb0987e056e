"""The page of a run or a trace: what of it is on the axis, and that nothing in it is more than text."""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from tests.interposer_bench import Bench, answer, dma_map, read, request, write
from tests.pages import Happened, happened
from tests.traced import Written, flag_at_work
from tests.vhost.between import Between
from userdev.errors import UserError
from userdev.relay.direction import Direction
from userdev.trace import View
from vfio_user.cli import cli
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap
from vfio_user.page import wire
from vfio_user.page.axis import MOST_PLACES, Axis, Kind, Row
from vfio_user.page.document import write_page
from vfio_user.page.names import COLLECTED
from vfio_user.page.wire import put_trace
from vfio_user.wire import Command
from vfio_user.wire import layouts as at


def session(path: Path) -> None:
    """Record one with a bit of everything, which ends while a register is read."""
    memory = os.memfd_create("guest")
    with Bench(trace=path) as bench:
        bench.negotiate()
        bench.exchange(dma_map(0x1000, 4096, memory))
        bench.client.send(read(0, 0x08))
        bench.server.send(answer(bench.server.receive(), b"\x78\x56\x34\x12"))
        bench.client.receive()
        bench.exchange(write(0, 0x20, b"\x80\0\0\0"), at.REGION_ACCESS.pack(0x20, 0, 4))
        bench.exchange(read(7, 0), errno=22)
        bench.server.send(request(Command.DMA_READ, at.DMA_ACCESS.pack(0x1000, 16), id=9))
        bench.client.send(bench.client.receive().reply(at.DMA_ACCESS.pack(0x1000, 16, tail=bytes(16))))
        bench.server.receive()
        bench.client.send(read(0, 0x24))
        bench.server.receive()
    os.close(memory)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "guest-dev0-edu.trace"
    session(path)
    return path


def page_of(what: Path, out: Path, registers: RegisterMap | None = None) -> list[Happened]:
    write_page(what, out, registers=registers)
    return happened(out)


def test_a_trace_is_in_rows_by_register_and_region_with_values(trace: Path, tmp_path: Path) -> None:
    names = RegisterMap([NamedRegister(0, 0x08, "compute")])
    found = page_of(trace, tmp_path / "page.html", names)
    by_row = {each.where: each for each in found}
    compute = by_row["guest-dev0-edu BAR0", "compute"]
    assert (compute.kind, compute.short) == ("read", "0x12345678")
    assert compute.fields["value"] == "0x12345678"
    assert compute.answer > compute.record > 0
    assert compute.lasted > 0, "an exchange takes from the request to its answer"
    written = by_row["guest-dev0-edu BAR0", "0x20"]
    assert (written.kind, written.short) == ("write", "0x80")
    assert by_row["guest-dev0-edu CONFIG", "vendor_id"].kind == "refused"
    assert {each.fields["command"] for each in found if each.where[1] == "DMA"} == {"DMA_MAP", "DMA_READ"}


def test_the_last_messages_are_all_that_came_last(tmp_path: Path) -> None:
    """Also a reply that a scenario kept from its client, and one whose request nobody has seen."""
    asked, own = read(0, 0x08, id=7), read(0, 0x24, id=9)
    with Written(tmp_path / "t") as trace:
        number = trace.writer.message(Direction.TO_SERVER, View.RECEIVED | View.SENT, asked)
        kept = asked.reply(at.REGION_ACCESS.pack(0x08, 0, 4, tail=b"\x78\x56\x34\x12"))
        trace.writer.message(Direction.TO_CLIENT, View.RECEIVED, kept, number)
        trace.writer.note("fault", act="drop")
        trace.writer.message(Direction.TO_CLIENT, View.RECEIVED | View.SENT, own.reply(b""))
    told = put_trace(Axis(), tmp_path / "t").last.splitlines()
    assert [int(line.split()[0]) for line in told] == [2, 3, 4, 5]
    assert "= 0x12345678" in told[1]


def test_what_was_never_answered_is_wrong_and_lasts_to_the_end(trace: Path, tmp_path: Path) -> None:
    [left] = [each for each in page_of(trace, tmp_path / "page.html") if each.where == ("guest-dev0-edu BAR0", "0x24")]
    assert (left.kind, left.short) == ("wrong", "never answered")


def test_what_qemu_is_refused_in_every_good_run_is_noise(tmp_path: Path) -> None:
    with Written(tmp_path / "dev.trace") as trace:
        trace.ask(request(Command.DMA_UNMAP, at.DMA_UNMAP.pack(24, 0, 0x1000, 0x1000)), errno.ENOENT)
        trace.ask(request(Command.DMA_UNMAP, at.DMA_UNMAP.pack(24, 0, 0x1000, 0x1000)), errno.EINVAL)
    kinds = {each.short: each.kind for each in page_of(tmp_path / "dev.trace", tmp_path / "page.html")}
    assert kinds["refused: ENOENT"] == "noise"
    assert kinds["refused: EINVAL"] == "refused"
    assert "EINVAL" in odd(tmp_path / "page.html")
    assert "ENOENT" not in odd(tmp_path / "page.html")


def odd(page: Path) -> str:
    """What a page says is odd, at its top."""
    return page.read_text().partition('<ul id="odd">')[2].partition("</ul>")[0]


def test_vhost_user_is_in_rows_by_ring(tmp_path: Path) -> None:
    with Between(tmp_path / "rng.trace") as between:
        between.negotiate()
    found = page_of(tmp_path / "rng.trace", tmp_path / "page.html")
    assert any(each.fields.get("command") == "SET_PROTOCOL_FEATURES" for each in found)


def test_all_that_a_run_wrote_down_is_on_one_axis(tmp_path: Path) -> None:
    moment = 1_795_932_999
    life = {"pid": 7, "when": moment, "ended": moment + 2, "fate": "was killed by SIGSEGV", "stopped": False}
    (tmp_path / "evidence.json").write_text(json.dumps({"of": "X.test_y", "first_cause": "it died"}))
    (tmp_path / "processes.json").write_text(json.dumps([{"name": "server", "in_order": False, **life}]))
    step = {"what": "boot guest", "began": 0.0, "seconds": 1.5, "error": "", "when": moment}
    (tmp_path / "timeline.json").write_text(json.dumps([step]))
    (tmp_path / "guest.qmp.log").write_text(
        '2026-11-29T06:16:40.000000+00:00 -> {"execute": "device_add", "arguments": {"driver": "vfio-user-pci"}}\n'
        '2026-11-29T06:16:40.250000+00:00 <- {"error": {"class": "GenericError", "desc": "no such thing"}}\n'
        '2026-11-29T06:16:40.500000+00:00 <- {"event": "RESET", "data": {}}\n'
        '2026-11-29T06:16:40.600000+00:00 -> {"execute": "quit"}\n'
    )
    (tmp_path / "guest.console.timed.log").write_text(f"{moment}.75 [    7.4] Kernel panic - not syncing: pretended\n")
    (tmp_path / "guest.dmesg.log").write_text(
        f"[    1.000000] long ago\n[   60.000000] now\n[   60.500000] vfio-user: collected at {moment + 1.5}\n"
    )
    clock = datetime.fromtimestamp(moment + 0.5).strftime("%H:%M:%S.%f")[:-3]
    (tmp_path / "dev0.server.log").write_text(f"listening\n{clock} INFO migration: RUNNING to STOP\n99:00:00.000 no\n")
    phase = {"phase": "pre-copy", "began": 0.25, "seconds": 0.5, "bytes": 4096}
    migration = {"when": moment, "seconds": 1.0, "verdict": "dead", "reason": "lost", "phases": [phase]}
    (tmp_path / "guest.1.migration.json").write_text(json.dumps(migration))
    found = page_of(tmp_path, tmp_path / "index.html")
    seen = {(each.where, each.title, each.kind) for each in found}
    assert seen >= {
        (("run", "steps"), "boot guest", "step"),
        (("run", "program server"), "server was killed by SIGSEGV", "wrong"),
        (("QMP", "guest"), "device_add: no such thing", "refused"),
        (("QMP", "guest"), "RESET", "event"),
        (("QMP", "guest"), "quit, never answered", "wrong"),
        (("console", "guest"), "[    7.4] Kernel panic - not syncing: pretended", "wrong"),
        (("kernel log", "guest"), "now", "said"),
        (("migration", "guest.1"), "phase pre-copy", "step"),
        (("migration", "guest.1"), "dead: lost", "wrong"),
        (("server log", "dev0"), "INFO migration: RUNNING to STOP", "said"),
    }
    assert not any(each.title == "long ago" for each in found), "what was before the run is in the log, and not here"
    assert {each.title: each.when for each in found}["device_add: no such thing"] == pytest.approx(1.0)


def test_answers_of_qmp_are_those_of_its_commands_in_their_order(tmp_path: Path) -> None:
    said = ('-> {"execute": "one"}', '-> {"execute": "two"}', '<- {"return": 1}', '<- {"error": {"desc": "no"}}')
    lines = (f"2026-11-29T06:16:4{second}+00:00 {line}\n" for second, line in enumerate(said))
    (tmp_path / "guest.qmp.log").write_text("".join(lines))
    found = [(each.title, each.kind, each.lasted) for each in page_of(tmp_path, tmp_path / "index.html")]
    assert found == [("one", "message", 2.0), ("two: no", "refused", 2.0)]


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def test_nothing_that_was_said_becomes_html(tmp_path: Path) -> None:
    (tmp_path / "evidence.json").write_text(json.dumps({"of": HOSTILE, "first_cause": HOSTILE, "deaths": []}))
    (tmp_path / "guest.console.log").write_text(HOSTILE)
    (tmp_path / "guest.console.timed.log").write_text(f"1795932999.5 {HOSTILE}\x1b[31m\n")
    (tmp_path / f"{HOSTILE.replace('/', ':')}.server.log").write_text("a name is text too")
    [said] = page_of(tmp_path, tmp_path / "index.html")
    assert said.title == HOSTILE + "\\x1b[31m"
    text = (tmp_path / "index.html").read_text()
    assert "<script>document" not in text
    assert "<img" not in text


def test_what_is_wrong_with_files_of_a_run_keeps_no_page_from_being_written(tmp_path: Path) -> None:
    for name in ("evidence.json", "timeline.json", "guest.migration.json", "soak.jsonl", "guest.qmp.log"):
        (tmp_path / name).write_bytes(b'[{"when": 1e400}, 7, "\xff"')
    (tmp_path / "cut.trace").write_bytes(b"vfutrc1\n\x10")
    page = write_page(tmp_path, tmp_path / "index.html")
    assert page.happened == 0
    assert "cut.trace" in page.truncated[0]


@for_each_row(
    [
        ("guest.console.timed.log", f"{'9' * 30}.0 in no year\n{'9' * 400}.0 in none at all\n1795932999.5 seen"),
        ("guest.dmesg.log", f"[{'9' * 30}.0] never\n[    1.0] seen\n[    2.0] {COLLECTED} 1795932999.5"),
        ("guest.qmp.log", '9999-12-31T23:59:59 <- {"event": "NEVER"}\n2026-11-29T10:00:00 <- {"event": "seen"}'),
        ("soak.jsonl", '{"kind": "event", "event": "seen", "when": 1795932999.5, "whole": "long"}'),
        ("timeline.json", '[{"what": "seen", "when": 1795932999.5, "of": NaN, "by": "\\ud800"}]'),
        ("guest.migration.json", '{"when": 1.7e9, "phases": [{"phase": "seen", "began": "soon"}], "seconds": "few"}'),
        ("processes.json", f'[{{"name": "seen \\ud800", "when": 1.7e9, "ended": {"9" * 400}}}]'),
    ],
    ids=["console", "kernel log", "QMP", "soak", "steps", "migration", "programs"],
)
def test_a_number_that_is_no_time_keeps_nothing_else_off_the_axis(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "evidence.json").write_text('{"of": "\\ud800"}')
    (tmp_path / name).write_text(said)
    (tmp_path / os.fsdecode(b"guest\xff.qemu.log")).write_text("a name that is no UTF-8")
    [found] = [each for each in page_of(tmp_path, tmp_path / "index.html") if "seen" in each.title]
    assert "NaN" not in found.fields.values()
    assert 'href="guest%FF.qemu.log"' in (tmp_path / "index.html").read_text()


def test_what_a_server_logs_over_midnight_is_on_the_axis(tmp_path: Path) -> None:
    midnight = datetime(2026, 11, 30)
    steps = [{"what": "boot", "when": (midnight - timedelta(seconds=30)).timestamp(), "seconds": 60}]
    (tmp_path / "timeline.json").write_text(json.dumps(steps))
    (tmp_path / "edu.server.log").write_text("23:59:40.000 before\n00:00:10.500 after\n00:00:20.000 Kernel panic\n")
    found = page_of(tmp_path, tmp_path / "index.html")
    assert [(each.title, each.when) for each in found if each.where[0] == "server log"] == [
        ("before", 10),
        ("after", 40.5),
        ("Kernel panic", 50),
    ]


def test_what_is_odd_about_a_trace_is_at_the_top_with_its_records(tmp_path: Path) -> None:
    truth = flag_at_work(tmp_path / "dev.trace", 200, stale=50)
    write_page(tmp_path / "dev.trace", tmp_path / "page.html")
    assert f'data-record="{truth["stale"]}"' in odd(tmp_path / "page.html")


def test_of_a_trace_that_is_too_long_what_went_as_usual_is_left_out_in_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Written(tmp_path / "dev.trace") as trace:
        for number in range(1000):
            trace.read(0x10, 7, errno=5 if number == 400 else 0)
    monkeypatch.setattr(wire, "MOST_RECORDS", 400)
    found = page_of(tmp_path / "dev.trace", tmp_path / "page.html")
    accesses = [each for each in found if each.where[0].endswith("BAR0")]
    assert 190 < len(accesses) < 210, "as many as may be, at its beginning and its end"
    assert [each.kind for each in accesses].count("refused") == 1, "what did not go as usual is there"
    assert accesses[-1].answer == 2001, "the end is there"
    [gap] = [each for each in found if "left out" in each.title]
    assert gap.lasted > 0
    first, last = map(int, gap.fields["records"].split(" to "))
    shown = {each.record for each in accesses if each.kind != "refused"}
    assert not shown & {*range(first, last + 1)}
    assert {first - 2, last + 1} & shown, "and no more is left out than is said"


def test_what_goes_on_for_ever_is_not_read(tmp_path: Path) -> None:
    for name in ("timeline.json", "guest.qemu.log", "evidence.json", "guest.commands.jsonl"):
        (tmp_path / name).symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "guest.dmesg.log")
    os.mkfifo(tmp_path / "dev.trace")
    assert write_page(tmp_path, tmp_path / "index.html").happened == 0
    with pytest.raises(UserError):
        write_page(tmp_path / "dev.trace", tmp_path / "page.html")


def test_a_cut_trace_is_shown_up_to_there_and_the_page_says_so(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.trace").write_bytes(trace.read_bytes()[:-10])
    page = write_page(tmp_path / "cut.trace", tmp_path / "page.html")
    assert page.happened
    assert "cut off within record" in page.truncated[0]
    assert page.truncated[0] in (tmp_path / "page.html").read_text()


@for_each(["nothing", "empty folder", "no trace"])
def test_what_is_no_run_and_no_trace_is_a_sentence(what: str, tmp_path: Path) -> None:
    path = tmp_path / what
    if what == "empty folder":
        path.mkdir()
    elif what == "no trace":
        path.write_text("hello")
    with pytest.raises(UserError):
        write_page(path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_folder_of_runs_says_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "evidence.json").write_text("{}")
    with pytest.raises(UserError) as refused:
        write_page(tmp_path, tmp_path / "page.html")
    assert str(tmp_path / "one") in refused.value.hint


def test_places_that_are_seldom_reached_share_a_row() -> None:
    axis = Axis()
    for place in range(MOST_PLACES + 10):
        for _ in range(place + 1):
            axis.tell(Row("dev", "BAR0", hex(place)), 5, "read", {}, Kind.READ)
    rows = [name for _, name in axis.packed().rows]
    assert rows == [*(f"BAR0 {place:#x}" for place in range(10, MOST_PLACES + 10)), "BAR0 other places"]


def test_a_page_asks_for_nothing(trace: Path, tmp_path: Path) -> None:
    write_page(trace, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for asking in (" src=", "<link", "@import", "url("):
        assert asking not in text.partition('<script type="application/json"')[0], asking


def test_show_writes_beside_what_is_shown_and_opens_nothing_unasked(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["show", str(trace), "--no-open", "-o", str(out)])
    assert done.exit_code == 0
    assert done.output.strip() == str(out)
    assert out.exists()
    done = CliRunner().invoke(cli, ["show", str(trace)])
    assert done.output.strip() == f"{trace}.html"
    said = json.loads(CliRunner().invoke(cli, ["show", str(trace), "--json"]).stdout)
    assert (said["page"], said["truncated"]) == (f"{trace}.html", [])
    assert said["happened"] > 0
