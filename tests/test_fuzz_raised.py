"""What either fuzzer says of a find where the code of a device that was served for it is to blame."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.testing import CliRunner

from tests.conftest import PATIENCE
from vfio_user.cli import cli, vhost_user_cli

REGISTERS = """
from userdev_servers.edu import Edu

class Mine(Edu):
    def on_reset(self, kind):
        self.table.clear()
"""
QUEUES = """
from vhost_user.device import Chain, Queues, SampleRequest, VhostDevice, queue

class Mine(VhostDevice):
    virtio_id = 42
    queues = Queues(1)
    sample_request = SampleRequest(0, b"abcd", 4)

    @queue(0)
    def fill(self, chain: Chain) -> int:
        return self.table[0]
"""


def test_a_find_in_a_server_that_was_started_has_the_line_that_raised_and_so_when_it_is_played_again(
    tmp_path: Path,
) -> None:
    """In words, in its file and for programs."""
    run = CliRunner()
    for program, source, line in ((cli, REGISTERS, "6, in on_reset"), (vhost_user_cli, QUEUES, "11, in fill")):
        name = str(program.name)
        file, finds = tmp_path / f"{name[:2]}_mine.py", tmp_path / name
        file.write_text(source)
        raised = f"'Mine' object has no attribute 'table' ({file}:{line})"
        device = ["--device", f"{file}:Mine", "--timeout", str(PATIENCE)]
        options = ["--for", "60s", "--finds", "1", "--seed", "7", "--output", str(finds), "--json"]
        found = run.invoke(program, ["fuzz", *device, *options])
        assert raised in getattr(found.exception, "evidence", ""), (name, found.output)
        assert raised in found.stderr, name
        (find,) = json.loads(found.stdout)["finds"]
        assert find["said"].endswith(raised), name
        assert json.loads(Path(find["file"]).read_text())["said"] == find["said"]
        _play_again(run, program, find["file"], device, raised)


def _play_again(run: CliRunner, program: click.Command, file: str, device: list[str], raised: str) -> None:
    if program is not cli:
        only = ["--only", f"corpus/{Path(file).stem}"]
        again = run.invoke(program, ["conformance", "--corpus", str(Path(file).parent), *only, *device])
        assert raised in again.output
        assert "1 check" in again.output
        return
    again = run.invoke(program, ["replay", file, *device[:2]])
    assert raised in getattr(again.exception, "evidence", ""), again.output
    told = run.invoke(program, ["replay", file, *device[:2], "--json"])
    assert json.loads(told.stdout)["found"]["said"].endswith(raised)
