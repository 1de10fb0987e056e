"""Devices of an author's own are tried by the commands that try any back-end, by their class."""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.in_process_target import InProcessTarget
from tests.userfaults import NOT_OFFERED
from userdev.conformance import Outcome
from userdev.declare.unused import UnusedAttribute
from userdev.errors import DeclarationError, UserError
from vfio_user.cli import cli, vhost_user_cli
from vfio_user.cli._served import command_of, known_command_of
from vfio_user.cli._vhost_kinds import kind_of, served_kind
from vhost_user.backend import Server
from vhost_user.device import Chain, Queues, SampleRequest, VhostDevice, config_field, queue
from vhost_user.frontend.conformance import CATALOGUE, DEVICES, run


class Echo(VhostDevice):
    """Gives back what it reads: of a type that no check knows a request of."""

    virtio_id = 3
    queues = Queues(2, size=64)
    sample_request = SampleRequest(1, b"hello", 8, is_right=lambda data: data == b"hello")
    mode: int = config_field(1, 0, writable=True)

    @queue()
    def echo(self, chain: Chain) -> int:
        return chain.write(chain.read())


class Silent(VhostDevice):
    """Says nothing of a request."""

    virtio_id = 3
    queues = Queues(1)

    @queue(0)
    def take(self, chain: Chain) -> int:
        return 0


class Dice(Silent):
    virtio_id = 4


class Alone(Silent):
    virtio_id = 1
    """A network card's requests go to its second queue, which there is not."""


class Served(InProcessTarget):
    pid = os.getpid()

    def __init__(self, folder: Path) -> None:
        self._address = self._listens_at = f"unix:{folder}/s"

    def serve(self, served: ExitStack) -> str:
        device = Echo()
        served.callback(device.close)
        served.enter_context(Server(device, self._listens_at))
        return self._listens_at


def test_a_device_is_tried_by_its_sample_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("vhost_user.frontend.conformance.bench.QUIET_SECONDS", 0.02)
    kind = served_kind(f"{__name__}:Echo", alone=True)
    with Served(tmp_path) as target:
        found = {result.check.id: result for result in run(CATALOGUE, target, kind)}
    passed = {name for name, result in found.items() if result.outcome is Outcome.PASS}
    others = {name for name, result in found.items() if result.outcome is not Outcome.PASS}
    assert others == {"config/read-only", "rings/independent"} | NOT_OFFERED, [found[name] for name in others]
    assert {found[name].outcome for name in others} == {Outcome.SKIP}
    assert {"rings/served", "kinds/packed", "memory/over-a-border"} <= passed


def test_what_is_said_of_a_device_is_taken_from_its_class_then_from_its_type() -> None:
    for device, known in ((Echo, True), (Dice, True), (Silent, False), (Alone, False)):
        assert (kind_of(device) is not None) is known, device
    dice = kind_of(Dice)
    assert dice is not None
    assert (dice.request, dice.config_size) == (DEVICES["rng"].request, 0)


def test_a_device_is_named_as_serve_takes_it_and_as_guests_do(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from tests.test_vhost_kinds import Echo\n")
    names = {
        "blk": "blk",
        "vhost-user-blk": "blk",
        f"{__name__}:Echo": f"{__name__}:Echo",
        f"vhost-user:{__name__}:Echo": f"{__name__}:Echo",
        f"{tmp_path}/own.py:Echo --option 1": f"{tmp_path}/own.py:Echo",
    }
    for said, served in names.items():
        assert served_kind(said, alone=True) is not None, said
        words = shlex.split(command_of(said, "vhost-user"))
        assert words[words.index("serve") + 1] == served, said
    for said in ("edu", "qemu:edu"):
        assert served_kind(said, alone=True) is None, said
        with pytest.raises(UserError):
            command_of(said, "vhost-user")
    with pytest.raises(UserError, match="vhost-user device, not a vfio-user one"):
        command_of(f"vhost-user:{__name__}:Echo", "vfio-user")
    with pytest.raises(UserError):
        served_kind("nothing", alone=False)


ODD = """
from vfio_user import PciDevice, PciIds
from vhost_user.device import Queues, VhostDevice, queue

class Vfio(PciDevice):
    ids = PciIds(vendor=0x1AF4, device=0x10F0)
    migratble = False

class Vhost(VhostDevice):
    virtio_id, queues = 3, Queues(1)
    feature = 1 << 0

    @queue(0)
    def take(self, chain) -> int:
        return 0
"""


def test_what_is_odd_or_wrong_about_a_class_is_told_where_its_servers_words_are_not_shown(tmp_path: Path) -> None:
    """As `serve` does, and before a server is started, whose end was told first."""
    (tmp_path / "odd.py").write_text(ODD)
    (tmp_path / "wrong.py").write_text("import nothing_like_it\n")
    for protocol, device in (("vfio-user", "Vfio"), ("vhost-user", "Vhost"), ("vhost-user", "vhost-user:Vhost")):
        prefix, _, name = device.rpartition(":")
        said = f"{prefix}{':' if prefix else ''}{tmp_path}/odd.py:{name} --option 1"
        with pytest.warns(UnusedAttribute, match="did you mean"):
            known_command_of(said, protocol)
        own = ("minimize t", "boot", "exec", "migrate", "soak") if protocol == "vfio-user" else ()
        for command in ("probe", "conformance", "fuzz", *own):
            line = [*command.split(), "--device", f"{tmp_path}/wrong.py:{name}"]
            told = CliRunner().invoke(cli if protocol == "vfio-user" else vhost_user_cli, line)
            assert isinstance(told.exception, UserError), line
            assert "nothing_like_it" in str(told.exception), line
            assert "exited" not in str(told.exception), line
    for device in (f"{tmp_path}/odd.py:Vfio", f"vhost-user:{tmp_path}/odd.py:Vhost [driver=x]"):
        with pytest.warns(UnusedAttribute, match="did you mean"):
            CliRunner().invoke(cli, ["exec", "--device", device])
    known_command_of(f"{sys.executable} --x {{socket}}", "vfio-user")


def test_a_sample_request_that_no_driver_could_make_is_refused() -> None:
    for queue_, *buffers in ((0,), (-1, 4), (True, 4), (0, b""), (0, 0), (0, 4, b"behind"), (0, "text"), (0, True)):
        with pytest.raises(ValueError):  # noqa: PT011 - a ValueError is what Queues raises too
            SampleRequest(queue_, *buffers)
    with pytest.raises(ValueError, match="is_right"):
        SampleRequest(0, 16, is_right=b"hello")  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="sample_request"):

        class Text(Silent):
            sample_request = "hello"  # type: ignore[assignment]

    class Far(Silent):
        sample_request = SampleRequest(1, 4)

    with pytest.raises(DeclarationError, match="queue 1"):
        Far()


def test_a_default_is_shown_where_there_is_one_and_an_example_does_not_look_like_one() -> None:
    told = " ".join(CliRunner().invoke(vhost_user_cli, ["serve", "rng", "--help"]).stdout.split())
    assert re.search(r"--reconnect SECONDS .*?\[default: 30.0; x>=0\] --without", told)
    assert re.search(r"--without NAME,... .*as LOG_ALL,INFLIGHT_SHMFD.*? --print", told)
    assert "[default: ]" not in told
