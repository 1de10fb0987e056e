"""What has been recorded is not lost to what is written at its place next, whichever command that is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.interposer_bench import Bench, read
from tests.vhost.between import Between
from userdev.errors import UserError
from userdev.trace import TraceWriter
from userdev.trace.format import MAGIC
from vfio_user.cli import cli
from vfio_user.interposer.interposer import Interposer, Setup
from vfio_user.interposer.replay.reducing import Minimized
from vfio_user.interposer.replay.script import load_script
from vhost_user.interposer.interposer import Interposer as VhostInterposer


def recorded(path: Path) -> bytes:
    """A trace with a session, and its content."""
    with Bench(trace=path) as bench:
        bench.exchange(read(0, 0))
    return path.read_bytes()


def said(*words: str | Path) -> str:
    done = CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stderr


def test_each_session_that_a_trace_had_is_kept_beside_the_next_and_where_is_said(tmp_path: Path) -> None:
    told: list[str] = []
    path, kept = tmp_path / "t", [recorded(tmp_path / "t")]
    (tmp_path / "t.2").mkdir()
    for name in ("t.1", "t.3"):
        TraceWriter(path, "vhost-user", {}, warn=told.append).close()
        assert (tmp_path / name).read_bytes() == kept[-1], name
        assert str(path) in told[-1], told
        assert str(tmp_path / name) in told[-1], told
        path.unlink()
        with Between(path) as between:
            between.negotiate()
        kept.append(path.read_bytes())
    assert len(told) == 2


def test_what_has_no_session_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "t"
    TraceWriter(path, "vfio-user", {}).close()
    lone = path.read_bytes()
    writer = TraceWriter(path, "vfio-user", {})
    writer.note("server-failed", why="it exited")
    writer.close()
    noted = path.read_bytes()
    for name, content in {
        "a text": b"mine",
        "nothing": b"",
        "cut off": MAGIC + b"x",
        "lone": lone,
        "noted": noted,
    }.items():
        path.write_bytes(content)
        TraceWriter(path, "vfio-user", {}).close()
        assert [each.name for each in tmp_path.iterdir()] == ["t"], name
    path.write_bytes(MAGIC + bytes(64))
    TraceWriter(path, "vfio-user", {}).close()
    assert (tmp_path / "t.1").read_bytes() == MAGIC + bytes(64), "damaged, and there may be more behind"


def test_a_link_to_a_trace_leads_to_the_next_and_the_other_is_kept_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    kept = recorded(tmp_path / "large" / "t")
    (tmp_path / "link").symlink_to(tmp_path / "large" / "t")
    recorded(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "large" / "t.1").read_bytes() == kept
    assert (tmp_path / "large" / "t").stat().st_size


def test_what_still_records_goes_on_where_its_trace_is_kept(tmp_path: Path) -> None:
    with Bench(trace=tmp_path / "t") as bench:
        bench.exchange(read(0, 0))
        before = (tmp_path / "t").stat().st_size
        TraceWriter(tmp_path / "t", "vfio-user", {}).close()
        bench.exchange(read(0, 0))
    assert (tmp_path / "t.1").stat().st_size > before


def test_a_scenario_that_is_wrong_leaves_the_trace_where_it_is(tmp_path: Path) -> None:
    kept = recorded(tmp_path / "t")
    (tmp_path / "faults").write_text("rules: 1")
    trace, faults = (str(tmp_path / name) for name in ("t", "faults"))
    for number, kind in enumerate((Interposer, VhostInterposer)):
        listen = str(tmp_path / f"listen-{number}")
        with pytest.raises(UserError):
            kind(Setup(listen=listen, connect="nobody", trace=trace, faults=faults))
        assert (tmp_path / "t").read_bytes() == kept, kind
        assert not (tmp_path / "t.1").exists(), kind


def test_no_command_writes_a_part_an_extract_or_a_picture_over_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, taken = tmp_path / "whole", tmp_path / "taken"
    recorded(whole)
    extract = Minimized(load_script(whole), before=1, after=1, replays=1, ended="minimal")
    monkeypatch.setattr("vfio_user.cli.minimize.minimize", lambda *_, **__: extract)
    for number, words in enumerate(
        (
            ("trace", "cut", whole, "--records", "2-", "-o", taken),
            ("minimize", whole, "--server-command", "s", "-o", taken),
            ("trace", "export", whole, "--format", "json", "-o", taken),
            ("show", whole, "--no-open", "-o", taken),
        ),
        1,
    ):
        kept = recorded(taken)
        aside = tmp_path / f"taken.{number}"
        assert str(aside) in said(*words), words
        assert aside.read_bytes() == kept, words
        taken.unlink()
    kept = recorded(taken)
    refused = CliRunner().invoke(cli, ["trace", "cut", str(whole), "--from-mark", "none", "-o", str(taken)])
    assert isinstance(refused.exception, UserError)
    assert taken.read_bytes() == kept, "there is nothing to write"


def test_only_the_place_is_told_beside_what_programs_read(tmp_path: Path) -> None:
    recorded(tmp_path / "t")
    recorded(tmp_path / "page")
    words = ["show", str(tmp_path / "t"), "--no-open", "--json", "-o", str(tmp_path / "page")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert json.loads(done.stdout)["page"] == str(tmp_path / "page")
