"""Finds of a fuzzer in their files: read as they were written, and refused in words where they are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.test_fuzz_campaign import steps
from userdev.errors import UserError
from userdev.fuzz import Find, Oracle
from userdev.fuzz.finds import cause_of, corpus, silence_of


def test_a_find_is_read_as_it_was_written(tmp_path: Path) -> None:
    find = Find(
        "p",
        "rule",
        "a rule",
        "rule: c",
        "c\nwas said",
        steps("a b"),
        1,
        2,
        True,
        True,
        3,
        {"device": "d"},
        "s",
        "REFERENCE",
    )
    assert Find.read(find.write(tmp_path)) == find
    assert [found for _, found in corpus(tmp_path, "p")] == [find]


ENDLESS = json.dumps(Find("p", "rule", "", "rule: c", "", (), 1).plain()).replace('"seed": 1', '"seed": 1e999').encode()


@for_each(
    [
        b"",
        b"\0\1",
        b"{",
        b"[]",
        b'{"format": "x"}',
        b'{"format": "userdev fuzz find", "version": 1}',
        b"[" * 100000,
        ENDLESS,
    ]
)
def test_a_file_that_is_no_find_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError):
        Find.read(path)


def test_a_find_that_is_too_long_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = Find(
        "p", "rule", "a rule", "rule: c", "c\nwas said", steps("a b"), 1, 2, True, True, 3, {"device": "d"}, "s"
    )
    path = find.write(tmp_path)
    monkeypatch.setattr("userdev.fuzz.finds.MAX_FILE", path.stat().st_size)
    assert Find.read(path) == find
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError):
        Find.read(path)


@for_each([7, [["a"]], [["a", {"b": 1.5}]], [["a", {"b": True}]], [["a", {"b": None}]], [[1, {}]], None])
def test_steps_that_are_none_are_refused_in_words(wrong: object, tmp_path: Path) -> None:
    path = Find("p", "rule", "", "rule: c", "", ()).write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": wrong}))
    with pytest.raises(UserError):
        Find.read(path)


def test_a_folder_without_finds_of_the_protocol_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError):
            corpus(folder, "p")
    Find("q", "rule", "", "rule: c", "", ()).write(tmp_path)
    with pytest.raises(UserError):
        corpus(tmp_path, "p")


@for_each_row(
    [
        ("", "alive: no answer"),
        ("the server was killed by SIGSEGV:\n(it printed nothing)", "alive: the server was killed by SIGSEGV"),
        ("the server exited with status 1:\n  (it printed nothing; its disk is full)", "status #"),
        ("the server exited with status 1:\n  at 7\n  ValueError: x\n\n", "alive: ValueError: x"),
    ]
)
def test_the_cause_of_a_silence_is_what_the_server_said_last_or_how_it_ended(crash: str, cause: str) -> None:
    assert silence_of(Oracle("alive", "it answers"), "no answer", crash).cause.endswith(cause)


def test_a_cause_has_no_number_though_it_is_cut() -> None:
    """And is as long for whatever numbers were seen."""
    causes = {cause_of(f"at {number} {'word ' * 60}") for number in (1, 10**9, 0xABCDEF)}
    assert len(causes) == 1
    assert len(causes.pop()) == 200
