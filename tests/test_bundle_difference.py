"""What is otherwise in one bundle than in another: what makes two runs the same, and what may be why they are not."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from tests.bundle_kit import FAILED, RECIPE, SERVER, make_bundle
from tests.cases import for_each_row
from userdev.relay.direction import Direction
from userdev.trace import TraceWriter, View
from vfio_user.bundle import Outcome, Seen, open_bundle
from vfio_user.bundle.difference import About, differences
from vfio_user.bundle.model import QemuFacts
from vfio_user.bundle.wire import wire_differences
from vfio_user.cli.bundle import command
from vfio_user.interposer.trace.files import NAME
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire import layouts as at

QEMU = QemuFacts(version="11.1.3", program="a" * 64, packages="b" * 64, name="default")


def found(tmp_path: Path, first: dict[str, object], second: dict[str, object]) -> list[str]:
    """What is otherwise between two bundles of these."""
    make_bundle(tmp_path / "first", **first)
    make_bundle(tmp_path / "second", **second)
    return [str(each) for each in differences(open_bundle(tmp_path / "first"), open_bundle(tmp_path / "second"))]


def test_a_bundle_is_as_itself(tmp_path: Path) -> None:
    assert found(tmp_path, {}, {}) == []


OTHERS = {
    "verdict": (Outcome(verdict="PASS"), About.VERDICT),
    "cause": (FAILED.model_copy(update={"cause": "guest was killed by SIGABRT"}), About.CAUSE),
    "seen": (
        FAILED.model_copy(update={"saw": (FAILED.saw[0], Seen(what="computes", ok=False, seen="122"))}),
        About.SAW,
    ),
    "right": (FAILED.model_copy(update={"saw": (FAILED.saw[0], Seen(what="computes", ok=True))}), About.SAW),
    "less": (FAILED.model_copy(update={"saw": FAILED.saw[:1]}), About.SAW),
    "more": (FAILED.model_copy(update={"saw": (*FAILED.saw, Seen(what="dma", ok=True))}), About.SAW),
}


@for_each_row(OTHERS.values(), ids=OTHERS)
def test_another_outcome_is_not_the_same(outcome: Outcome, about: About, tmp_path: Path) -> None:
    make_bundle(tmp_path / "first")
    make_bundle(tmp_path / "second", outcome=outcome)
    told = differences(open_bundle(tmp_path / "first"), open_bundle(tmp_path / "second"))
    assert about in {each.about for each in told}
    assert CliRunner().invoke(command, ["diff", str(tmp_path / "first"), str(tmp_path / "second")]).exit_code == 1


def test_another_cause_is_told_beside_another_verdict(tmp_path: Path) -> None:
    """But not that what passes has none."""
    ended = Outcome(verdict="ERROR", cause="no guest came up", saw=FAILED.saw)
    passed = Outcome(verdict="PASS", saw=FAILED.saw)
    for number, (one, other, told) in enumerate(
        (
            (FAILED, ended, ["verdict: FAIL -> ERROR", f"cause: {FAILED.cause} -> no guest came up"]),
            (passed, FAILED, ["verdict: PASS -> FAIL"]),
            (FAILED, passed, ["verdict: FAIL -> PASS"]),
        )
    ):
        assert found(tmp_path / str(number), {"outcome": one}, {"outcome": other}) == told


@for_each_row(
    [
        ("no answer from /tmp/vfio-user-abc/x.sock", "no answer from /tmp/vfio-user-xyz/x.sock"),
        ("it took 12.31 s", "it took 11.9 s"),
        ("process 4711 was killed", "process 815 was killed"),
        ("at 0x7f880ba96d40", "at 0x7f880ba97e40"),
        ("guest-dev0-edu was killed", "guest-dev0-my-server.py was killed"),
        ("guest-dev0-edu: ValueError: no", "guest-dev0-my-server: ValueError: no"),
    ]
)
def test_what_is_another_in_every_run_makes_no_difference(one: str, other: str, tmp_path: Path) -> None:
    outcomes = [FAILED.model_copy(update={"cause": cause}) for cause in (one, other)]
    assert found(tmp_path, {"outcome": outcomes[0]}, {"outcome": outcomes[1]}) == []


@for_each_row(
    [
        ("5! is 121, not 120", "5! is 122, not 120"),
        ("guest-dev0-edu ended", "guest-dev1-edu ended"),
        ("read 0xed", "read 0xee"),
        ("7 of 8", "8 of 8"),
    ]
)
def test_numbers_that_were_seen_do(one: str, other: str, tmp_path: Path) -> None:
    outcomes = [FAILED.model_copy(update={"cause": cause}) for cause in (one, other)]
    assert found(tmp_path, {"outcome": outcomes[0]}, {"outcome": outcomes[1]}) == [f"cause: {one} -> {other}"]


def test_what_it_was_made_with_is_told_and_makes_it_no_other(tmp_path: Path) -> None:
    first = RECIPE.model_copy(update={"qemu": QEMU, "images": {"minimal": "1" * 64}, "files": {"./server": "5" * 64}})
    newer = QEMU.model_copy(update={"version": "11.2.0", "program": "c" * 64})
    second = first.model_copy(update={"qemu": newer, "images": {"minimal": "2" * 64}, "files": {"./server": "6" * 64}})
    assert found(tmp_path, {"recipe": first}, {"recipe": second}) == [
        "version: QEMU: 11.1.3 -> 11.2.0",
        f"version: QEMU's program: {'a' * 12} -> {'c' * 12}",
        f"version: image minimal: {'1' * 12} -> {'2' * 12}",
        f"version: ./server: {'5' * 12} -> {'6' * 12}",
    ]
    result = CliRunner().invoke(command, ["diff", str(tmp_path / "first"), str(tmp_path / "second"), "--json"])
    assert (result.exit_code, json.loads(result.output)["same"]) == (0, True)


def test_another_command_line_is_told_but_for_where_its_qemu_is(tmp_path: Path) -> None:
    other = RECIPE.model_copy(update={"arguments": ("--server", SERVER, "--qemu", "/opt/qemu")})
    assert found(tmp_path, {"recipe": RECIPE}, {"recipe": other}) == []
    other = RECIPE.model_copy(update={"arguments": ("--server", "./mended {socket}")})
    make_bundle(tmp_path / "third", recipe=other)
    told = differences(open_bundle(tmp_path / "first"), open_bundle(tmp_path / "third"))
    assert [each.about for each in told] == [About.COMMAND]


def test_of_cells_that_differ_it_is_told_in_what_but_for_where_its_qemu_is(tmp_path: Path) -> None:
    recipes = [
        RECIPE.model_copy(update={"cell": {"qemu": qemu, "interpose": on, "device": "edu"}})
        for qemu, on in (("", False), ("default", True))
    ]
    assert found(tmp_path, {"recipe": recipes[0]}, {"recipe": recipes[1]}) == [
        "command: cell's interpose: False -> True"
    ]


def trace(path: Path, *reads: int, written: int = 5) -> Path:
    """A trace in which the guest writes a register and reads another, which has these values in turn."""
    writer = TraceWriter(str(path), NAME, {"dialect": "current"})
    numbers = {name: CURRENT.number(name) for name in (Command.REGION_READ, Command.REGION_WRITE)}
    access = at.REGION_ACCESS.pack(8, 0, 4)
    write = Message(1, numbers[Command.REGION_WRITE], payload=access + written.to_bytes(4, "little"))
    pair = writer.message(Direction.TO_SERVER, View.RECEIVED | View.SENT, write, 0, 0)
    writer.message(Direction.TO_CLIENT, View.RECEIVED | View.SENT, write.reply(access), pair, 0)
    for value in reads:
        asked = Message(2, numbers[Command.REGION_READ], payload=at.REGION_ACCESS.pack(0x20, 0, 4))
        pair = writer.message(Direction.TO_SERVER, View.RECEIVED | View.SENT, asked, 0, 0)
        answer = asked.reply(at.REGION_ACCESS.pack(0x20, 0, 4, tail=value.to_bytes(4, "little")))
        writer.message(Direction.TO_CLIENT, View.RECEIVED | View.SENT, answer, pair, 0)
    writer.close()
    return path


def dma(path: Path, data: bytes, *, address: int = 0x1000) -> Path:
    """A trace in which the device writes to the guest's memory."""
    writer = TraceWriter(str(path), NAME, {"dialect": "current"})
    head = at.DMA_ACCESS.pack(address, len(data))
    written = Message(3, CURRENT.number(Command.DMA_WRITE), payload=head + data)
    pair = writer.message(Direction.TO_CLIENT, View.RECEIVED | View.SENT, written, 0, 0)
    writer.message(Direction.TO_SERVER, View.RECEIVED | View.SENT, written.reply(head), pair, 0)
    writer.close()
    return path


def test_a_register_that_was_asked_more_often_is_as_it_was(tmp_path: Path) -> None:
    one, other = trace(tmp_path / "one", 1, 0), trace(tmp_path / "other", 1, 1, 1, 1, 0, 0)
    assert list(wire_differences({"edu": one}, {"edu": other})) == []


def test_values_that_differ_are_told_by_register_from_the_first_on(tmp_path: Path) -> None:
    one, other = trace(tmp_path / "one", 1, 0, 7), trace(tmp_path / "other", 1, 0, 8, written=6)
    assert list(wire_differences({"edu": one}, {"edu": other})) == [
        ("edu: REGION_WRITE BAR0+0x8", "0x5", "0x6"),
        ("edu: REGION_READ BAR0+0x20, from value 3 on", "0x7", "0x8"),
    ]


def test_data_that_differs_at_its_end_alone_is_told(tmp_path: Path) -> None:
    first, second = dma(tmp_path / "first", bytes(4096)), dma(tmp_path / "second", bytes(4095) + b"x")
    [(what, one, other)] = wire_differences({"edu": first}, {"edu": second})
    assert what == "edu: DMA_WRITE"
    assert one != other
    assert list(wire_differences({"edu": first}, {"edu": dma(tmp_path / "third", bytes(4096), address=0x2000)})) == []


def test_a_server_of_which_one_has_no_trace_is_told(tmp_path: Path) -> None:
    one, other = trace(tmp_path / "one", 1), trace(tmp_path / "other", 1)
    assert list(wire_differences({"edu": one, "nvme": one}, {"edu": other, "gpio": other})) == [
        ("gpio", "no trace", "a trace"),
        ("nvme", "a trace", "no trace"),
    ]


def test_a_device_is_compared_with_itself_whatever_program_serves_it(tmp_path: Path) -> None:
    one, other = trace(tmp_path / "one", 1), trace(tmp_path / "other", 2)
    name = "guest-dev0-edu"
    read = f"{name}: REGION_READ BAR0+0x20"
    cases: dict[str, tuple[dict[str, Path], list[tuple[str, str, str]]]] = {
        "another program": ({"guest-dev0-my-server": other}, [(read, "0x1", "0x2")]),
        "the same words": ({"guest-dev0-my-server": one}, []),
        "both programs": ({"guest-dev0-my-server": one, name: one}, [("guest-dev0-my-server", "no trace", "a trace")]),
        "another device": (
            {"guest-dev1-edu": one},
            [(name, "a trace", "no trace"), ("guest-dev1-edu", "no trace", "a trace")],
        ),
    }
    for case, (second, expected) in cases.items():
        assert list(wire_differences({name: one}, second)) == expected, case


def test_a_trace_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"no trace")
    [(what, _, told)] = wire_differences({"edu": trace(tmp_path / "one", 1)}, {"edu": tmp_path / "other"})
    assert what == "edu"
    assert "no trace" in told
