"""Device servers as children: which one a word means, when it is ready, and what it said before it died."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.descriptors import fd_count
from userdev.errors import UserError
from userdev.process import Child, is_listening
from userdev.trace.exchanges import Exchange
from vfio_user.client import Client
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.device import Device, server_command
from vfio_user.harness.hosts.host import LocalHost, OnThisMachine
from vfio_user.harness.interposition import Interposition
from vfio_user.harness.scratch import Scratch, listen
from vfio_user.harness.server import DeviceServer, ServerError, ServerFailure
from vfio_user.harness.site import Site
from vfio_user.traces import open_trace

LISTENS_LATER = """
import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
time.sleep(0.2)
server.listen(1)
client, _ = server.accept()
client.sendall(b"first")
time.sleep(300)
"""


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    with Scratch() as made:
        yield made


@for_each_row(
    [
        ("edu", Device(served="edu")),
        ("edu --dma-mask 0xfff", Device(served="edu", options=("--dma-mask", "0xfff"))),
        ("my.package:Class", Device(served="my.package:Class")),
        ("qemu:edu", Device(driver="edu")),
        ("server -s {socket}", Device(command="server -s {socket}")),
        ("server -l [::1]:7 {socket}", Device(command="server -l [::1]:7 {socket}")),
        ("qemu:nvme [serial=disk, ats=on]", Device(driver="nvme", properties={"serial": "disk", "ats": True})),
        (
            "server {socket} [x-pci-class-code=0x088000]",
            Device(command="server {socket}", properties={"x-pci-class-code": 0x088000}),
        ),
    ]
)
def test_what_a_word_means(text: str, expected: Device) -> None:
    assert Device.parse(text) == expected


@for_each(["no-such-device", "qemu:", "", "edu [ats=on,]", "edu [ats=]"])
def test_an_unknown_device_is_a_sentence_with_a_way_out(text: str) -> None:
    with pytest.raises(UserError) as caught:
        Device.parse(text)
    assert caught.value.hint


def test_a_name_for_files_comes_from_any_device() -> None:
    assert Device.parse("my.package:Class").name == "Class"
    assert Device.parse("/opt/bin/server {socket}").name == "server"


def test_the_programs_of_a_command_that_we_have_built_are_told_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These can be put on another host; others are their owner's business."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    built = tmp_path / "libvfio-user" / "server"
    assert Device.parse(f"strace -f {built} -v {{socket}}").files == (built,)
    assert Device.parse("/opt/server {socket}").files == Device.parse("edu").files == ()


def test_a_server_of_anybody_gets_its_socket_where_it_wants_it() -> None:
    assert server_command(Device.parse("srv --path {socket} -x"), Path("/tmp/a b")) == [
        "srv",
        "--path",
        "/tmp/a b",
        "-x",
    ]


def test_paths_can_differ_from_host_to_host() -> None:
    device, host = Device.parse("nvme --image /images/{host}.img:1M"), LocalHost("b")
    assert "/images/b.img:1M" in server_command(device, Path("/tmp/s"), (), host)
    assert server_command(Device.parse("srv {socket} {host}"), Path("/tmp/s"), (), host) == ["srv", "/tmp/s", "b"]


class Elsewhere(OnThisMachine):
    """A host whose Python is at another place, and where nothing starts."""

    name, address, python = "b", "127.0.0.2", "/opt/there/python3"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
        self.asked.append(shlex.join(argv))
        return ["false"]


def test_whatever_is_started_on_a_host_is_run_by_the_python_of_that_host(tmp_path: Path) -> None:
    cases: list[tuple[str, Interposition | None]] = [
        ("edu", None),
        ("edu", Interposition()),
        ("edu", Interposition(keep_alive=True)),
        ("vhost-user-rng", None),
    ]
    for device, interposition in cases:
        host = Elsewhere()
        with Scratch() as scratch, suppress(UserError):
            site = Site(scratch, tmp_path, host)
            DeviceServer(Device.parse(device), site, "device", interposition=interposition).stop()
        case = (device, interposition, host.asked)
        assert all(asked.startswith(host.python) for asked in host.asked), case
        assert not any(sys.executable in asked for asked in host.asked), case
        if interposition and interposition.keep_alive:
            assert host.asked[0].count(host.python) == 2, case  # its own, and that of the server


def test_a_socket_is_ready_when_it_listens_not_when_it_exists(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert not is_listening(path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert not is_listening(path)
        bound.listen()
        assert is_listening(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert is_listening(path)
    assert not is_listening(path)


def test_a_foreign_server_is_waited_for_and_keeps_its_only_connection(scratch: Scratch, tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(LISTENS_LATER)
    server = DeviceServer(Device.parse(f"{sys.executable} {program} {{socket}}"), Site(scratch, tmp_path), "foreign")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(server.path))
        assert client.recv(10) == b"first"
    server.stop()
    assert not server.child.group_is_alive()


def test_a_server_that_is_started_again_is_told_of_too(scratch: Scratch, tmp_path: Path) -> None:
    """Whoever gathers evidence has the process that is there at the end, and the one before it."""
    told: list[Child] = []
    site = Site(scratch, tmp_path)
    server = DeviceServer(Device.parse("vhost-user-rng"), site, "rng", started=told.append)
    server.kill()
    server.restart()
    server.stop()
    assert [child.name for child in told] == ["rng", "rng.1"]
    assert told[-1] is server.child


def test_a_server_that_is_killed_and_started_again_all_night_takes_nothing_with_it(
    scratch: Scratch, tmp_path: Path
) -> None:
    """Nor does one that stood still meanwhile."""
    command = f"{sys.executable} -c '{LISTENS_LATER.replace('0.2', '0')}' {{socket}}"
    server = DeviceServer(Device(command=command), Site(scratch, tmp_path), "night")
    before = fd_count()
    for _ in range(3):
        server.owner.pause()
        server.owner.go_on()
        server.kill()
        server.restart()
    assert fd_count() == before
    assert server.owner.server_pid() == server.child.pid
    server.stop()


def test_an_interposer_that_is_killed_is_replaced_where_it_was(scratch: Scratch, tmp_path: Path) -> None:
    server = DeviceServer(Device(served="edu"), Site(scratch, tmp_path), "night", interposition=Interposition())
    before, path = fd_count(), server.path
    for _ in range(2):
        killed = server.interposer.child
        killed.signal(9)
        server.restart_interposer()
        assert not killed.running
        assert server.path == path
        with Client.connect(f"unix:{path}") as client:
            assert client.device_info().num_regions
    assert fd_count() <= before
    server.stop()


def test_what_an_interposer_has_recorded_stays_when_another_takes_its_place(scratch: Scratch, tmp_path: Path) -> None:
    site = Site(scratch, tmp_path)
    server = DeviceServer(Device(served="edu"), site, "night", interposition=Interposition(), trace=True)
    for value in (1, 2):
        with Client.connect(f"unix:{server.path}") as client:
            client.store(0, 4, 4, value)
        if value == 1:
            server.interposer.child.signal(9)
            server.restart_interposer()
    assert server.trace is not None
    server.stop()
    traces = [tmp_path / "night.trace", server.trace]
    assert server.trace.name == "night.2.trace"
    for value, path in enumerate(traces, 1):
        written = [event for event in open_trace(path).events() if isinstance(event, Exchange) and event.place.writes]
        assert [(one.place.register, one.value) for one in written] == [("liveness", value)]


def test_a_trace_of_anybodys_server_has_the_names_of_registers_that_are_said(scratch: Scratch, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("- {region: 0, offset: 4, name: inverted}\n")
    command = f"{sys.executable} -m vfio_user serve edu --socket-path {{socket}}"
    device = Device(command=command, registers=str(tmp_path / "map.yaml"))
    server = DeviceServer(device, Site(scratch, tmp_path), "any", interposition=Interposition(), trace=True)
    with Client.connect(f"unix:{server.path}") as client:
        client.store(0, 4, 4, 7)
    server.stop()
    events = open_trace(tmp_path / "any.trace").events()
    assert "inverted" in {event.place.register for event in events if isinstance(event, Exchange)}


def test_the_other_host_has_an_interposer_as_this_one_but_for_faults(scratch: Scratch, tmp_path: Path) -> None:
    keeping = Interposition(keep_alive=True, msg_timeout=9.0, faults={"rules": []})
    for interposition, there in ((None, None), (keeping, Interposition(keep_alive=True, msg_timeout=9.0))):
        server = DeviceServer(Device(served="edu"), Site(scratch, tmp_path), "a", interposition=interposition)
        assert server.interposed_there == there
        server.stop()


MINE = """
import os
from vhost_user.device import Queues, VhostDevice, supply

class Mine(VhostDevice):
    virtio_id = 4
    queues = Queues(1)
    buffers = supply(0)

    def __init__(self):
        super().__init__()
        os.write(2, b"no table\\nno chair\\n")
        os._exit(3)
"""


def test_a_server_that_dies_at_its_start_is_quoted_once(scratch: Scratch, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="status 3") as caught:
        DeviceServer(Device(command="sh -c 'echo no licence >&2; exit 3' {socket}"), Site(scratch, tmp_path), "dying")
    assert f"{caught.value}\n{caught.value.hint}".replace("echo no licence", "").count("no licence") == 1


def test_what_to_do_about_a_server_that_does_not_come_up_is_something_to_do(scratch: Scratch, tmp_path: Path) -> None:
    """What it said is to be read, and has a place of its own."""
    (tmp_path / "mine.py").write_text(MINE)
    alone = "with a path in place of {socket}"
    for number, (name, what_to_do, is_read) in enumerate(
        (
            ("sh -c 'echo one >&2; echo two >&2; exit 3' {socket}", f"start it alone: its command, {alone}", True),
            ("sh -c 'exit 3' {socket}", f"it printed nothing; start it alone: its command, {alone}", False),
            (
                f"vhost-user:{tmp_path}/mine.py:Mine",
                f"start it alone: `vhost-user serve {tmp_path}/mine.py:Mine`",
                True,
            ),
            (f"vhost-user:{tmp_path}/mine.py:Nine", "its devices are: Mine; a device is a subclass of", False),
        )
    ):
        with pytest.raises(ServerError) as caught:
            DeviceServer(Device.parse(name), Site(scratch, tmp_path), f"s{number}")
        assert caught.value.hint.startswith(what_to_do), name
        assert ("last lines" in caught.value.evidence) is is_read, name


def test_a_virtio_device_that_cannot_be_had_is_told_before_qemu_waits_for_it(scratch: Scratch, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="status 2") as caught:
        DeviceServer(Device.parse("vhost-user-net --ip nowhere"), Site(scratch, tmp_path), "net")
    assert f"{caught.value}\n{caught.value.hint}".count("nowhere") == 1


def test_an_option_that_a_device_of_ours_has_not_is_told_without_the_usage_of_serve(
    scratch: Scratch, tmp_path: Path
) -> None:
    """Whether it says so before it listens or, as one that inherits its socket, behind that: neither is a verdict."""

    def serve(name: str) -> None:
        server = DeviceServer(Device.parse(f"{name} --hihg 3"), Site(scratch, tmp_path), name)
        try:
            server.check(30)
        finally:
            server.stop()

    for name in ("vhost-user-rng", "edu"):
        with pytest.raises(ServerError, match=r"status 2.*'--hihg'") as caught:
            serve(name)
        assert "Usage" not in f"{caught.value} {caught.value.hint}"
        assert f"serve {name.removeprefix('vhost-user-')} --help" in caught.value.hint


def test_a_server_that_came_up_and_died_has_failed(scratch: Scratch, tmp_path: Path) -> None:
    server = DeviceServer(Device(served="edu"), Site(scratch, tmp_path), "edu")
    server.check()
    server.kill()
    with pytest.raises(ServerFailure, match="SIGKILL"):
        server.check()
    server.stop()


def test_a_server_that_never_listens_has_a_deadline(scratch: Scratch, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="does not listen"):
        DeviceServer(Device(command="sh -c 'exec sleep 300' {socket}"), Site(scratch, tmp_path), "idle", limit=0.1)


def test_two_cannot_listen_at_one_path(tmp_path: Path) -> None:
    with listen(tmp_path / "socket"), pytest.raises(UserError, match="in use"):
        listen(tmp_path / "socket")


def test_of_a_server_whose_interposer_does_not_start_and_of_one_that_ended_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Owned:
        def __init__(self, device: Device, site: Site, name: str, path: Path, limit: float) -> None:
            path.touch()
            self.child = Child.__new__(Child)
            self.child.pid = 7

        def stop(self) -> None:
            done.append("stop server")

    class Interposing:
        def __init__(self, *_: object, **__: object) -> None:
            if fails:
                raise ServerError("it does not start")
            self.child, self.path = Child.__new__(Child), tmp_path / "i"

        def stop(self) -> None:
            done.append("stop interposer")

    monkeypatch.setattr("vfio_user.harness.server.OwnProcess", Owned)
    monkeypatch.setattr("vfio_user.harness.server.InterposerProcess", Interposing)
    for interposition, fails, wanted in (
        (None, False, ["stop server"]),
        (Interposition(), False, ["stop interposer", "stop server"]),
        (Interposition(), True, ["stop server"]),
    ):
        done.clear()
        with closing(Scratch()) as scratch:
            site = Site(scratch, tmp_path)
            if fails:
                with pytest.raises(ServerError):
                    DeviceServer(Device.parse("edu"), site, "one", interposition=interposition)
            else:
                server = DeviceServer(Device.parse("edu"), site, "one", interposition=interposition)
                server.stop()
                assert not (interposition and server.server_path.exists())
        assert done == wanted, (interposition, fails)
