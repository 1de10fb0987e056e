"""A machine whose QEMU does not live: a shell script in its place."""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from userdev.errors import UserdevError
from userdev.process import Child
from vfio_user.harness import evidence, machine
from vfio_user.harness.attachment import Attachment, SocketChardev, VhostUserNetdev
from vfio_user.harness.command_line import MachineConfig, Start
from vfio_user.harness.machine import Launch, Machine, MachineError, crowding, open_sockets
from vfio_user.harness.qmp import QmpError
from vfio_user.harness.server import ServerFailure


@dataclass(frozen=True)
class Script:
    """A program that takes any arguments."""

    argv: tuple[str, ...]


def launch(folder: Path) -> Launch:
    return Launch(MachineConfig("q35", "tcg"), Start(folder / "k", folder / "i"), folder)


def test_the_reason_why_qemu_does_not_start_is_in_the_error(tmp_path: Path) -> None:
    said = "qemu: -device x: no such device"
    harmless = "vfio_container_dma_unmap(0x1, 0x2, 0x3) = -2 (No such file or directory)"
    emulator = Script(("sh", "-c", f"echo '{said}' >&2; echo '{harmless}' >&2; exit 1"))
    with pytest.raises(MachineError) as failure:
        Machine(emulator, launch(tmp_path))
    assert str(failure.value).endswith(f"status 1 at its start: {said}")


def test_a_machine_too_large_for_its_processor_says_what_to_ask_for(tmp_path: Path) -> None:
    said = "qemu: Address space limit 0x7fffffffff < 0xdbffffffff phys-bits too low (39)"
    with pytest.raises(MachineError) as failure:
        Machine(Script(("sh", "-c", f"echo '{said}' >&2; exit 1")), launch(tmp_path))
    assert "--memory" in failure.value.hint


def test_only_emulated_processors_beyond_the_hosts_are_said_to_be_slow() -> None:
    many = replace(launch(Path("/t")).config, cpus=99)
    assert "--cpus" in crowding(many, 2)
    for config, processors in ((many, 99), (replace(many, cpus=1), 1), (replace(many, accelerator="kvm"), 2)):
        assert not crowding(config, processors), (config, processors)


def test_a_device_that_qemu_refuses_is_its_servers_failure_unless_a_property_is_why(tmp_path: Path) -> None:
    served: dict[str, object] = {"driver": "vfio-user-pci", "id": "dev0", "socket": {"path": "/x"}, "x-msg-timeout": 1}
    behind = (SocketChardev("dev0-socket", Path("/x")),)
    reasons = {
        "vfio vfio-user:/tmp/dev0.sock: version reply: Invalid argument": True,
        "Property 'vfio-user-pci.x-msg-timeout' not found": False,
        "Parameter 'x-msg-timeout' expects uint64": False,
    }
    for attachment, is_served in (
        (Attachment(served), True),
        (Attachment({"driver": "vhost-user-blk-pci", "id": "dev0", "x-msg-timeout": 1}, behind), True),
        (Attachment({"driver": "edu", "id": "dev0", "x-msg-timeout": 1}), False),
    ):
        for why, servers_fault in reasons.items():
            assert attachment.blames_server(why) is (servers_fault and is_served), (attachment.device, why)
            told = f"qemu: -device {json.dumps(dict(attachment.device), separators=(',', ':'))}: {why}"
            start = replace(launch(tmp_path).start, attached=(attachment,))
            wrong = ServerFailure if servers_fault and is_served else MachineError
            with pytest.raises(wrong, match=re.escape(why)):
                Machine(
                    Script(("sh", "-c", f"echo {shlex.quote(told)} >&2; exit 1")),
                    replace(launch(tmp_path), start=start),
                )


def test_a_server_that_died_before_qemu_is_named_first_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "dev0.server.log"
    script = "echo Edu is listening on unix:/x; echo no memory is left >&2; exit 3"
    server = Child("dev0", ["sh", "-c", script], log=log)
    healthy = Child("dev1", ["sh", "-c", "exec sleep 60"], log=tmp_path / "dev1.server.log")
    server.wait(30)
    with pytest.raises(ServerFailure) as failure:
        Machine(
            Script(("sh", "-c", "echo an assertion failed >&2; kill -ABRT $$")),
            launch(tmp_path),
            beside=lambda: (healthy, server),
        )
    assert (
        str(failure.value)
        == "dev0 exited with status 3: no memory is left; then QEMU was killed by SIGABRT at its start"
    )
    assert "no memory is left" in failure.value.evidence
    for child in (server, healthy):
        child.stop()


def test_a_qemu_that_says_nothing_is_not_said_to_have_been_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, by us, since we had waited long enough."""
    monkeypatch.setattr(machine, "_GREETING_SECONDS", 0.01)
    monkeypatch.setattr(machine, "_ENDING_SECONDS", 0.0)
    with pytest.raises(MachineError) as failure:
        Machine(Script(("sh", "-c", "exec sleep 60")), launch(tmp_path))
    assert "no QMP greeting" in str(failure.value)
    assert "killed" not in str(failure.value)


@pytest.mark.parametrize("in_the_way", ["guest.console.log", "guest.qmp.log", "no greeting"])
def test_nothing_stays_open_of_a_machine_that_fails_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_the_way: str
) -> None:
    monkeypatch.setattr(machine, "_GREETING_SECONDS", 0.2)
    monkeypatch.setattr(machine, "_ENDING_SECONDS", 0.0)
    started: list[Child] = []

    def start(name: str, argv: list[str], **options: Any) -> Child:
        started.append(Child(name, argv, **options))
        return started[0]

    monkeypatch.setattr(machine, "Child", start)
    if in_the_way.endswith("log"):
        (tmp_path / in_the_way).mkdir()
    before, threads = open_sockets(), {*threading.enumerate()}
    with pytest.raises((OSError, UserdevError)) as failure:
        Machine(Script(("sh", "-c", "exec sleep 60")), launch(tmp_path))
    assert open_sockets() <= before, "what ends meanwhile is another test's"
    assert not started[0].group_is_alive()
    assert {*threading.enumerate()} <= threads
    del failure


def test_the_end_of_a_machine_that_was_given_up_is_none_of_what_went_wrong(tmp_path: Path) -> None:
    """As that of the destination of a migration that failed: what failed is said, and not what followed."""
    with Machine(Script((sys.executable, "-c", QMP)), launch(tmp_path)) as guest:
        guest.abandon()
        assert not guest.child.running
        assert not evidence.deaths(tmp_path, [guest.child])


QMP = """
import json, re, socket, sys
[fd] = re.findall(r"socket,id=qmp,fd=(\\d+)", " ".join(sys.argv))
end = socket.socket(fileno=int(fd))
def say(**message): end.sendall(json.dumps(message).encode() + b"\\n")
say(QMP={"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}, "capabilities": []})
while said := end.recv(65536):
    asked = json.loads(said)  # one at a time, and no line: the client waits for each answer
    known = {"id": asked["id"]} if "id" in asked else {}
    print(asked["execute"], asked.get("arguments", {}).get("id", ""), flush=True)
    if asked["execute"] == "device_add" and asked["arguments"]["driver"] == "none-such":
        say(error={"class": "GenericError", "desc": "no such device"}, **known)
        continue
    refused = {"gone": "DeviceNotFound", "kept": "GenericError"}.get(asked.get("arguments", {}).get("id"))
    if asked["execute"] == "device_del" and refused:
        say(error={"class": refused, "desc": "refused"}, **known)
        continue
    say(**{"return": {}}, **known)
    if asked["execute"] == "device_del":
        now = {"seconds": 0, "microseconds": 0}
        say(event="DEVICE_DELETED", data={"device": asked["arguments"]["id"]}, timestamp=now)
    if asked["execute"] == "quit":
        break
"""
"""A QEMU that says yes on QMP, but to one device, and prints what it was asked."""


def asked_of(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "guest.qemu.log").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith(("chardev", "netdev", "device"))]


def test_a_device_comes_after_its_character_devices_and_goes_before_them(tmp_path: Path) -> None:
    chardevs = (SocketChardev("one", tmp_path / "1"), SocketChardev("two", tmp_path / "2"))
    attachment = Attachment({"driver": "vhost-user-blk-pci", "id": "vu0"}, chardevs)
    with Machine(Script((sys.executable, "-c", QMP)), launch(tmp_path)) as guest:
        guest.attach(attachment)
        guest.detach(attachment)
    assert asked_of(tmp_path) == [
        "chardev-add one",
        "chardev-add two",
        "device_add vu0",
        "device_del vu0",
        "chardev-remove two",
        "chardev-remove one",
    ]


def test_a_character_device_that_goes_with_its_network_is_not_taken_back_again(tmp_path: Path) -> None:
    chardev = SocketChardev("one", tmp_path / "1", goes_with_user=True)
    attachment = Attachment({"driver": "virtio-net-pci", "id": "vu0"}, (chardev, VhostUserNetdev("net", "one")))
    with Machine(Script((sys.executable, "-c", QMP)), launch(tmp_path)) as guest:
        guest.attach(attachment)
        guest.detach(attachment)
    assert asked_of(tmp_path) == [
        "chardev-add one",
        "netdev_add net",
        "device_add vu0",
        "device_del vu0",
        "netdev_del net",
    ]


def test_nothing_is_left_of_a_device_that_qemu_refuses(tmp_path: Path) -> None:
    chardevs = tuple(SocketChardev(name, tmp_path / name) for name in ("one", "two"))
    guest = Machine(Script((sys.executable, "-c", QMP)), launch(tmp_path))
    with guest, pytest.raises(QmpError, match="no such device"):
        guest.attach(Attachment({"driver": "none-such", "id": "vu0"}, chardevs))
    assert asked_of(tmp_path) == [
        "chardev-add one",
        "chardev-add two",
        "device_add vu0",
        "chardev-remove two",
        "chardev-remove one",
    ]


class Refusing:
    """A QMP in which one command is refused."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.asked: list[str] = []

    def execute(self, command: str, arguments: Mapping[str, object], *_: object, **__: object) -> None:
        self.asked.append(f"{command} {arguments['id']}")
        if self.asked[-1] == self.refused:
            raise QmpError(command, "GenericError", "no")


def test_whatever_qemu_refuses_of_a_device_what_was_there_before_it_alone_is_taken_back(tmp_path: Path) -> None:
    needs = (SocketChardev("one", tmp_path / "1"), VhostUserNetdev("net", "one"), SocketChardev("two", tmp_path / "2"))
    guest: Any = Machine.__new__(Machine)
    adding = ["chardev-add one", "netdev_add net", "chardev-add two", "device_add vu0"]
    removing = ["chardev-remove one", "netdev_del net", "chardev-remove two"]
    for done, refused in enumerate(adding):
        guest.qmp = Refusing(refused)
        with pytest.raises(QmpError, match="no"):
            guest.attach(Attachment({"driver": "virtio-net-pci", "id": "vu0"}, needs))
        assert guest.qmp.asked == [*adding[: done + 1], *reversed(removing[:done])], refused


def test_what_a_device_needed_goes_though_it_has_gone_itself(tmp_path: Path) -> None:
    """As behind an unplugging that was not waited for to its end: the guest died, and was reset."""
    attachment = Attachment({"driver": "vhost-user-blk-pci", "id": "gone"}, (SocketChardev("one", tmp_path / "1"),))
    with Machine(Script((sys.executable, "-c", QMP)), launch(tmp_path)) as guest:
        guest.detach(attachment)
    assert asked_of(tmp_path) == ["device_del gone", "chardev-remove one"]


def test_what_a_device_needs_stays_with_one_that_qemu_keeps(tmp_path: Path) -> None:
    attachment = Attachment({"driver": "vhost-user-blk-pci", "id": "kept"}, (SocketChardev("one", tmp_path / "1"),))
    guest = Machine(Script((sys.executable, "-c", QMP)), launch(tmp_path))
    with guest, pytest.raises(QmpError, match="refused"):
        guest.detach(attachment)
    assert asked_of(tmp_path) == ["device_del kept"]
