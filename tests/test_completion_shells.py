"""The scripts that `completion` prints, in shells that a machine need not have; they change with click alone."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.shells import Shell, Typing
from vfio_user.cli import cli

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]


def script(shell: str) -> str:
    return CliRunner().invoke(cli, ["completion", shell], prog_name="vfio-user").stdout


def test_fish_completes(tmp_path: Path) -> None:
    """What our program says of a command line is what fish offers, with its help to the end, whatever is in it."""
    fish = Shell.unpacked(tmp_path, "fish")
    fish.prepare(script("fish"), "plain,nvme\tvfio-user\nplain,nvme-of\tanother, and more\n")
    offered = fish.says('source /script; complete -C "vfio-user boot --device nv"')
    assert offered == "nvme\tvfio-user\nnvme-of\tanother, and more\n"


def test_zsh_completes(tmp_path: Path) -> None:
    """It does so for who types on a terminal alone: what is the same of all is put there, and all are listed."""
    zsh = Shell.unpacked(tmp_path, "zsh")
    zsh.prepare(script("zsh"), "plain\nnvme\nvfio-user\nplain\nnvme-of\nanother\n")
    with closing(Typing(zsh)) as person:
        person.type("autoload -U compinit; compinit -D -u; source /script; echo ready-$((40+2))\n", "ready-42")
        person.type("vfio-user boot --device nv\t", "nvme")
        person.type("\t\t", "another")
        assert "nvme     -- vfio-user" in person.seen
        assert "nvme-of  -- another" in person.seen
