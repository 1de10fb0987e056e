"""What the suite's own checks do beside their verdict: what they leave behind in a device, and whom they can catch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.conformance_target import Fault, InProcess, Proceed, Reply, failed, with_fault
from tests.everything_device import Everything
from userdev.conformance import targets
from userdev.errors import UserError
from userdev.transport import Address, Listener, Stream, connect
from vfio_user.client.channel import Channel
from vfio_user.client.conformance import CATALOGUE, Bench, Check, Skip, run
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Command, Message

CHECKS = {check.id: check for check in CATALOGUE}
WRITING = [
    check
    for check in CATALOGUE
    if check.group in ("region_read", "region_write", "config")
    and (check.dialects is None or CURRENT.name in check.dialects)
]


@for_each(WRITING, ids=lambda check: check.id)
def test_a_check_leaves_config_space_as_it_was(check: Check[Bench], tmp_path: Path) -> None:
    """The next one, and a device that somebody goes on with, count on what was written there."""
    with InProcess(tmp_path, Everything) as target:
        bench = Bench(target, CURRENT, timeout=30)
        try:
            bench.client.config_write(4, b"\6\1")
            before = bench.client.config_read(0, 64)
            with suppress(Skip):
                check.run(bench)
            assert bench.client.config_read(0, 64) == before
        finally:
            bench.close()


class Keeps(Fault):
    """Keeps descriptors that came with one command, where that is as it should be."""

    def __init__(self, command: Command, size: int) -> None:
        self.kept: list[int] = []
        self._what = command, size

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if (command, len(message.payload)) == self._what:
            self.kept += map(os.dup, message.fds)
        return proceed(command, message)


@for_each_row([(Command.REGION_READ, 16), (Command.DEVICE_RESET, 0), (Command.SET_IRQS, 20)])
def test_descriptors_that_one_command_leaves_open_are_noticed(
    command: Command, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Keeps(command, size)
    monkeypatch.setattr(Bench, "server_fds", lambda _: len(fault.kept))  # those of this process are the check's too
    with InProcess(tmp_path, Everything, session=with_fault(fault)) as target:
        results = list(run([CHECKS["session/fds-are-closed"]], target, CURRENT))
    for fd in fault.kept:
        os.close(fd)
    assert failed(results)


class HangsUp(Session):
    """On a client that proposes nothing."""

    def _negotiate(self) -> bool:
        take = self.connection.next

        def taken() -> Message | None:
            first = take()
            if first is not None and first.payload.endswith(b"{}\0"):
                self.connection.close()
                return None
            return first

        self.connection.next = taken  # type: ignore[method-assign]
        return super()._negotiate()


def test_a_server_that_hangs_up_on_an_empty_proposal_fails_in_words(tmp_path: Path) -> None:
    with InProcess(tmp_path, Everything, session=HangsUp) as target:
        (said,) = failed(list(run([CHECKS["version/no-unasked-fds"]], target, CURRENT))).values()
    assert "closes the connection" in said


# a server that was just started


class Comes:
    """A server that listens once the first client has found nobody."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
        self.tries = 0
        self.listeners: list[Listener] = []
        self._path = path
        self._connect = connect
        monkeypatch.setattr(targets, "connect", self.connect)

    def connect(self, address: Address, *, timeout: float) -> Stream:
        self.tries += 1
        try:
            return self._connect(address, timeout=timeout)
        except UserError:
            if self._path is not None and not self.listeners:
                self.listeners.append(Listener(self._path))
            raise


def test_a_server_that_was_just_started_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "s")
    server = Comes(monkeypatch, path)
    targets.connect_to_new(f"unix:{path}", timeout=10, seconds=60).close()
    assert server.tries == 2
    for listener in server.listeners:
        listener.close()


@for_each(["unix:{folder}/file", "unix:{folder}/none/s", "tcp:127.0.0.1:1"])
def test_where_no_server_can_come_nobody_is_waited_for(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    server = Comes(monkeypatch, None)
    with pytest.raises(UserError):
        targets.connect_to_new(where.format(folder=tmp_path), timeout=10, seconds=60)
    assert server.tries == 1


def test_a_server_that_does_not_come_is_waited_for_so_long(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        targets.connect_to_new(str(tmp_path / "s"), timeout=10, seconds=0.02)


def test_a_byte_is_sent_once_the_one_before_was_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server that takes a body in one receive has it whole by the time it wakes."""
    done: list[str] = []
    send_bytes, await_taken = Channel.send_bytes, Channel.await_taken

    def sent(channel: Channel, data: bytes, *fds: Sequence[int]) -> None:
        done.append(f"{len(data)} sent")
        send_bytes(channel, data, *fds)

    def taken(channel: Channel, seconds: float) -> bool:
        done.append("taken" if (is_taken := await_taken(channel, 60)) else "left")
        return is_taken

    monkeypatch.setattr(Channel, "send_bytes", sent)
    monkeypatch.setattr(Channel, "await_taken", taken)
    [check] = [check for check in CATALOGUE if check.id == "order/byte-by-byte"]
    with InProcess(tmp_path, Everything) as target:
        assert not failed(list(run([check], target, CURRENT, timeout=60)))
    first = done.index("1 sent")
    assert done[first : first + 64] == ["1 sent", "taken"] * 32
