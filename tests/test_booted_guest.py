"""What a guest does with its slots, its devices and its machines: the machine is a stand-in, and nothing runs."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from packaging.version import Version

from userdev.errors import UserError
from vfio_user.harness import booted_guest
from vfio_user.harness.attachment import Attachment
from vfio_user.harness.booted_guest import BootedGuest, attachment_of
from vfio_user.harness.breakpoint import VARIABLE
from vfio_user.harness.device import Device
from vfio_user.harness.guest import GuestFailure
from vfio_user.harness.guest_spec import GuestSpec
from vfio_user.harness.machine import Machine
from vfio_user.harness.mishaps import Kind, Mishap
from vfio_user.harness.server import DeviceServer, ServerFailure

IN_QEMU = Device(driver="edu")


class Stage:
    """Machines that do as they are told, and what is asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ends: list[socket.socket] = []
        self.inherited: list[Any] = []
        self.pci: list[dict[str, Any]] = []

    def machine(self, name: str = "guest", slots: int = 3) -> Machine:
        near, far = socket.socketpair()
        self.ends += [near, far]
        told: list[Callable[[Mishap], None]] = []
        return cast(
            Machine,
            SimpleNamespace(
                name=name,
                patience=1.0,
                agent_connection=near,
                console=SimpleNamespace(log=self.folder / f"{name}.console.log", last_lines=lambda: ""),
                mishaps=SimpleNamespace(listen=told.append, inherit=self.inherited.append, told=told),
                config=SimpleNamespace(slots=slots, slot_memory=64),
                qmp=SimpleNamespace(command=lambda name: self.pci, version=None),
                attach=lambda attachment, unless=None: None,
                detach=lambda attachment, limit: None,
            ),
        )


SEEN = {"address": "0000:01:00.0", "vendor": 1, "device": 2, "homeless": [], "capabilities": []}


@contextmanager
def guest_on(
    stage: Stage, machine: Machine, monkeypatch: pytest.MonkeyPatch, seen: Any = SEEN
) -> Iterator[BootedGuest]:
    spec = GuestSpec("guest", cast(Any, None), cast(Any, machine.config))
    guest = BootedGuest(machine, spec, serve=cast(Any, None))
    monkeypatch.setattr(guest, "call", lambda *_, **__: seen)
    monkeypatch.setattr(guest, "evidence", lambda: "")
    try:
        yield guest
    finally:
        guest.agent.close()
        for end in stage.ends:
            end.close()


def test_a_device_comes_into_the_slot_that_was_left_alone_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the guest may still eject what was there before (the known issue eject-twice)."""
    stage = Stage(tmp_path)
    with guest_on(stage, stage.machine(slots=3), monkeypatch) as guest:
        places = []
        for _ in range(5):
            plugged = guest.plug(IN_QEMU)
            places.append(plugged.place)
            guest.unplug(plugged)
        assert places == [0, 1, 2, 0, 1]
        for _ in range(3):
            guest.plug(IN_QEMU)
        assert sorted(map(str, (plugged.place for plugged in guest.devices))) == ["0", "1", "2"]
        with pytest.raises(UserError, match="slots"):
            guest.plug(IN_QEMU)


def test_no_two_devices_of_a_guest_have_one_id_those_from_the_start_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    with guest_on(stage, stage.machine(), monkeypatch) as guest:
        first = Attachment({"driver": "edu", "id": guest.spec.device_id(0)})
        guest.adopt(first, IN_QEMU, "0000:00:05.0", None)
        plugged = [guest.plug(IN_QEMU), guest.plug(IN_QEMU)]
        guest.unplug(plugged[0])
        identities = [device.identity for device in (*guest.devices, plugged[0], guest.plug(IN_QEMU))]
    assert len(set(identities)) == 4, identities


def test_why_a_guest_does_not_see_a_device_is_asked_of_qemu_behind_bridges_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(number: int) -> dict[str, Any]:
        return {"qdev_id": "guest-dev0", "class_info": {"class": number}}

    port = {"qdev_id": "slot0", "class_info": {"class": 0x604}}
    cases: dict[str, tuple[list[dict[str, Any]], str]] = {
        "gone": ([port], booted_guest._EJECTED),
        "on the root bus": ([shown(0x200)], ""),
        "behind a port": ([{**port, "pci_bridge": {"devices": [shown(0x200)]}}], ""),
        "behind a port, of no class": ([{**port, "pci_bridge": {"devices": [shown(0)]}}], booted_guest._CLASSLESS),
    }
    for case, (devices, why) in cases.items():
        (folder := tmp_path / case).mkdir()
        stage = Stage(folder)
        stage.pci = [{"devices": devices}]
        with (
            guest_on(stage, stage.machine(), monkeypatch, {"missing": "no device"}) as guest,
            pytest.raises(GuestFailure) as failure,
        ):
            guest.plug(IN_QEMU)
        assert str(failure.value).endswith(f"no device{why}"), case


def test_properties_of_a_plug_are_before_those_of_its_device_and_a_debugger_waits_where_sessions_outlast_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def properties(text: str, *, served: bool = True, **wanted: object) -> dict[str, object]:
        server = cast(DeviceServer, SimpleNamespace(path=Path("/x"))) if served else None
        return dict(attachment_of(Device.parse(text), "dev0", server, 0, wanted).device)

    assert properties("edu [x-msg-timeout=5]", x_msg_timeout=7)["x-msg-timeout"] == 7
    assert properties("edu [x-msg-timeout=5]")["x-msg-timeout"] == 5
    quiet = {text: properties(text) for text in ("edu", "vhost-user-rng")}
    inside = properties("qemu:edu", served=False)
    monkeypatch.setenv(VARIABLE, json.dumps({"server": "x", "match": {}, "told": ""}))
    assert properties("edu") != quiet["edu"]
    assert properties("vhost-user-rng") == quiet["vhost-user-rng"]
    assert properties("qemu:edu", served=False) == inside


def test_a_guest_that_has_moved_is_told_of_what_befalls_its_new_machine_and_no_more_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    old, new = stage.machine("old"), stage.machine("new")
    with guest_on(stage, old, monkeypatch) as guest:
        told: list[str] = []
        monkeypatch.setattr(guest.agent, "give_up", lambda why, moment: told.append(why))
        device = guest.plug(IN_QEMU)
        guest.continue_on(new, guest.spec, [device])
        assert stage.inherited == [old.mishaps]
        assert guest.devices == [device]
        for machine, is_told in ((old, False), (new, True)):
            told.clear()
            for listener in cast(Any, machine.mishaps).told:
                listener(Mishap(Kind.PANIC, "", time.monotonic()))
            assert bool(told) is is_told, machine.name
    assert [path.name.partition(".")[0] for path in sorted(tmp_path.iterdir())] == ["new", "old"]


def test_no_checkpoint_is_for_a_guest_with_devices_from_the_start_and_what_looks_on_stays_where_it_was() -> None:
    spec = GuestSpec("guest", cast(Any, None), cast(Any, None), trace=True, monitor=Path("/monitor"))
    attached = Attachment({"driver": "edu", "id": "dev0"})
    for one, from_the_beginning in (
        (spec, False),
        (replace(spec, fresh=True), True),
        (spec.with_attached(attached), True),
    ):
        assert one.from_the_beginning is from_the_beginning, one
    moved = spec.moved("guest.2", spec.host, attached)
    assert (moved.name, moved.attached, moved.trace, moved.monitor) == ("guest.2", (attached,), False, None)


def served(failure: Exception | None = None) -> Any:
    """A server that was stopped so many times, and that has failed, or has not."""
    server = SimpleNamespace(path=Path("/x"), device=Device.parse("edu"), stopped=0, last_words=lambda: "")

    def check(wait: float = 0.0) -> None:
        if failure is not None:
            raise failure

    def stop() -> None:
        server.stopped += 1

    server.check, server.stop = check, stop
    return server


def test_a_server_goes_with_its_device_unless_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path)
    machine = stage.machine()
    cast(Any, machine.qmp).version = Version("11.1.3")
    with guest_on(stage, machine, monkeypatch) as guest:
        for kept in (True, False):
            server = served()
            guest.unplug(guest.plug("edu", server=server), keep_server=kept)
            assert (server.stopped, guest.devices) == (int(not kept), []), kept


def test_a_device_that_qemu_does_not_take_is_told_by_its_servers_end_where_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    machine = stage.machine()

    def refuse(attachment: Attachment, unless: object = None) -> None:
        raise UserError("QEMU does not answer")

    cast(Any, machine).attach = refuse
    with guest_on(stage, machine, monkeypatch) as guest:
        for failure, told in ((None, "does not answer"), (ServerFailure("it died", evidence=""), "it died")):
            with pytest.raises((UserError, ServerFailure), match=told):
                guest.plug("edu", server=served(failure))
            assert not guest.devices


def test_a_reset_guest_is_up_by_what_its_console_says_since_and_its_agent_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    machine = cast(Any, stage.machine())
    machine.console.position = 4711
    done: list[object] = []
    machine.mishaps.expect_reset = lambda: done.append("it is expected")
    machine.qmp.command = done.append
    machine.wait_ready = lambda since: done.append(since)
    with guest_on(stage, machine, monkeypatch) as guest:
        monkeypatch.setattr(guest.agent, "renew", lambda: done.append("a new session"))
        monkeypatch.setattr(guest.agent, "hello", lambda limit: done.append("hello"))
        guest.reset()
    assert done == ["it is expected", "system_reset", 4711, "a new session", "hello"]
