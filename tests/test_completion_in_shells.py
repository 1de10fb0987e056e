"""The scripts of `completion` in the shells that they are for, where those are installed.

What a shell is offered at all, of each kind, is in test_command_line.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vfio_user.cli import cli

_ZSH = """
compdef() {{ }}
source {script}
compadd() {{ print -rl -- $completions; }}
_describe() {{ print -rl -- $completions_with_descriptions; }}
words=({line}) CURRENT=$#words
_vfio_user_completion
"""
_BASH = """
compopt() {{ :; }}
source {script}
COMP_WORDS=({line}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_vfio_user_completion vfio-user
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
_FISH = 'source {script}; complete -C "{line}"'
SHELLS = {"bash": ("--norc", _BASH), "zsh": ("-f", _ZSH), "fish": ("--no-config", _FISH)}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_by_its_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} on this machine")
    plain, text = SHELLS[shell]
    (script := tmp_path / "script").write_text(CliRunner().invoke(cli, ["completion", shell]).output)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for line, offered in (
        ("vfio-user boot --device vhost-user-b", "vhost-user-blk"),
        ("vfio-user run --image sto", "storage"),
    ):
        asked = text.format(script=script, line=line)
        told = subprocess.run(
            [shell, plain, "-c", asked],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
        )
        assert (told.stderr, told.returncode) == ("", 0), line
        assert [each.replace("\t", ":").partition(":")[0] for each in told.stdout.split("\n")][:1] == [offered], line


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish on this machine")
def test_fish_shows_descriptions_to_their_end(tmp_path: Path) -> None:
    """Also where they have a comma in them."""
    (tmp_path / "vfio-user").write_text("#!/bin/sh\nprintf 'plain,storage\\tminimal, and disks\\n'\n")
    (tmp_path / "vfio-user").chmod(0o755)
    (script := tmp_path / "script").write_text(CliRunner().invoke(cli, ["completion", "fish"]).output)
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    told = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete -C 'vfio-user run --image sto'"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
    )
    assert told.stdout == "storage\tminimal, and disks\n"
