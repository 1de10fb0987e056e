"""`serve` as it is mostly called does without click, and does what it would do with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from tests.cases import for_each
from userdev.serving.command_line import Given, Serving
from vfio_user.cli import cli, vhost_user_cli
from vfio_user.server import command_line as vfio_user
from vhost_user.backend import command_line as vhost_user

AT = ["--socket-path", "/tmp/d.sock"]
PLAIN = [
    "--socket-path /tmp/d.sock",
    "--socket-path=/tmp/d.sock",
    "--fd 3",
    "--listen tcp:[::1]:0 --write-multiple",
    "--dialect draft-v6 -v",
    "--verbose --msix 0x2 --flr=yes",
    "--socket-path a --socket-path b",
    "--dma-mask -1",
    "",
]
NOT_PLAIN = [
    "--help",
    "-h",
    "--print-capabilities",
    "--fd three",
    "--dialect draft",
    "--verbose=1",
    "--socket-path",
    "--socket-path=",
    "--no-such 1",
    "--socket 1",
    "-vv",
    "beside",
    "--",
]


def by_click(group: click.Group, device: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Given:
    """What `Serving.run` is given by click."""
    seen: list[Given] = []
    monkeypatch.setattr(Serving, "run", lambda self, device, given: seen.append(given))
    group.main(["serve", device, *words], standalone_mode=False)
    return seen[0]


def plainly(serving: Serving[Any], device: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Given | None:
    """The same without; None where that is left to click."""
    seen: list[Given] = []
    monkeypatch.setattr(Serving, "run", lambda self, device, given: seen.append(given))
    assert serving.run_plain([device, *words]) is bool(seen)
    return seen[0] if seen else None


@for_each(PLAIN)
def test_a_plain_command_line_means_what_click_takes_it_for(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = line.split()
    assert plainly(vfio_user.SERVING, "edu", words, monkeypatch) == by_click(cli, "edu", words, monkeypatch)


@pytest.mark.parametrize("line", ["--client --reconnect 2.5", "--without LOG_ALL --image memory:1M", "--reconnect 0"])
def test_so_does_one_of_vhost_user(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*AT, *line.split()]
    found = plainly(vhost_user.SERVING, "blk", words, monkeypatch)
    assert found == by_click(vhost_user_cli, "blk", words, monkeypatch)


@for_each(NOT_PLAIN)
def test_help_and_mistakes_are_clicks(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plainly(vfio_user.SERVING, "edu", line.split(), monkeypatch) is None


@pytest.mark.parametrize("line", ["--reconnect -1", "--reconnect nan", "--reconnect soon"])
def test_so_is_a_number_out_of_its_bounds(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plainly(vhost_user.SERVING, "blk", line.split(), monkeypatch) is None


@pytest.mark.usefixtures("plain_starts")
def test_a_server_is_started_without_what_it_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "device.py").write_text(
        "import sys\n"
        "from vfio_user import PciDevice, UserError\n"
        "class Device(PciDevice):\n"
        "    def __init__(self, **options):\n"
        '        raise UserError(f\'loaded: {"click" in sys.modules}, {"asyncio" in sys.modules}\')\n'
    )
    words = [sys.executable, "-P", "-m", "vfio_user", "serve", "device.py:Device", "--socket-path", "d.sock"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "loaded: False, False" in ended.stderr
