"""What is said of a device's name that is nearly right, by whatever commands take one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from userdev.errors import UserError
from vfio_user.cli import cli, vhost_user_cli

TWO = """
from vhost_user.device import Chain, Queues, VhostDevice, queue

class Thermo(VhostDevice):
    virtio_id = 42
    queues = Queues(1)

    @queue(0)
    def tell(self, chain: Chain) -> int:
        return 0

class Hygro(Thermo):
    pass
"""


def test_a_name_of_no_device_is_told_by_the_protocol_that_was_asked_and_with_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is said of the requests of a device that there is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temp.py").write_text(TWO)
    (tmp_path / "none.py").write_text("")
    run = CliRunner()
    for name, words in {
        "thermo": "there are: blk, net, rng;",
        "blkk": "did you mean 'blk'?",
        "temp.Thermo": "did you mean 'temp:Thermo'?",
        "temp.py": "give temp.py:Thermo or temp.py:Hygro",
        "none.py": "no class of one",
        "vhost-user:thermo": "there are: blk, net, rng;",
    }.items():
        for command in (["serve", name], *([each, "--device", name] for each in ("conformance", "fuzz", "probe"))):
            if (name, command[0]) == ("vhost-user:thermo", "probe"):
                continue  # its server says so
            said = run.invoke(vhost_user_cli, command)
            assert isinstance(said.exception, UserError), (command, said.output)
            assert words in said.exception.hint, (command, said.exception.hint)
            assert "edu" not in f"{said.exception}{said.exception.hint}", command
            assert "no request is tried" not in said.output, command
    for command in (["serve", "temp.Mine"], ["probe", "--device", "temp.Mine"], ["boot", "--device", "temp.Mine"]):
        assert "'temp:Mine'" in getattr(run.invoke(cli, command).exception, "hint", ""), command
