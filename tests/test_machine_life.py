"""What a machine does from its guest's first words to its end: its QEMU is a thread of this process."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each_row
from userdev.process import Child
from vfio_user.harness import machine
from vfio_user.harness.command_line import MachineConfig, Start
from vfio_user.harness.log import LogFile
from vfio_user.harness.machine import CHANNELS, Launch, Machine, MachineError
from vfio_user.harness.memory_file import MemoryFile

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}, "capabilities": []}}
CONFIG = MachineConfig("q35", "tcg")


class Emulated:
    """A QEMU that says yes to all that QMP asks; what it was asked, and how a migration of its ends."""

    argv = ("qemu",)
    pid = 0
    ended: float | None = None

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.migrated = "completed"
        self.running = True
        self.was_stopped = False
        self._ends: dict[str, socket.socket] = {}
        self._thread: threading.Thread | None = None

    def start(self, name: str, argv: list[str], **options: Any) -> Emulated:
        """Take the channels' other ends, as a process would that inherits them."""
        self.log = options["log"]
        wired = re.findall(r"id=(\w+),fd=(\d+)", " ".join(argv))
        self._ends = {channel: socket.socket(fileno=socket.dup(int(fd))) for channel, fd in wired}
        self._thread = threading.Thread(target=self._answer, args=(self._ends["qmp"],), daemon=True)
        self._thread.start()
        return self

    def say(self, text: bytes) -> None:
        """Let the guest say something on its console."""
        self._ends["console"].sendall(text)

    def wait(self, seconds: float) -> int | None:
        return None if self.running else 0

    def kill(self, by: int) -> None:
        self.running = False

    def stop(self, grace: float = 0.0) -> None:
        self.running = False
        for end in self._ends.values():
            with suppress(OSError):  # whoever was there is gone
                end.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()  # which may be about to read
        for end in self._ends.values():
            end.close()

    def group_is_alive(self) -> bool:
        return self.running

    def last_words(self, lines: int = 20) -> str:
        return "its last words"

    def _answer(self, end: socket.socket) -> None:
        def say(message: dict[str, Any]) -> None:
            end.sendall(json.dumps(message).encode() + b"\n")

        with suppress(BrokenPipeError, ConnectionResetError):  # nobody is there any more who asks
            say(GREETING)
            self._answer_all(end, say)

    def _answer_all(self, end: socket.socket, say: Callable[[dict[str, Any]], None]) -> None:
        while said := end.recv(65536):
            asked = json.loads(said)
            self.asked.append(asked)
            told = {"error-desc": "no space"} if asked["execute"] == "query-migrate" else {}
            say({"return": told, "id": asked.get("id")})
            if asked["execute"] in ("migrate", "migrate-incoming"):
                now = {"seconds": 0, "microseconds": 0}
                say({"event": "MIGRATION", "data": {"status": "active"}, "timestamp": now})
                say({"event": "MIGRATION", "data": {"status": self.migrated}, "timestamp": now})
            if asked["execute"] == "quit":
                self.running = False
                return


@contextmanager
def machine_of(
    emulated: Emulated,
    folder: Path,
    adapted: Callable[[Launch], Launch] = lambda launch: launch,
    beside: Callable[[], Iterable[Child]] = tuple,
) -> Iterator[Machine]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine, "Child", emulated.start)
        with Machine(
            emulated, adapted(Launch(CONFIG, Start(folder / "k", folder / "i"), folder)), beside=beside
        ) as made:
            yield made


@for_each_row(
    [
        (b"\x1b[0mREADY\r\n", None),
        (b"Initramfs unpacking failed: write error\n", True),
        (b"Kernel panic - not syncing: no init\n", False),
        (b"NOT READY: no agent\n", False),
    ]
)
def test_more_memory_is_advised_where_the_image_had_no_room_and_nowhere_else(
    said: bytes, advised: bool | None, tmp_path: Path
) -> None:
    emulated = Emulated()
    with machine_of(emulated, tmp_path) as guest:
        emulated.say(said)
        if advised is None:
            guest.wait_ready()
            return
        with pytest.raises(MachineError) as failure:
            guest.wait_ready()
    assert ("--memory" in failure.value.hint) is advised


def test_a_guest_that_its_firmware_boots_has_twice_as_long_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_READY_SECONDS", 0.001)
    waited = []
    for firmware in (False, True):
        start = Start(tmp_path / "k", tmp_path / "i", firmware=firmware)
        with machine_of(Emulated(), tmp_path, lambda launch, start=start: replace(launch, start=start)) as guest:  # type: ignore[misc]
            with pytest.raises(MachineError) as failure:
                guest.wait_ready()
            waited.append(float(re.findall(r"in (\S+) s", str(failure.value))[0]))
    assert waited[1] == pytest.approx(2 * waited[0])


def test_a_guest_is_saved_with_its_memory_or_apart_from_it_as_is_asked_whosever_the_memory_is(tmp_path: Path) -> None:
    cases = {(ours, apart): {"mapped-ram": not apart, "x-ignore-shared": apart} for ours, apart in _KINDS}
    for (ours, apart), wanted in cases.items():
        emulated, folder = Emulated(), tmp_path / f"{ours}-{apart}"
        folder.mkdir()
        memory = MemoryFile(1) if ours else None
        with machine_of(emulated, folder, lambda launch, memory=memory: replace(launch, memory=memory)) as guest:  # type: ignore[misc]
            guest.save(folder / "state", folder / "memory" if apart else None)
        assert capabilities(emulated).items() >= wanted.items(), (ours, apart)
        assert (folder / "memory").exists() is apart, (ours, apart)


_KINDS = ((False, False), (True, False), (True, True))
"""Whether the memory is ours, and whether it is saved apart."""


def capabilities(emulated: Emulated) -> dict[str, bool]:
    [asked] = [asked for asked in emulated.asked if asked["execute"] == "migrate-set-capabilities"]
    return {each["capability"]: each["state"] for each in asked["arguments"]["capabilities"]}


def test_a_guest_that_is_loaded_into_memory_of_ours_keeps_no_descriptor_of_it(tmp_path: Path) -> None:
    """QEMU has mapped it: a lab with many guests would run out of them."""
    (tmp_path / "saved").write_bytes(bytes(1 << 20))
    memory, emulated = MemoryFile(1, tmp_path / "saved"), Emulated()
    with machine_of(emulated, tmp_path, lambda launch: replace(launch, memory=memory)) as guest:
        guest.load(tmp_path / "state")
        assert memory.fd == -1
    assert capabilities(emulated)["x-ignore-shared"]


def test_a_guest_that_is_not_saved_or_loaded_to_the_end_is_an_error_with_qemus_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SAVE_SECONDS", 5.0)
    for does in (Machine.save, Machine.load):
        for status in ("failed", "cancelled"):
            emulated, folder = Emulated(), tmp_path / f"{does.__name__}-{status}"
            folder.mkdir()
            emulated.migrated = status
            with machine_of(emulated, folder) as guest, pytest.raises(MachineError, match="no space"):
                does(guest, folder / "state")


def test_what_became_of_a_migration_before_is_nothing_of_the_saving(tmp_path: Path) -> None:
    for does in (Machine.save, Machine.load):
        for before in ("cancelled", "completed"):
            emulated, folder = Emulated(), tmp_path / f"{does.__name__}-{before}"
            folder.mkdir()
            emulated.migrated = "failed" if before == "completed" else "completed"
            with machine_of(emulated, folder) as guest:
                guest.qmp.events.put({"event": "MIGRATION", "data": {"status": before}})
                with pytest.raises(MachineError) if before == "completed" else nullcontext():
                    does(guest, folder / "state")


def test_a_qemu_that_had_died_before_it_was_given_up_has_died_by_itself(tmp_path: Path) -> None:
    for running in (True, False):
        emulated, folder = Emulated(), tmp_path / str(running)
        folder.mkdir()
        with machine_of(emulated, folder) as guest:
            emulated.running = running
            for _ in range(2):
                guest.abandon()
                assert emulated.was_stopped is running, running


def test_whichever_log_of_a_machine_is_not_whole_is_told(tmp_path: Path) -> None:
    logs: dict[str, Callable[[Machine], LogFile]] = {
        "console": lambda guest: guest.console.logs[0],
        "console with times": lambda guest: guest.console.logs[1],
        "QMP": lambda guest: guest.qmp.log,
    }
    for name, log in logs.items():
        folder = tmp_path / name
        folder.mkdir()
        with machine_of(Emulated(), folder) as guest:
            assert guest.unwritten() is None
            full = log(guest).failure = OSError("no space")
            assert guest.unwritten() is full, name


def test_nothing_is_left_of_a_machine_that_was_stopped_and_what_would_be_is_told(tmp_path: Path) -> None:
    memory, emulated = MemoryFile(1), Emulated()
    with machine_of(emulated, tmp_path, lambda launch: replace(launch, memory=memory)) as guest:
        left = guest.left_behind()
        assert {channel for channel in CHANNELS for said in left if channel in said} == set(CHANNELS)
        assert any("QEMU" in said for said in left)
    assert guest.left_behind() == []
    assert memory.fd == -1
