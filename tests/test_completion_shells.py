"""The scripts that `completion` prints, in shells that a machine need not have; they change with click alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.shells import Shell
from vfio_user.cli import cli

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]


def script(shell: str) -> str:
    return CliRunner().invoke(cli, ["completion", shell], prog_name="vfio-user").stdout


def test_fish_completes(tmp_path: Path) -> None:
    """What our program says of a command line is what fish offers, with its help."""
    fish = Shell.unpacked(tmp_path, "fish")
    said = "plain,nvme\tvfio-user\nplain,nvme-of\tanother\n"
    offered = fish.completes(script("fish"), "vfio-user boot --device nv", said)
    assert offered == "nvme\tvfio-user\nnvme-of\tanother\n"


def test_zsh_takes_the_script(tmp_path: Path) -> None:
    """It completes for who types on a terminal alone; that the function is there is what can be asked for."""
    zsh = Shell.unpacked(tmp_path, "zsh")
    assert zsh.completes(script("zsh"), "", "") == "_vfio_user_completion: function\n"
