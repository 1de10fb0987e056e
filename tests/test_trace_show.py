"""`vfio-user trace show` and `export`: a recorded session for people, Wireshark and Perfetto."""

from __future__ import annotations

import gc
import itertools
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from tests.interposer_bench import Bench, answer, dma_map, read, request, write
from tests.pcapng import blocks
from tests.traced import Written, flag_at_work
from tests.vhost.between import Between
from tests.wireshark import Wireshark
from userdev.errors import UserError
from userdev.relay.direction import Direction
from userdev.trace import TraceLine, TraceRecord, decoded_lines
from userdev.trace.view import TraceView
from vfio_user.cli import cli
from vfio_user.interposer.trace.decode import describe
from vfio_user.interposer.trace.register_file import load_registers
from vfio_user.interposer.trace.show import PACKETS
from vfio_user.traces import open_trace
from vfio_user.wire import CURRENT, NO_REPLY, Command
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import Feature, FeatureFlags


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session with a bit of everything."""
    path = tmp_path_factory.mktemp("trace") / "session.trace"
    memory, event = os.memfd_create("guest"), os.eventfd(0)
    with Bench(trace=path) as bench:
        bench.negotiate()
        bench.exchange(dma_map(0x1000, 4096, memory))
        bench.exchange(request(Command.SET_IRQS, at.IRQ_SET.pack(20, 0x24, 2, 0, 1), fds=[event]))
        bench.client.send(read(0, 0x08))
        bench.server.send(answer(bench.server.receive(), b"\x78\x56\x34\x12"))
        bench.client.receive()
        bench.exchange(write(0, 0x20, b"\x80\0\0\0"))
        bench.exchange(read(7, 0), errno=22)
        feature = at.FEATURE.pack(16, 0x20002) + at.DEVICE_STATE.pack(3, 0)
        bench.exchange(request(Command.DEVICE_FEATURE, feature), feature)
        bench.server.send(request(Command.DMA_READ, at.DMA_ACCESS.pack(0x1000, 16), id=9))
        bench.client.send(bench.client.receive().reply(at.DMA_ACCESS.pack(0x1000, 16, tail=bytes(16))))
        bench.server.receive()
        bench.client.socket.send(b"\xff" * 30)
        bench.server.receive_bytes(30)
    os.close(memory)
    os.close(event)
    return path


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, ["trace", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def shown(trace: Path, *options: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in run("show", trace, "--json", *options).splitlines()]


@pytest.mark.parametrize("read", [TraceView.entries, TraceView.lines, TraceView.events])
def test_only_who_has_read_a_trace_to_its_end_hears_that_it_ends_early(
    read: Callable[[TraceView], Iterator[object]], trace: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.trace"
    cut.write_bytes(trace.read_bytes()[:-3])
    for path, ends_early in ((trace, False), (cut, True)):
        view = open_trace(path)
        assert view.truncated == ""
        entries = read(view)
        next(entries)
        assert view.truncated == ""
        assert list(entries)
        assert bool(view.truncated) is ends_early


def test_bytes_that_are_no_message_are_told_with_their_direction(trace: Path) -> None:
    (raw,) = [entry for entry in shown(trace) if "bytes" in entry]
    assert (raw["direction"], raw["bytes"]) == ("to-server", "ff" * 30)


@for_each_row(
    [
        (0x20002, "SET"),
        (0x10002, "GET"),
        (0x40002, "PROBE"),
        (0x50002, "GET|PROBE"),
        (0x2, "none"),
        (0xFFF80002, "none"),
    ]
)
def test_a_feature_is_told_with_what_is_done_to_it(flags: int, operation: str) -> None:
    message = request(Command.DEVICE_FEATURE, at.FEATURE.pack(16, flags) + at.DEVICE_STATE.pack(3, 0))
    found = describe(CURRENT, message).fields
    assert (found["feature"], found["operation"]) == ("MIG_DEVICE_STATE", operation)
    assert describe(CURRENT, message).detail.startswith(f"MIG_DEVICE_STATE {operation}")


def test_fields_that_say_nothing_are_left_out_of_a_feature() -> None:
    bodies = {
        Feature.MIG_DEVICE_STATE: (at.DEVICE_STATE.pack(3, 0), {"state"}),
        Feature.DMA_LOGGING_START: (at.LOGGING_CONTROL.pack(4096, 0, 0), {"page_size", "num_ranges"}),
    }
    for feature, (body, told) in bodies.items():
        message = request(Command.DEVICE_FEATURE, at.FEATURE.pack(64, FeatureFlags.SET | feature) + body)
        found = describe(CURRENT, message)
        assert found.fields.keys() == {"feature", "operation"} | told, feature
        assert not found.data, feature


def test_messages_are_shown_by_their_names(trace: Path) -> None:
    text = run("show", trace)
    for words in ("DMA_MAP flags=READ|WRITE", "irq=MSIX", "errno=EINVAL", "state=STOP_COPY", "= 0x12345678"):
        assert words in text


def test_a_reads_line_says_what_was_read(trace: Path) -> None:
    [line] = [line for line in run("show", trace, "--offset", "8", "--region", "BAR0").splitlines() if " -> #" in line]
    assert line.endswith("-> 0x12345678")
    asked, _ = shown(trace, "--offset", "8", "--region", "BAR0")
    answer = asked["answer"]
    assert isinstance(answer, dict)
    assert answer["value"] == 0x12345678


def test_a_request_that_was_refused_says_so(trace: Path) -> None:
    [asked, _] = shown(trace, "--region", "CONFIG")
    assert isinstance(asked["answer"], dict)
    assert asked["answer"]["error"] == "EINVAL"
    assert "-> EINVAL" in run("show", trace, "--region", "CONFIG")


def test_a_request_whose_answer_never_came_is_shown_in_its_place(tmp_path: Path) -> None:
    with Written(tmp_path / "t") as written:
        lost = written.read(0x10, None)
        later = [written.read(0x20, number) for number in range(3)]
    numbers = [int(str(line["record"])) for line in shown(tmp_path / "t")]
    assert numbers == sorted(numbers)
    assert {lost, *later} <= set(numbers)
    assert "answer" not in shown(tmp_path / "t", "--offset", "0x10")[0]


def test_a_pass_over_a_trace_keeps_no_more_of_one_that_is_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers what is posted; what is answered is told so."""
    monkeypatch.setattr("userdev.trace.lines.MOST_ASKED", 10)
    gc.collect()
    for posted in (50, 100):
        with Written(tmp_path / "t") as written:
            for number in range(posted):
                message = write(0, 0x20, number.to_bytes(4, "little"))
                message.flags |= NO_REPLY
                written.ask(message, None)
                written.read(0x10, number)
        lines = open_trace(tmp_path / "t").lines()
        answered, kept = 0, 0
        for line in lines:
            answered += line.answer is not None
            kept = max(kept, sum(type(each) is TraceLine for each in gc.get_objects()) if not answered % 10 else 0)
        assert answered == posted
        assert 10 <= kept <= 16
    del line


def test_values_are_numbers_for_programs(trace: Path) -> None:
    assert [line.get("value") for line in shown(trace, "--region", "BAR0")] == [None, 0x12345678, 0x80, None]


def test_nothing_that_somebody_says_makes_a_line_of_its_own(tmp_path: Path) -> None:
    """A mark, or a name in what a peer offers, could look like a message that never was."""
    forged = "here\n      9      0.000100 -> REGION_WRITE"
    with Written(tmp_path / "trace") as written:
        written.writer.note("mark", text=forged)
        written.writer.note(forged)
        offered = at.VERSION.pack(0, 0, tail=json.dumps({forged: forged}).encode() + b"\0")
        written.ask(request(Command.VERSION, offered), offered)
    lines = run("show", written.path).splitlines()
    assert [int(line.split()[0]) for line in lines] == [2, 3, 4, 5]


def test_an_interrupt_is_shown_by_its_name(tmp_path: Path) -> None:
    flag_at_work(tmp_path / "t", 1)
    assert "** interrupt index=MSIX vector=0 count=1" in run("show", tmp_path / "t")
    run("export", tmp_path / "t", "--format", "perfetto", "-o", tmp_path / "p")
    assert "interrupt MSIX 0" in {event["name"] for event in json.loads((tmp_path / "p").read_text())["traceEvents"]}


def test_several_writes_in_a_message_are_shown_one_by_one(tmp_path: Path) -> None:
    entries = at.WRITE_MULTI_ENTRY.struct.pack(0x60, 0, 4, b"\x5a\0\0\0") * 2
    with Written(tmp_path / "t") as written:
        written.ask(request(Command.REGION_WRITE_MULTI, at.WRITE_MULTI.pack(2, tail=entries)), at.WRITE_MULTI.pack(2))
    text = run("show", tmp_path / "t")
    assert text.count("offset=0x60 region=BAR0 length=4 value=0x5a") == 2


def test_registers_are_shown_by_the_names_that_the_trace_brings_along(tmp_path: Path) -> None:
    flag_at_work(tmp_path / "t", 1)
    names = {line["register"] for line in shown(tmp_path / "t", "--region", "BAR0")}
    assert names == {"up", "down", "causes"}
    assert len(shown(tmp_path / "t", "--register", "causes")) == 4
    with pytest.raises(UserError, match="no register"):
        run("show", tmp_path / "t", "--register", "cause")


@for_each([7, [3], [{"region": 0}], {"a": 1}, [{"region": 0, "offset": 0, "name": "a", "width": -1}]])
def test_names_in_a_trace_that_are_none_are_refused(wrong: object, tmp_path: Path) -> None:
    with Written(tmp_path / "t", wrong):  # type: ignore[arg-type]
        pass
    with pytest.raises(UserError):
        run("show", tmp_path / "t")
    assert run("show", tmp_path / "t", "--registers", "edu") == ""


@pytest.mark.parametrize(
    ("option", "name", "meant"),
    [("--command", "REGON_READ", "REGION_READ"), ("--region", "BAR", "BAR"), ("--region", "CONFG", "CONFIG")],
)
def test_a_filter_for_what_does_not_exist_says_what_is_near(trace: Path, option: str, name: str, meant: str) -> None:
    with pytest.raises(UserError) as refused:
        run("show", trace, option, name)
    assert f"did you mean '{meant}" in refused.value.hint


def test_registers_are_shown_by_the_names_of_our_own_device(trace: Path) -> None:
    assert [line["register"] for line in shown(trace, "--registers", "edu", "--register", "compute")] == ["compute"] * 2


def test_registers_are_shown_by_the_names_of_a_map(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("registers:\n- {region: 0, offset: 0x20, name: doorbell, count: 4}\n")
    lines = shown(trace, "--registers", str(tmp_path / "map.yaml"), "--register", "doorbell")
    assert {line["register"] for line in lines} == {"doorbell[0]"}


def test_a_registers_name_is_taken_as_it_is_printed(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("registers:\n- {region: 0, offset: 0x1e, name: ring, count: 2, width: 4}\n")
    named = ("--registers", str(tmp_path / "map.yaml"), "--register")
    [printed, _] = [str(line["register"]) for line in shown(trace, *named, "ring")]
    assert printed == "ring[0]+2"
    for name, count in ((printed, 2), ("ring[0]", 2), ("ring[1]", 0), ("ring[0]+1", 0)):
        assert len(shown(trace, *named, name)) == count


def test_a_register_that_nothing_has_is_refused_rather_than_never_seen(trace: Path) -> None:
    for name in ("compude", "compute[0]", "compute+9", "compute+"):
        with pytest.raises(UserError, match="no register"):
            run("show", trace, "--registers", "edu", "--register", name)
    with pytest.raises(UserError) as refused:
        run("show", trace, "--registers", "edu", "--register", "compude")
    assert "compute" in refused.value.hint
    with pytest.raises(UserError) as unlike:
        run("show", trace, "--registers", "edu", "--register", "inverted")
    assert all(name in unlike.value.hint for name in ("compute", "liveness")), "of a name like none, all are told"


@for_each_row(
    [
        (*row, begin)
        for row in [
            ("{region: 0, ofset: 8, name: b}", "did you mean 'offset'?"),
            ("{region: 0, offset: 8, width: 0, name: b}", "width"),
            ("{region: BAR0, offset: 8, name: b}", "'BAR0'"),
            ("{offset: 8, name: b}", "region"),
            ("{region: 0, offset: 8}", "name"),
        ]
        for begin in ["registers:", "# a list alone"]
    ]
)
def test_a_mistake_in_a_register_map_is_told_with_its_line(entry: str, about: str, begin: str, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(f"{begin}\n- {{region: 0, offset: 0, width: 4, name: a}}\n- {entry}\n")
    with pytest.raises(UserError) as refused:
        load_registers(path)
    assert f"{path}:3: " in str(refused.value)
    assert about in str(refused.value)


def test_a_register_map_may_be_empty_name_a_bar_and_number_its_registers(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    for nothing in ("", "registers:\n", "[]\n"):
        path.write_text(nothing)
        assert load_registers(path).registers == ()
    path.write_text('[{"bar": 2, "offset": 8, "name": 7, "count": 2, "stride": 16}]')
    assert load_registers(path).name(2, 24) == "7[1]"


@pytest.mark.parametrize("content", ["registers: [{region: 0}]", "registers: 7", "[[", "- 3"])
def test_a_wrong_map_is_refused(trace: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "map.yaml").write_text(content)
    with pytest.raises(UserError, match=r"map\.yaml"):
        run("show", trace, "--registers", tmp_path / "map.yaml")


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--command", "region_read"], 4),
        (["--command", "DEVICE_SET_IRQS", "--command", "SET_IRQS"], 2),
        (["--region", "BAR0"], 4),
        (["--region", "CONFIG", "--direction", "to-client"], 1),
        (["--region", "0", "--offset", "0x20-0x2f"], 2),
        (["--offset", "0x0b", "--region", "BAR0"], 2),
        (["--until", "0", "--command", "VERSION"], 0),
        (["--since", "0", "--command", "VERSION"], 2),
    ],
)
def test_filters_select(trace: Path, options: list[str], count: int) -> None:
    assert len(shown(trace, *options)) == count


def test_what_either_side_offers_is_shown(trace: Path) -> None:
    offered = [json.loads(str(line["json"])) for line in shown(trace, "--command", "VERSION")]
    assert [each.keys() for each in offered] == [{"capabilities"}] * 2


def test_a_filter_that_lets_nothing_through_says_so_beside_what_programs_read(trace: Path) -> None:
    for words, told in (
        (("--offset", "0x4000"), True),
        (("--since", "999", "--json"), True),
        (("--region", "BAR0"), False),
    ):
        result = CliRunner().invoke(cli, ["trace", "show", str(trace), *words], catch_exceptions=False)
        assert (str(trace) in result.stderr, not result.stdout) == (told, told), words


def test_a_part_of_a_register_is_not_the_whole(tmp_path: Path) -> None:
    """Nor where the trace brings the names along, which have to be some of them."""
    with Written(tmp_path / "t", [{"region": 0, "offset": 8, "width": 8, "name": "long"}]) as trace:
        trace.read(8, 1)
        trace.read(12, 2)
    for name, count in (("long", 4), ("long+4", 2)):
        assert len(shown(tmp_path / "t", "--register", name)) == count, name
    with pytest.raises(UserError, match="no register"):
        run("show", tmp_path / "t", "--register", "lung")


def test_what_says_nothing_of_a_protocol_is_refused_whatever_its_value(trace: Path, tmp_path: Path) -> None:
    with Between(tmp_path / "other"):
        pass
    for path, words in (
        (trace, "--ring 0"),
        (trace, "--ring 1"),
        (tmp_path / "other", "--region 0"),
        (tmp_path / "other", "--offset 0"),
        (tmp_path / "other", "--register a"),
    ):
        with pytest.raises(UserError, match=words.split()[0]):
            run("show", path, *words.split())


def test_a_reply_says_how_long_it_took_and_what_it_answers(trace: Path) -> None:
    request_line, reply = shown(trace, "--region", "BAR0", "--offset", "8")
    assert reply["request"] == request_line["record"]
    assert 0 < float(str(reply["latency"])) < 1


@pytest.mark.parametrize("wrong", [["--region", "BAR9"], ["--offset", "x"], ["--command", "NO_SUCH"]])
def test_wrong_filters_are_refused(trace: Path, wrong: list[str]) -> None:
    with pytest.raises(UserError):
        run("show", trace, *wrong)


def test_the_pcapng_file_has_a_packet_for_every_entry(trace: Path, tmp_path: Path) -> None:
    run("export", trace, "--format", "pcapng", "-o", tmp_path / "p")
    kinds = [kind for kind, _ in blocks((tmp_path / "p").read_bytes())]
    assert kinds[:2] == [0x0A0D0D0A, 1]
    assert kinds.count(6) == len(shown(trace))


def test_a_packet_of_a_note_says_no_more_than_the_note(tmp_path: Path) -> None:
    with Written(tmp_path / "t") as trace:
        trace.writer.note("mark")
    run("export", tmp_path / "t", "--format", "pcapng", "-o", tmp_path / "p")
    (packet,) = (body for kind, body in blocks((tmp_path / "p").read_bytes()) if kind == 6)
    length = struct.unpack_from("<I", packet, 12)[0]
    assert packet[20 + length + -length % 4 :].hex() == "0200040002000000" + "00000000", "its direction alone"


def test_each_packet_is_padded_to_words_with_its_options_behind(trace: Path, tmp_path: Path) -> None:
    """As pcapng has Enhanced Packet Blocks: whoever reads on at the wrong byte finds other options, or no end."""
    run("export", trace, "--format", "pcapng", "-o", tmp_path / "p")
    lengths = set()
    for kind, body in blocks((tmp_path / "p").read_bytes()):
        if kind == 6:
            length = struct.unpack_from("<I", body, 12)[0]
            lengths.add(length % 4)
            codes, at = [], 20 + length + -length % 4
            while at < len(body):
                code, size = struct.unpack_from("<HH", body, at)
                codes.append(code)
                at += 4 + size + -size % 4
            assert (codes[0], codes[-1], at) == (2, 0, len(body))
    assert len(lengths) > 1


def test_packets_say_the_names_of_registers_and_what_was_read(tmp_path: Path) -> None:
    flag_at_work(tmp_path / "t", 1)
    run("export", tmp_path / "t", "--format", "pcapng", "-o", tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    for comment in (b"up = 0x5a", b"causes -> 0x5a", b"causes = 0x5a"):
        assert comment in data


def test_what_is_said_of_a_packet_is_cut_to_what_an_option_holds(tmp_path: Path) -> None:
    for name in ("a" * 70_000, "\xe4" * 40_000):
        with Written(tmp_path / "t", [{"region": 0, "offset": 0x60, "name": name}]) as written:
            written.read(0x60, 1)
        run("export", tmp_path / "t", "--format", "pcapng", "-o", tmp_path / "p")
        data = (tmp_path / "p").read_bytes()
        assert name[: 0xFFFF // len(name[0].encode())].encode() in data
        (tmp_path / "t").unlink()


@pytest.mark.network
@pytest.mark.timeout(600)
def test_wireshark_decodes_the_pcapng_file_with_our_dissector(trace: Path, tmp_path: Path) -> None:
    run("export", trace, "--format", "pcapng", "-o", tmp_path / "packets")
    wireshark = Wireshark.unpacked(tmp_path / "root")
    wanted = "vfio_user.region == 0 && vfio_user.reply == 1"
    fields = ("vfio_user.name", "vfio_user.data", "vfio_user.value")
    rows = wireshark.fields(PACKETS.dissector, tmp_path / "packets", wanted, *fields)
    assert rows[0] == ["REGION_READ", "78563412", "0x0000000012345678"]
    [[info]] = wireshark.fields(
        PACKETS.dissector, tmp_path / "packets", "vfio_user.irq == 2 && vfio_user.reply == 0", "_ws.col.Info"
    )
    assert info == "DEVICE_SET_IRQS MSIX 0"


def test_a_note_is_of_no_direction_and_is_shown_with_either(tmp_path: Path) -> None:
    with Written(tmp_path / "t") as trace:
        trace.writer.note("mark")
        trace.read(8, 7)
        trace.writer.raw(Direction.TO_CLIENT, b"no message")
    for direction, messages in (("to-server", 1), ("to-client", 2)):
        lines = shown(tmp_path / "t", "--direction", direction)
        assert [line["event"] for line in lines if "event" in line] == ["mark"], direction
        assert len(lines) == 1 + messages, direction
    run("export", tmp_path / "t", "--format", "perfetto", "-o", tmp_path / "p")
    events = json.loads((tmp_path / "p").read_text())["traceEvents"]
    assert {"bytes": b"no message".hex()} in [event["args"] for event in events if event["name"] == "10 bytes"]


def test_lines_wait_for_a_reply_that_does_not_come_no_longer_than_so_many_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userdev.trace.lines.MOST_HELD", 4)
    with Written(tmp_path / "t") as trace:
        trace.read(8, None)
        for _ in range(20):
            trace.read(8, 7)
    view, taken = open_trace(tmp_path / "t"), itertools.count()
    entries = (entry for entry in view.entries() if next(taken) >= 0)
    lines = decoded_lines(entries, view.shown.decode)
    first = next(line for line in lines if isinstance(line.entry, TraceRecord))
    assert first.answer is None
    assert next(taken) <= 4 + 1, "what is held, and what comes then"
    assert len(list(lines)) == 2 * 20


def test_json_holds_every_entry(trace: Path, tmp_path: Path) -> None:
    run("export", trace, "--format", "json", "-o", tmp_path / "j")
    assert len(json.loads((tmp_path / "j").read_text())) == len(shown(trace))


@pytest.mark.parametrize("kind", ["pcapng", "json", "perfetto"])
def test_a_full_disk_is_named(trace: Path, kind: str) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        run("export", trace, "--format", kind, "-o", "/dev/full")
