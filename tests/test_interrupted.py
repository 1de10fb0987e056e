"""Ctrl-C is told, with what there is to look at."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from tests.test_conformance_told import RESULTS
from userdev.conformance import Outcome
from vfio_user.cli import run_command
from vfio_user.cli._conformance import _counted_if_interrupted


def test_an_interrupted_command_says_so_with_its_logs_and_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def two() -> Iterator[object]:
        yield from (RESULTS[Outcome.PASS], RESULTS[Outcome.FAIL])
        stopped = KeyboardInterrupt()
        stopped.add_note("logs: results/run")
        raise stopped

    @click.command()
    def checking() -> None:
        list(_counted_if_interrupted(two(), 5))  # type: ignore[arg-type]

    monkeypatch.setattr("sys.argv", ["checking"])
    with pytest.raises(SystemExit) as ended:
        run_command(checking)
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert "interrupted" in said
    assert "logs: results/run" in said
    assert "2 of 5 checks done, 1 failed" in said
