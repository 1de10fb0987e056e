"""The script that `completion` prints for bash, which is everywhere; other shells are in test_completion_shells.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vfio_user.cli import cli

_BASH = """
compopt() {{ :; }}
source {script}
COMP_WORDS=({line}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_vfio_user_completion vfio-user
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("line", "offered"),
    [("vfio-user boot --device vhost-user-b", "vhost-user-blk"), ("vfio-user run --image sto", "storage")],
)
def test_bash_completes_by_its_script(line: str, offered: str, tmp_path: Path) -> None:
    (script := tmp_path / "script").write_text(CliRunner().invoke(cli, ["completion", "bash"]).output)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    told = subprocess.run(
        ["bash", "--norc", "-c", _BASH.format(script=script, line=line)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
    )
    assert (told.stderr, told.returncode) == ("", 0)
    assert told.stdout.split("\n")[0] == offered
