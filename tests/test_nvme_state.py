"""What of an NVMe controller each reset clears, a migration brings along, and a guest's failure leaves behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest

from tests.cases import for_each
from tests.nvme_kit import BASE, CC, CSTS, ENABLE, NSSR, READY, Host, controller
from userdev.errors import UserError
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.spec import Admin, Feature, Io, LogPage

EXPRESS, DEVICE_CONTROL, FLR = 0x40, 8, 1 << 15
"""Where the PCI Express capability is, and what in it resets the function."""
FATAL, SUBSYSTEM_RESET = 2, 1 << 4
ALL_RESETS = ["CC.EN", "subsystem", "FLR", "DEVICE_RESET"]
OF_THE_FUNCTION = ["FLR", "DEVICE_RESET"]
MILLISECONDS = (1 << 48) - 1
"""Of the timestamp."""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Host]:
    """A controller with something of everything: a queue, features, a failed command, events, transfers."""
    with controller(tmp_path, subsystem_reset=True) as (_, host):
        host.enable()
        host.create_queues()
        assert host.write_blocks(0, bytes(8192)).status == 0
        assert host.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=0x1FF).status == 0
        assert host.admin.do(0xFF).status == 1
        host.admin.put(Admin.ASYNC_EVENT_REQUEST)
        assert host.admin.do(Admin.FORMAT_NVM, nsid=1, cdw10=1).status == 0
        yield host


def reset(host: Host, way: str) -> None:
    match way:
        case "CC.EN":
            host.store(CC, 4, 0)
        case "subsystem":
            host.store(NSSR, 4, 0x4E564D65)
        case "FLR":
            host.client.config_write(EXPRESS + DEVICE_CONTROL, FLR.to_bytes(2, "little"))
        case "DEVICE_RESET":
            host.client.reset()
    host.until(lambda: not host.load(CSTS) & READY)


def again(host: Host) -> None:
    """Enable it anew, with the queues that a new driver makes."""
    host.enable()
    host.create_queues()


def test_a_controller_that_was_shut_down_is_not_any_more_once_it_is_enabled(busy: Host) -> None:
    for way in ALL_RESETS:
        busy.store(CC, 4, ENABLE | 1 << 14)
        busy.until(lambda: busy.load(CSTS) >> 2 & 3 == 2)
        reset(busy, way)
        again(busy)
        assert busy.load(CSTS) & ~SUBSYSTEM_RESET == READY, way
        busy.store(CSTS, 4, SUBSYSTEM_RESET)


def test_that_there_was_a_subsystem_reset_stays_known_until_the_guest_clears_it(busy: Host) -> None:
    """CSTS.NSSRO: of the last reset of the subsystem, which one of the controller or its function is not."""
    reset(busy, "subsystem")
    for cleared in (False, True):
        for way in ("CC.EN", *OF_THE_FUNCTION):
            again(busy)
            if cleared:
                busy.store(CSTS, 4, SUBSYSTEM_RESET)
            reset(busy, way)
            assert busy.load(CSTS) == (0 if cleared else SUBSYSTEM_RESET), (way, cleared)


@pytest.mark.parametrize("way", ALL_RESETS)
def test_every_reset_forgets_queues_features_and_events(busy: Host, way: str) -> None:
    reset(busy, way)
    busy.enable()
    assert busy.admin.do(Admin.GET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG).result == 0
    assert busy.admin.do(Admin.DELETE_SQ, cdw10=1).status == 0x101
    requests = [busy.admin.put(Admin.ASYNC_EVENT_REQUEST) for _ in range(4)]
    assert busy.admin.do(Admin.ASYNC_EVENT_REQUEST).status == 0x105, "the one from before waits no more"
    assert not any(request in busy.admin.arrived for request in requests), "what was to be told before is not told now"


def test_the_clock_counts_from_the_last_reset_unless_the_guest_has_set_it(busy: Host) -> None:
    """Section 5.21.1.14; what the guest has set goes on over a reset by CC.EN alone."""
    page, later = busy.allocate(4096), 1 << 40

    def clock() -> tuple[int, bool]:
        """Its origin, and whether it is as late as the guest has set it."""
        assert busy.admin.do(Admin.GET_FEATURES, cdw10=Feature.TIMESTAMP, prp1=page).status == 0
        (value,) = unpack_from("<Q", busy.read(page, 8))
        assert later <= value & MILLISECONDS or value & MILLISECONDS <= (time.monotonic() - began) * 1000 + 1
        return value >> 49 & 7, value & MILLISECONDS >= later

    began = 0.0
    assert clock() == (0, False), "it counts from when it was made"
    for way, expected in {"CC.EN": (1, True), **dict.fromkeys(["subsystem", *OF_THE_FUNCTION], (0, False))}.items():
        busy.write(page, pack("<Q", later))
        assert busy.admin.do(Admin.SET_FEATURES, cdw10=Feature.TIMESTAMP, prp1=page).status == 0
        began = time.monotonic()
        reset(busy, way)
        busy.enable()
        assert clock() == expected, way
        if way == "CC.EN":
            continue
        began = time.monotonic()
        reset(busy, "CC.EN")
        busy.enable()
        assert clock() == (0, False), "one that was not set begins anew with each reset"


@pytest.mark.parametrize("way", ALL_RESETS)
def test_no_reset_forgets_what_was_done_and_what_failed(busy: Host, way: str) -> None:
    smart, errors = busy.log_page(LogPage.SMART), busy.log_page(LogPage.ERRORS, 64)
    reset(busy, way)
    again(busy)
    assert busy.log_page(LogPage.SMART)[32:] == smart[32:]
    assert busy.log_page(LogPage.ERRORS, 64) == errors
    assert busy.identify(0, 1)[26] == 1, "the format is the namespace's"


@pytest.mark.parametrize("way", ALL_RESETS)
def test_changed_namespaces_are_named_until_the_function_is_reset(busy: Host, way: str) -> None:
    reset(busy, way)
    again(busy)
    (first,) = unpack_from("<I", busy.log_page(LogPage.CHANGED_NAMESPACES, 4096))
    assert first == (0 if way in OF_THE_FUNCTION else 1)


@pytest.mark.parametrize("way", ALL_RESETS)
def test_a_reset_ends_a_fatal_error(busy: Host, way: str) -> None:
    busy.disable()
    busy.store(CC, 4, ENABLE | 0xF << 7)  # pages that it has not
    assert busy.load(CSTS) & FATAL
    reset(busy, way)
    again(busy)
    assert busy.load(CSTS) & (READY | FATAL) == READY
    assert busy.queues[1].do(Io.FLUSH, nsid=1).status == 0


def test_after_a_fatal_error_nothing_is_begun(busy: Host) -> None:
    """What waits in the queues stays there, and what the guest rings is no work."""
    queue = busy.queues[1]
    busy.client.dma_unmap(BASE, busy.memory.size)
    busy.store(0x1008, 4, 5)
    busy.until(lambda: bool(busy.load(CSTS) & FATAL))
    busy.client.dma_map(BASE, busy.memory)
    cid = queue.put(Io.FLUSH, nsid=1)
    busy.store(0x1000, 4, 3)
    assert busy.load(CSTS) & (READY | FATAL) == READY | FATAL
    queue.take()
    assert cid not in queue.arrived
    busy.disable()
    again(busy)
    assert busy.queues[1].do(Io.FLUSH, nsid=1).status == 0


def test_the_error_log_ends_at_64_and_the_count_goes_on(busy: Host) -> None:
    for _ in range(70):
        busy.admin.do(0xFF)
    log = busy.log_page(LogPage.ERRORS, 4096)
    numbers = [unpack_from("<Q", log, at)[0] for at in range(0, 4096, 64)]
    assert numbers == list(range(71, 7, -1))


def test_statistics_and_errors_move_to_another_host(busy: Host, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for _ in range(70):  # more than the log has room for
        busy.admin.do(0xFF)
    smart, errors = busy.log_page(LogPage.SMART), busy.log_page(LogPage.ERRORS, 64)
    with controller(tmp_path / "b", f"{tmp_path / 'disk.img'}", subsystem_reset=True) as (_, target):
        target.client.load_state(busy.client.save())
        busy.goes_on_at(target)
        assert target.log_page(LogPage.SMART) == smart
        assert target.log_page(LogPage.ERRORS, 64) == errors


@for_each(["control", "map_doorbells"])
def test_a_controller_that_cannot_be_made_keeps_nothing_open(option: str, tmp_path: Path) -> None:
    """Also while somebody looks at what was raised, which knows the frame that had it open."""
    options: dict[str, Any] = {option: str(tmp_path / "nowhere" / "at all")}
    with pytest.raises(UserError) as refused:
        Nvme(image=f"{tmp_path / 'disk.img'}:1M", **options)
    descriptors = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    names = [str(path.readlink()) for path in descriptors]
    assert not [name for name in names if name.startswith(str(tmp_path))]
    assert refused.value
