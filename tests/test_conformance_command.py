"""What the command says of a server: a verdict, or that there is none."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from tests.conformance_target import InProcess, with_fault
from tests.everything_device import Everything
from tests.test_conformance import EchoesTheWrongCommand
from userdev.errors import UserError, VerdictError
from vfio_user.cli.conformance import command as conformance
from vfio_user.wire import DIALECTS


@for_each([[], ["--quiet"], ["--json", "-"]], ids=" ".join)
def test_a_verdict_is_bad_when_a_check_fails(how: list[str], tmp_path: Path) -> None:
    """However it is told."""
    with InProcess(tmp_path, Everything, session=with_fault(EchoesTheWrongCommand())) as target:
        target.connect().close()
        result = CliRunner().invoke(conformance, [str(tmp_path / "s"), "--only", "header/command-echoed", *how])
    assert isinstance(result.exception, VerdictError)
    assert "header/command-echoed" in result.exception.evidence


@for_each_row([("current", "draft-v6"), ("draft-v6", "region-migration")])
def test_a_server_of_another_dialect_is_no_verdict(spoken: str, asked: str, tmp_path: Path) -> None:
    with InProcess(tmp_path, Everything, dialect=DIALECTS[spoken]) as target:
        target.connect().close()
        result = CliRunner().invoke(conformance, [str(tmp_path / "s"), "--dialect", asked])
    assert isinstance(result.exception, UserError)
    assert f"dialect, {spoken}" in str(result.exception)
    assert f"--dialect {spoken}" in result.exception.hint
    assert not result.output


def test_a_crash_is_charged_to_the_check_that_caused_it(tmp_path: Path) -> None:
    """Not to the one behind it, whose client the dying server still takes."""
    serve = f"{shlex.quote(sys.executable)} -m vfio_user serve tests.dying_device:Dying --socket-path {{socket}}"
    found = tmp_path / "found.json"
    result = CliRunner().invoke(conformance, ["--server-command", serve, "--only", "reset", "--json", str(found)])
    checks = {check["id"]: check for check in json.loads(found.read_text())["checks"]}
    assert {id for id, check in checks.items() if check["outcome"] == "fail"} == {"reset/keeps-irqs"}, result.output
    assert "status 3" in checks["reset/keeps-irqs"]["detail"]


def test_a_server_that_does_not_start_is_no_verdict() -> None:
    result = CliRunner().invoke(conformance, ["--server-command", "false {socket}"])
    assert isinstance(result.exception, UserError)
    assert "status 1" in str(result.exception)
