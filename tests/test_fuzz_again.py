"""What plays a trace or a find again, and what is said where a command of that name cannot."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from userdev.errors import UserError
from userdev.fuzz import Find
from vfio_user.cli import cli, vhost_user_cli


def test_no_command_is_sent_to_one_that_cannot_do_it(tmp_path: Path) -> None:
    """Of vhost-user no trace is played again: each way to ask for it says so, and what there is instead."""
    find = Find("vhost-user", "rings", "a rule", "rings: answer", "another answer", (), subject={"device": "blk"})
    path = find.write(tmp_path / "my finds")
    plays = f"conformance --corpus '{path.parent}' --only corpus/{path.stem}` with --device, as it was found,"
    run = CliRunner()
    for program, words, wanted in (
        (vhost_user_cli, ["replay", "t"], "conformance --corpus"),
        (vhost_user_cli, ["minimize", "t"], "no trace of vhost-user is played again"),
        (vhost_user_cli, ["new", "x"], "vfio-user new --protocol vhost-user"),
        (vhost_user_cli, ["reference"], "vhost-user peer"),
        (vhost_user_cli, ["boot"], "`vfio-user boot` is one"),
        (cli, ["peer"], "`vhost-user peer` is one"),
        (cli, ["replay", "t", "--device", "vhost-user-blk"], "no trace of vhost-user is played again"),
        (cli, ["minimize", "t", "--device", "vhost-user-blk"], "no trace of vhost-user is played again"),
        (cli, ["fuzz", "--device", "vhost-user-blk"], "the command `vhost-user` has the same"),
        (cli, ["replay", str(path), "--connect", "a"], plays),
        (cli, ["minimize", str(path), "--server-command", "x"], plays),
        (cli, ["conformance", "a", "--corpus", str(path.parent)], "`conformance --corpus` of vhost-user plays them"),
    ):
        done = run.invoke(program, words)
        said = done.output + (getattr(done.exception, "hint", None) or "")
        assert wanted in " ".join(said.split()), (words, said)
        assert done.exit_code == 2 or isinstance(done.exception, UserError), words
