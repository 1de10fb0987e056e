"""Work that a device plans, in a session: after how long it is done, and what becomes of it in migration."""

from __future__ import annotations

import threading

import pytest

from tests.device_kit import descriptors_left, open_fds
from tests.session_kit import GUEST, Prober, comes_true, message_memory
from userdev.serving.worker import FORGOTTEN, Worker
from vfio_user.client import Client, EventFd
from vfio_user.device import function_of
from vfio_user.server import Server
from vfio_user.wire.constants import IrqIndex, MigrationState


def test_nothing_that_was_planned_interrupts_a_guest_whose_device_is_stopped(device: Prober, client: Client) -> None:
    """Threads go on posting, and timers come due; all of it is done when the device runs again."""
    with EventFd() as eventfd:
        client.enable_irqs(IrqIndex.MSIX, [eventfd])
        client.set_migration_state(MigrationState.STOP)
        for _ in range(10):
            device.call_soon(lambda: device.interrupts.trigger(0))
            device.call_later(0.001, lambda: device.interrupts.trigger(0))
        last = threading.Event()
        function_of(device).link.call_later(0.01, last.set)  # past the device: it comes due behind the others
        assert last.wait(5)
        assert eventfd.take() == 0
        client.set_migration_state(MigrationState.RUNNING)
        rung = 0

        def all_rung() -> bool:
            nonlocal rung
            rung += eventfd.take()
            return rung == 20

        assert comes_true(client, all_rung)


def test_what_is_deferred_is_done_though_what_came_before_it_misses_the_client(
    device: Prober, server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that is done with a request only in the last of them would be busy for its next client."""
    done = threading.Event()
    message_memory(client)

    def read() -> None:
        device.dma.read_u32(GUEST)

    def defer() -> None:
        for work in (read, read, read, done.set):
            device.defer(work)

    device.config.watch(0x0C, 1, lambda old, new: defer())
    client.config_write(0x0C, b"\1")
    client.close()
    assert done.wait(10)
    with Client.connect(str(server.listener.address)) as following:  # whose session begins when that one has ended
        following.load(0, 0, 4)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_is_cancelled_is_not_done_and_does_not_pile_up(device: Prober, client: Client) -> None:
    """A deadline that is set anew with every command, and never comes."""
    done: list[str] = []
    client.load(0, 0, 4)
    for _ in range(10 * FORGOTTEN):
        device.call_later(3600, lambda: done.append("deadline")).cancel()

    def plan() -> None:
        """Where nothing else of the device's is done meanwhile, however long this takes."""
        device.call_later(0, lambda: done.append("cancelled")).cancel()
        device.call_later(0, lambda: done.append("kept"))

    device.call_soon(plan)
    assert comes_true(client, lambda: bool(done))
    assert done == ["kept"]
    worker = function_of(device).link._worker  # type: ignore[attr-defined]
    assert len(worker._later) <= 2 * FORGOTTEN


def test_work_for_next_year_keeps_no_other_work_from_being_done() -> None:
    """No system call waits so long, and a worker that fell over it would do nothing more."""
    worker, awake, done = Worker(lambda work: work()), threading.Event(), threading.Event()
    try:
        worker.call_later(365 * 86400, lambda: None)
        worker.call_soon(awake.set)
        assert awake.wait(5)
        worker.call_later(0.05, done.set)
        assert done.wait(5)
    finally:
        worker.close()


def test_a_worker_that_finds_no_descriptors_keeps_none_and_begins_once_there_are() -> None:
    worker, done = Worker(lambda work: work()), threading.Event()
    before = open_fds()
    for left in (0, 1):
        with descriptors_left(left), pytest.raises(OSError, match="Too many open files"):
            worker.call_soon(done.set)
        assert open_fds() == before, left
    worker.call_soon(lambda: None)
    assert done.wait(5)
    worker.close()
