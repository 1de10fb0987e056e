"""Real SSH servers in namespaces: what is on such a host, and what is said when a program there cannot be run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import vfio_user
from tests.processes import until
from userdev.errors import UserError
from userdev.process import Child
from userdev.trace.exchanges import Exchange
from vfio_user.client import Client
from vfio_user.harness.device import Device
from vfio_user.harness.hosts.archives import Member, make_archive
from vfio_user.harness.hosts.host import Host
from vfio_user.harness.hosts.namespace import can_make_namespaces
from vfio_user.harness.hosts.other_machine import OtherMachine, another_machine
from vfio_user.harness.hosts.ssh import SshHost
from vfio_user.harness.hosts.sshd import kept_folders, ssh_namespaces
from vfio_user.harness.interposition import Interposition
from vfio_user.harness.scratch import Scratch
from vfio_user.harness.server import DeviceServer
from vfio_user.harness.site import Site
from vfio_user.nightly.plan import SlotText
from vfio_user.nightly.slots import Slots
from vfio_user.traces import open_trace

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
LIMIT = 60.0
PACKAGE = Path(vfio_user.__file__).parent


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    if not can_make_namespaces():  # which takes 0.2 s: not for whoever only collects these tests
        pytest.skip("who may not make network namespaces has no such hosts")


@pytest.fixture(scope="module")
def host() -> Iterator[SshHost]:
    with ssh_namespaces() as (one, _, _):
        yield one


def run_there(host: Host, argv: list[str], folder: Path) -> tuple[int | None, str]:
    """Exit status and output of a program on that host."""
    child = Child("there", host.command(argv), log=folder / "log")
    try:
        return child.wait(LIMIT), child.log.read_text()
    finally:
        child.stop()


def test_a_program_runs_there_with_this_package(host: SshHost, tmp_path: Path) -> None:
    status, said = run_there(host, [sys.executable, "-c", "import vfio_user; print(vfio_user.__file__)"], tmp_path)
    assert (status, said.splitlines()[-1]) == (0, f"{PACKAGE}/__init__.py")
    assert "Warning" not in said, "it is the log of a server"


@pytest.mark.parametrize("killed", [False, True], ids=["ended in order", "killed"])
def test_the_trace_of_an_interposer_there_is_written_here(host: SshHost, tmp_path: Path, killed: bool) -> None:
    trace = tmp_path / "device.trace"
    with Scratch() as scratch:
        site = Site(scratch, tmp_path, host)
        server = DeviceServer(Device(served="edu"), site, "device", interposition=Interposition(), trace=True)
        try:
            with Client.connect(str(server.path)) as client:
                client.store(0, 4, 4, 0x12345678)
                assert client.load(0, 4, 4) == 0xEDCBA987
            if killed:
                until(lambda: "REGION_READ liveness" in traced_values(trace))  # what is on its way is lost with it
                server.kill_interposer()
                assert server.interposer.child.wait(LIMIT) is not None
        finally:
            server.stop()
    assert traced_values(trace)["REGION_READ liveness"] == 0xEDCBA987
    assert traced_values(trace)["REGION_WRITE liveness"] == 0x12345678


def traced_values(trace: Path) -> dict[str, int]:
    """The last value of each register in what has come of a trace."""
    try:
        exchanges = [event for event in open_trace(trace).events() if isinstance(event, Exchange)]
    except UserError:  # its header has not come whole
        return {}
    return {exchange.place.title: exchange.value for exchange in exchanges if exchange.value is not None}


def test_what_lies_in_the_temporary_folder_here_is_not_there(host: SshHost, tmp_path: Path) -> None:
    here = Path("/tmp") / f"{tmp_path.parent.name}-{tmp_path.name}"
    here.touch()
    try:
        assert run_there(host, ["ls", "/tmp"], tmp_path)[0] == 0
        assert run_there(host, ["test", "-e", str(here)], tmp_path)[0] == 1
    finally:
        here.unlink()


def test_a_python_that_is_not_there_is_named(host: SshHost, tmp_path: Path) -> None:
    status, said = run_there(replace(host, python="/nonexistent/python"), [sys.executable, "-c", ""], tmp_path)
    assert status == 255
    assert "/nonexistent/python cannot be run there" in said


def test_a_program_there_stands_still_when_its_pause_returns_and_goes_on(host: SshHost, tmp_path: Path) -> None:
    """And not what stands for it here alone."""
    child = Child("there", host.command(["sh", "-c", "echo it is $$; exec sleep 600"]), log=tmp_path / "program.log")
    try:
        until(lambda: "it is" in child.log.read_text())
        number = child.log.read_text().split("it is ")[1].split()[0]

        def state() -> str:
            return run_there(host, ["cut", "-d ", "-f3", f"/proc/{number}/stat"], tmp_path)[1].split()[-1]

        child.pause(host.pause_signal)
        assert state() == "T"
        child.signal(signal.SIGCONT)
        until(lambda: state() != "T")
    finally:
        child.stop()


@pytest.fixture(scope="module")
def other() -> Iterator[OtherMachine]:
    with another_machine() as machine:
        yield machine


def hosts_told(other: OtherMachine, hosts: str, cache: str) -> subprocess.CompletedProcess[str]:
    """What is said of two hosts, asked where the other machine is reached."""
    program = f"from vfio_user.harness.hosts.pair import hosts_in_words; print(hosts_in_words({hosts!r}))"
    return subprocess.run(
        [*other.here, sys.executable, "-P", "-c", program],
        env={**os.environ, "VFIO_USER_CACHE": cache},
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )


def test_another_machine_and_this_one_are_reached_from_each_other(other: OtherMachine) -> None:
    told = hosts_told(other, other.hosts, str(other.cache))
    assert told.stdout.strip() == "local, reached at 192.0.2.1, and 192.0.2.2, reached at 192.0.2.2", told.stderr


def test_what_another_machine_cannot_do_is_refused_before_anything_is_begun(other: OtherMachine) -> None:
    of_nobody = other.hosts.replace("?", "?address=192.0.2.77&")
    for hosts, cache, wanted in (
        (of_nobody, str(other.cache), "192.0.2.2 cannot listen at 192.0.2.77"),
        (other.hosts.replace("local", "local?address=127.0.0.1"), str(other.cache), "192.0.2.2 does not reach local"),
        (other.hosts, f"{other.shared}/private/cache", f"lab may not write {other.shared}/private"),
    ):
        assert wanted in hosts_told(other, hosts, cache).stderr, wanted


def test_a_checkout_below_the_temporary_folder_is_there(tmp_path: Path) -> None:
    checkout = Path("/tmp") / f"{tmp_path.parent.name}-checkout"
    shutil.copytree(PACKAGE, checkout / "vfio_user", ignore=shutil.ignore_patterns("__pycache__"))
    program = f"""
import subprocess
from vfio_user.harness.hosts.sshd import ssh_namespaces
with ssh_namespaces() as (host, *_):
    subprocess.run(host.command(["cat", {str(checkout / "vfio_user/py.typed")!r}]), check=True)
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        shutil.rmtree(checkout)


def test_folders_that_are_kept_are_not_within_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(PACKAGE.parent / ".venv"))
    assert kept_folders(Path("/")).count(PACKAGE.parent) == 1
    assert PACKAGE.parent / ".venv" not in kept_folders(Path("/"))


def test_an_archive_that_is_not_what_it_was_is_refused_and_one_that_is_can_follow(
    host: SshHost, tmp_path: Path
) -> None:
    (tmp_path / "module.py").write_text("a = 1\n")
    archive = make_archive(tmp_path / "a.tar", [Member(tmp_path / "module.py", "module.py")])
    whole = archive.path.read_bytes()
    folder = f"/tmp/{tmp_path.name}"
    slots = Slots({"a": SlotText(host="127.0.0.1", folder=folder)}, {"a": host}, tmp_path, [])
    archive.path.write_bytes(whole.replace(b"a = 1", b"a = 2"))
    with pytest.raises(UserError, match="checksum"):
        slots.put("a", archive, f"{folder}/package")
    assert folder not in run_there(host, ["find", folder, "-type", "f"], tmp_path)[1], "nothing of it is kept"
    archive.path.write_bytes(whole)
    assert slots.put("a", archive, f"{folder}/package")
    assert not slots.put("a", archive, f"{folder}/package"), "it was there"
    assert run_there(host, ["cat", f"{folder}/package/module.py"], tmp_path)[1].splitlines()[-1] == "a = 1"
