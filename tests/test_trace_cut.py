"""`trace cut`: a part of a trace is a trace, in which everything reads as it did in the whole one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.interposer_bench import request
from tests.traced import CAUSES, DOWN, REGISTERS, UP, Written
from tests.vhost.between import Between, R
from userdev.errors import UserError
from vfio_user.cli import cli
from vfio_user.interposer.replay import load_script
from vfio_user.wire import Command
from vfio_user.wire import layouts as at


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A session: 2 a note, 3 and 4 VERSION, 5 to 8 two registers, 9 a mark, 10 to 13 two more, 14 a mark, 15 and 16."""
    with Written(tmp_path / "whole", REGISTERS) as trace:
        trace.writer.note("connected")
        trace.ask(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0")), at.VERSION.pack(0, 1, tail=b"{}\0"))
        for mark in ("good", "wrong"):
            trace.write(UP, 0x5A)
            trace.read(CAUSES, 0x5A)
            trace.writer.note("mark", text=mark)
        trace.write(DOWN, 0x5A)
    return tmp_path / "whole"


def of_vhost_user(path: Path) -> Path:
    with Between(path) as between:
        between.negotiate()
        between.ask(R.GET_QUEUE_NUM, answer=4)
        between.ask(R.GET_QUEUE_NUM, answer=8)
    return path


def say(*words: str | Path) -> str:
    done = CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def shown(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in say("trace", "show", path, "--json").splitlines()]


def part_of(trace: Path, first: int, last: int) -> dict[str, Any]:
    return {"event": "part", "of": trace.name, "records": f"{first}-{last}"}


def as_in_the_whole(line: Mapping[str, Any], moved: int) -> dict[str, Any]:
    """A line of a part with the numbers that its records have in the whole trace."""
    told = {**line, "record": line["record"] + moved}
    if "request" in told:
        told["request"] += moved
    if "answer" in told:
        told["answer"] = {**told["answer"], "record": told["answer"]["record"] + moved}
    return told


def test_what_is_in_a_part_reads_as_in_the_whole_trace(whole: Path, tmp_path: Path) -> None:
    """Of either protocol: times, what was asked and answered; a note says what it is a part of."""
    out = tmp_path / "part"
    for trace, first, last in ((whole, 5, 9), (whole, 2, 4), (of_vhost_user(tmp_path / "forth"), 5, 10)):
        say("trace", "cut", trace, "-o", out, "--records", f"{first}-{last}")
        there, here = shown(trace), shown(out)
        assert [as_in_the_whole(line, first - 3) for line in here[1:]] == there[first - 2 : last - 1], trace
        assert here[0] | {"seconds": 0} == {"record": 2, "seconds": 0, **part_of(trace, first, last)}


def test_every_reader_takes_a_part(whole: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    for trace in (whole, of_vhost_user(tmp_path / "forth")):
        say("trace", "cut", trace, "-o", part, "--records", "4-8")
        for line in (
            "stats --json",
            "stats",
            f"diff {part}",
            f"export --format pcapng -o {tmp_path / 'out'}",
            f"export --format perfetto -o {tmp_path / 'out'}",
            f"export --format json -o {tmp_path / 'out'}",
            f"cut --records 2-3 -o {tmp_path / 'again'}",
        ):
            name, *options = line.split()
            say("trace", name, part, *options)
        say("show", part, "-o", tmp_path / "page.html", "--no-open")
        assert shown(tmp_path / "again")[0].items() >= part_of(part, 2, 3).items()


def test_a_reply_to_what_is_not_in_a_part_answers_nothing_there(whole: Path, tmp_path: Path) -> None:
    say("trace", "cut", whole, "-o", tmp_path / "part", "--records", "6-7")
    _, reply, asked = shown(tmp_path / "part")
    assert (reply["kind"], "request" in reply, "answer" in asked) == ("reply", False, False)


def test_a_part_is_said_by_records_seconds_and_marks(whole: Path, tmp_path: Path) -> None:
    """Of several all hold; each end is part of it."""
    out = tmp_path / "part"
    at_second = {entry["record"]: entry["seconds"] for entry in shown(whole)}
    for words, wanted in {
        "--records 7-": (7, 16),
        "--records -7": (2, 7),
        "--records 7": (7, 7),
        "--records 0-99": (2, 16),
        f"--since {at_second[9]}": (9, 16),
        f"--until {at_second[9]}": (2, 9),
        f"--since {at_second[5]} --until {at_second[8]}": (5, 8),
        f"--since {at_second[5]} --records -6": (5, 6),
        "--from-mark good": (9, 16),
        "--to-mark good": (2, 9),
        "--from-mark good --to-mark wrong": (9, 14),
        "--from-mark good --records 11-12": (11, 12),
    }.items():
        told = say("trace", "cut", whole, "-o", out, *words.split())
        assert shown(out)[0]["records"] == f"{wanted[0]}-{wanted[1]}", words
        assert f"records {wanted[0]} to {wanted[1]} of {whole}" in told, words


def test_a_part_that_there_is_not_is_refused_before_anything_is_written(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "part"
    for words, about in {
        "": "--from-mark",
        "--records 9-5": "5-9",
        "--records -1": "'-1'",
        "--records 1": "'1'",
        "--records some": "some",
        "--records -": "'-'",
        "--records 17-": "2 to 16",
        "--since 999": "2 to 16",
        "--until -1": "2 to 16",
        "--from-mark god": "did you mean 'good'?",
        "--from-mark nothing": "'good', 'wrong'",
        "--to-mark good --records 10-": "good",
    }.items():
        line = ["trace", "cut", str(whole), "-o", str(out), *words.split()]
        with pytest.raises((UserError, click.UsageError)) as refused:
            cli.main(line, standalone_mode=False)
        said = getattr(refused.value, "message", str(refused.value)) + getattr(refused.value, "hint", "")
        assert about in said, words
        assert not out.exists(), words


def test_a_trace_is_never_written_over(whole: Path, tmp_path: Path) -> None:
    before = whole.read_bytes()
    (tmp_path / "link").symlink_to(whole)
    for out in (whole, tmp_path / "link"):
        with pytest.raises(UserError, match="read"):
            say("trace", "cut", whole, "-o", out, "--records", "2-3")
        assert whole.read_bytes() == before


def test_that_the_whole_trace_ends_early_is_told_of_a_part_that_goes_so_far(whole: Path, tmp_path: Path) -> None:
    whole.write_bytes(whole.read_bytes()[:-3])
    for records, told in (("5-8", False), ("5-", True)):
        done = CliRunner().invoke(cli, ["trace", "cut", str(whole), "-o", str(tmp_path / "part"), "--records", records])
        assert ("cut off within record 16" in done.stderr) is told, records
    assert shown(tmp_path / "part")[-1]["record"] == 15 - 5 + 3


def test_a_part_is_replayed_from_the_beginning_of_its_session_alone(whole: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    say("trace", "cut", whole, "-o", part, "--to-mark", "good")
    assert [step.number for step in load_script(part).requests] == [4, 6, 8]
    say("trace", "cut", whole, "-o", part, "--from-mark", "good")
    with pytest.raises(UserError, match="the beginning of a session"):
        load_script(part)


@for_each([2, 5])
def test_what_is_compared_of_a_reduced_trace_is_compared_of_its_part(first: int, tmp_path: Path) -> None:
    with Written(tmp_path / "reduced") as trace:
        trace.writer.note("extract", compared=[7], all_interrupts=True)
        trace.ask(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0")), at.VERSION.pack(0, 1, tail=b"{}\0"))
        for value in (1, 2, 3):
            trace.read(CAUSES, value)
    part = tmp_path / "part"
    say("trace", "cut", tmp_path / "reduced", "-o", part, "--records", f"{first}-8")
    lines = shown(part)
    [compared] = next(line["compared"] for line in lines if line.get("event") == "extract")
    [asked] = [line for line in lines if line["record"] == compared]
    assert asked["answer"]["value"] == 2
