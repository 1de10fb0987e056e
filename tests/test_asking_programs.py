"""Programs that are asked something, and end by themselves: what they say, and what is said of those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import for_each_row
from userdev.errors import UserError
from userdev.process import answer_of, run_to_end
from vfio_user.harness import family
from vfio_user.harness.family import VHOST_USER, VhostUser
from vfio_user.interposer.replay.minimize import _checked_by, _fails

HANGS = ["sleep", "60"]


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def test_what_a_program_prints_is_its_answer(tmp_path: Path) -> None:
    assert answer_of("it", shell("pwd; echo more >&2; cat"), 60, cwd=tmp_path, env={"A": "1"}) == f"{tmp_path}\n"
    ran = run_to_end("it", shell("cat; exit 3"), 60, said="read")
    assert (ran.returncode, ran.stdout) == (3, "read")
    ran = run_to_end("it", shell("echo $A; pwd; printf '\\377' >&2"), 60, cwd=tmp_path, env={"A": "1"})
    assert (ran.stdout, ran.stderr) == (f"1\n{tmp_path}\n", "\ufffd"), "what is no text is shown as such"
    assert answer_of("it", shell("echo $A"), 60, env={"A": "2"}) == "2\n"


@for_each_row(
    [
        (shell("echo first >&2; echo last >&2; exit 3"), "it ends with status 3: last"),
        (shell("echo out; exit 3"), "status 3: out"),
        (shell("echo why >&2; echo out; exit 3"), "status 3: why"),
        (shell("exit 3"), "status 3: and says nothing"),
        (
            shell("printf 'x.c:1: fatal error: y.h: none\\n a\\ncompilation terminated.\\n' >&2; exit 1"),
            "y.h: none",
        ),
        (shell("printf 'error[E0433]: no crate\\nexiting\\n' >&2; exit 1"), "no crate"),
        (shell("printf 'Traceback\\nOSError: terror: no\\n' >&2; exit 1"), "status 1: OSError: terror: no$"),
        (["/nonexistent"], "it cannot be run"),
        (HANGS, "it takes longer than 0.01 s"),
    ]
)
def test_one_that_gives_none_is_told_of(command: list[str], about: str) -> None:
    with pytest.raises(UserError, match=about):
        answer_of("it", command, 0.01 if command is HANGS else 60)


def test_a_device_whose_module_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "_CAPABILITIES_SECONDS", 0.01)
    monkeypatch.setattr(VhostUser, "serving", lambda *_: HANGS)
    with pytest.raises(UserError, match="vhost-user:nic:Nic"):
        VHOST_USER._driven_as("vhost-user:nic:Nic")


class AnyScript:
    """In the place of one that is tried."""

    def write(self, path: Path) -> None:
        path.touch()


@for_each_row([("true", False), ("false", True), ("sleep 60", False)])
def test_a_check_that_does_not_end_says_nothing_of_a_trace(command: str, fails: bool) -> None:
    seconds = 0.01 if "sleep" in command else 60
    assert _fails(_checked_by(command, "", seconds)(AnyScript())) is fails  # type: ignore[arg-type]


def test_a_check_that_cannot_be_run_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="cannot be run"):
        _checked_by("/nonexistent {trace}", "", 60)(AnyScript())  # type: ignore[arg-type]
