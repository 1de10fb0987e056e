"""The interposer's model of a session: what a new server would be told in the old one's place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tests.cases import for_each
from tests.interposer_bench import Bench, dma_map, read, request, write
from userdev.transport import close_all
from vfio_user.interposer import session_model
from vfio_user.interposer.restore import irq_messages
from vfio_user.interposer.session_model import MAX_INDEXES, SessionModel
from vfio_user.interposer.unmapped import UnmappedMemory
from vfio_user.testing import memory_file
from vfio_user.wire import DRAFT_V6, Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import (
    MOST_VECTORS,
    Feature,
    FeatureFlags,
    IrqIndex,
    IrqSetFlags,
    MigrationState,
    RegionIndex,
    UnmapFlags,
)

CONFIG = RegionIndex.CONFIG
DEVICE_CONTROL = 0x48
FLR = 0x8000


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        bench.negotiate()
        yield bench


@pytest.fixture
def model(bench: Bench) -> SessionModel:
    return bench.session.model


def set_irqs(
    bench: Bench, flags: IrqSetFlags, start: int, count: int, fds: list[int] | None = None, bools: bytes = b""
) -> None:
    payload = at.IRQ_SET.pack(at.IRQ_SET.size, flags, IrqIndex.MSIX, start, count)
    bench.exchange(request(Command.SET_IRQS, payload + bools, fds=fds))


def unmap(bench: Bench, iova: int, size: int, flags: int = 0) -> None:
    bench.exchange(request(Command.DMA_UNMAP, at.DMA_UNMAP.pack(at.DMA_UNMAP.size, flags, iova, size)))


def test_memory_that_is_unmapped_is_forgotten(bench: Bench, model: SessionModel) -> None:
    for page in range(4):
        bench.exchange(dma_map(page << 12, 4096))
    unmap(bench, 0x1000, 0x1000)
    assert [mapping.iova for mapping in model.maps] == [0, 0x2000, 0x3000]
    assert model.mapping(0x1800) is None
    unmap(bench, 0x2000, 0x2000)
    assert [mapping.iova for mapping in model.maps] == [0]
    bench.exchange(dma_map(0x7000, 4096))
    unmap(bench, 0, 0, UnmapFlags.ALL)
    assert not model.maps


def test_a_migration_state_is_learnt_where_it_was_set_or_told(bench: Bench, model: SessionModel) -> None:
    """Not by a probe, which asks whether that can be, nor where it was refused."""
    kind, state = int(Feature.MIG_DEVICE_STATE), at.DEVICE_STATE.pack(MigrationState.STOP, 0)

    def said(flags: int, *, asked: bytes = state, told: bytes = b"", errno: int = 0) -> tuple[MigrationState, bool]:
        message = request(Command.DEVICE_FEATURE, at.FEATURE.pack(at.FEATURE.size + 8, kind | flags, tail=asked))
        bench.exchange(message, at.FEATURE.pack(at.FEATURE.size + 8, kind | flags, tail=told), errno)
        return model.migration_state, model.client_migrates

    running, stopped = MigrationState.RUNNING, MigrationState.STOP
    assert said(FeatureFlags.PROBE | FeatureFlags.SET) == (running, False)
    assert said(FeatureFlags.PROBE | FeatureFlags.GET, told=state) == (running, False)
    assert said(FeatureFlags.PROBE, asked=b"") == (running, False)
    assert said(FeatureFlags.SET, errno=22) == (running, False)
    assert said(FeatureFlags.SET) == (stopped, True)
    assert said(FeatureFlags.GET, told=at.DEVICE_STATE.pack(running, 0)) == (running, True)


def test_masks_are_known(bench: Bench, model: SessionModel) -> None:
    set_irqs(bench, IrqSetFlags.MASK | IrqSetFlags.DATA_NONE, 1, 3)
    set_irqs(bench, IrqSetFlags.UNMASK | IrqSetFlags.DATA_NONE, 2, 1)
    assert model.irqs[IrqIndex.MSIX].masked == {1, 3}


def test_a_vector_that_a_table_of_booleans_leaves_out_keeps_its_mask(bench: Bench, model: SessionModel) -> None:
    set_irqs(bench, IrqSetFlags.MASK | IrqSetFlags.DATA_BOOL, 0, 4, bools=bytes([0, 1, 0, 1]))
    assert model.irqs[IrqIndex.MSIX].masked == {1, 3}
    set_irqs(bench, IrqSetFlags.UNMASK | IrqSetFlags.DATA_BOOL, 1, 3, bools=bytes([0, 0, 1]))
    assert model.irqs[IrqIndex.MSIX].masked == {1}


def test_descriptors_do_not_mask(bench: Bench, model: SessionModel) -> None:
    set_irqs(bench, IrqSetFlags.MASK | IrqSetFlags.DATA_EVENTFD, 0, 4)
    set_irqs(bench, IrqSetFlags.MASK | IrqSetFlags.DATA_NONE, 2, 1)
    set_irqs(bench, IrqSetFlags.UNMASK | IrqSetFlags.DATA_EVENTFD, 0, 4)
    assert model.irqs[IrqIndex.MSIX].masked == {2}


def test_a_vector_without_a_descriptor_of_its_own_has_none(bench: Bench, model: SessionModel) -> None:
    events = [os.eventfd(0) for _ in range(3)]
    set_irqs(bench, IrqSetFlags.TRIGGER | IrqSetFlags.DATA_EVENTFD, 0, 3, events)
    set_irqs(bench, IrqSetFlags.TRIGGER | IrqSetFlags.DATA_EVENTFD, 1, 2, events[:1])
    for event in events:
        os.close(event)
    assert sorted(model.irqs[IrqIndex.MSIX].eventfds) == [0, 1]


def test_a_new_server_is_told_of_exactly_what_was_masked(bench: Bench, model: SessionModel) -> None:
    set_irqs(bench, IrqSetFlags.MASK | IrqSetFlags.DATA_BOOL, 0, 6, bools=bytes([1, 1, 0, 0, 0, 1]))
    told = [(*at.IRQ_SET.unpack(payload), fds) for payload, fds in irq_messages(model, fds_each=1)]
    head = at.IRQ_SET.size, IrqSetFlags.DATA_NONE | IrqSetFlags.MASK, IrqIndex.MSIX
    assert told == [(*head, 0, 2, []), (*head, 5, 1, [])]


def test_a_new_server_is_told_of_each_eventfd_in_as_few_messages_as_may_be(bench: Bench, model: SessionModel) -> None:
    vectors = [1, 2, 3, 6, 7, 9]
    events = [os.eventfd(0) for _ in range(2 * len(vectors))]
    for event, vector in zip(events, [*vectors, *vectors], strict=True):
        action = IrqSetFlags.TRIGGER if event in events[: len(vectors)] else IrqSetFlags.UNMASK
        set_irqs(bench, action | IrqSetFlags.DATA_EVENTFD, vector, 1, [event])
    close_all(events)
    irqs = model.irqs[IrqIndex.MSIX]
    for most, runs in {
        1: [[1], [2], [3], [6], [7], [9]],
        2: [[1, 2], [3], [6, 7], [9]],
        3: [[1, 2, 3], [6, 7], [9]],
        16: [[1, 2, 3], [6, 7], [9]],
    }.items():
        wanted = [
            (action | IrqSetFlags.DATA_EVENTFD, IrqIndex.MSIX, run[0], len(run), [kept[vector] for vector in run])
            for action, kept in ((IrqSetFlags.TRIGGER, irqs.eventfds), (IrqSetFlags.UNMASK, irqs.unmask))
            for run in runs
        ]
        assert [(*at.IRQ_SET.unpack(payload)[1:], fds) for payload, fds in irq_messages(model, most)] == wanted, most


def test_eventfds_are_known_until_the_index_is_disabled(bench: Bench, model: SessionModel) -> None:
    events = [os.eventfd(0) for _ in range(3)]
    set_irqs(bench, IrqSetFlags.TRIGGER | IrqSetFlags.DATA_EVENTFD, 4, 3, events)
    for event in events:
        os.close(event)
    irqs = model.irqs[IrqIndex.MSIX]
    assert sorted(irqs.eventfds) == [4, 5, 6]
    set_irqs(bench, IrqSetFlags.TRIGGER | IrqSetFlags.DATA_EVENTFD, 5, 1)
    assert sorted(irqs.eventfds) == [4, 6]
    set_irqs(bench, IrqSetFlags.TRIGGER | IrqSetFlags.DATA_NONE, 0, 0)
    assert not irqs.eventfds
    assert len(model.fds) == 0


def test_an_index_that_is_disabled_has_no_masks(bench: Bench, model: SessionModel) -> None:
    """A new server would be told to mask what nobody has masked since."""
    set_irqs(bench, IrqSetFlags.MASK | IrqSetFlags.DATA_NONE, 0, 2)
    set_irqs(bench, IrqSetFlags.TRIGGER | IrqSetFlags.DATA_NONE, 0, 0)
    assert [irqs.masked for irqs in model.irqs.values()] == [set()]


def test_a_socket_is_not_kept_as_it_may_be_the_clients_own_end(bench: Bench, model: SessionModel) -> None:
    here, there = socket.socketpair()
    set_irqs(bench, IrqSetFlags.TRIGGER | IrqSetFlags.DATA_EVENTFD, 0, 1, [there.fileno()])
    there.close()
    here.settimeout(60)
    assert here.recv(1) == b""
    assert len(model.fds) == 0
    assert model.incomplete.startswith("DEVICE_SET_IRQS")
    here.close()


def test_the_last_write_of_each_place_is_restored_in_order(bench: Bench, model: SessionModel) -> None:
    for offset, data in ((0x10, b"\xff\xff\xff\xff"), (4, b"\x02\x00"), (0x10, b"\x00\x00\xbf\xfe")):
        bench.exchange(write(CONFIG, offset, data))
    assert list(model.config_to_restore()) == [(4, b"\x02\x00"), (0x10, b"\x00\x00\xbf\xfe")]


def test_a_write_that_a_later_one_covers_is_not_restored(bench: Bench, model: SessionModel) -> None:
    """A client may write any piece of it in any size: kept is what has an effect still."""
    for offset, data in ((0x10, b"1"), (0x11, b"22"), (0x13, b"3"), (0x0F, b"4444"), (0x12, b"55"), (0x0E, b"6")):
        bench.exchange(write(CONFIG, offset, data))
    assert list(model.config_to_restore()) == [(0x0F, b"4444"), (0x12, b"55"), (0x0E, b"6")]
    for offset in range(200):
        for size in (1, 2, 3, 100, 1000):
            model.exchanged(write(CONFIG, offset, bytes(size), posted=True), None)
    assert len(model.config_writes) <= 400
    model.exchanged(write(CONFIG, 0, bytes(4096), posted=True), None)
    assert list(model.config_writes) == [(0, 4096)]


def test_more_writes_than_a_config_space_has_bytes_are_too_many_for_another_server(
    model: SessionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reaches into the one before, so that none has lost its effect."""
    monkeypatch.setattr(session_model, "MAX_CONFIG_WRITES", 100)
    for round_ in range(3):
        for offset in range(100):
            model.exchanged(write(CONFIG, offset, bytes([round_, 1]), posted=True), None)
    assert (len(model.config_writes), model.incomplete) == (100, "")
    for offset in range(100, 300):
        model.exchanged(write(CONFIG, offset, b"ab", posted=True), None)
    assert len(model.config_writes) == 100
    assert model.incomplete.startswith("REGION_WRITE: ")


@pytest.mark.parametrize(
    "action", [IrqSetFlags.MASK, IrqSetFlags.UNMASK, IrqSetFlags.TRIGGER], ids=lambda flag: flag.name
)
@pytest.mark.parametrize(
    "data", [IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD], ids=lambda flag: flag.name
)
def test_posted_requests_for_interrupts_that_there_are_not_fill_nothing(
    model: SessionModel, action: IrqSetFlags, data: IrqSetFlags
) -> None:
    """Nobody says that they were refused: whoever follows a session must not keep whatever they name."""
    for index in [*range(5), 5, 1000, (1 << 32) - 1]:
        for start in (0, MOST_VECTORS - 1, MOST_VECTORS, 1 << 20, (1 << 32) - 1):
            payload = at.IRQ_SET.pack(at.IRQ_SET.size, action | data, index, start, 2)
            model.exchanged(request(Command.SET_IRQS, payload + bytes([1, 1]), posted=True), None)
    assert len(model.irqs) <= MAX_INDEXES
    assert max(model.irqs, default=0) < MAX_INDEXES
    for irqs in model.irqs.values():
        assert irqs.masked <= {0, 1, MOST_VECTORS - 1}
        assert len(irqs.masked) == (3 if action is IrqSetFlags.MASK and data is not IrqSetFlags.DATA_EVENTFD else 0)


def test_a_function_level_reset_is_not_asked_for_again(bench: Bench, model: SessionModel) -> None:
    space = bytearray(256)
    space[0x34], space[0x40] = 0x40, 0x10
    bench.exchange(read(CONFIG, 0, 256), at.REGION_ACCESS.pack(0, CONFIG, 256, tail=bytes(space)))
    bench.exchange(write(CONFIG, DEVICE_CONTROL, (FLR | 0x2810).to_bytes(2, "little")))
    assert list(model.config_to_restore()) == [(DEVICE_CONTROL, (0x2810).to_bytes(2, "little"))]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_however_a_client_writes_the_bit_of_a_reset_it_is_not_written_again(
    bench: Bench, model: SessionModel, before: int, size: int
) -> None:
    """The other bytes are: a byte of Device Control, all of it, or what is around it too."""
    space = bytearray(256)
    space[0x34], space[0x40] = 0x40, 0x10
    bench.exchange(read(CONFIG, 0, 256), at.REGION_ACCESS.pack(0, CONFIG, 256, tail=bytes(space)))
    offset, written = DEVICE_CONTROL + 1 - before, bytes([0xFF]) * size
    bench.exchange(write(CONFIG, offset, written))
    there = {offset + place: byte for offset, data in model.config_to_restore() for place, byte in enumerate(data)}
    flr = {DEVICE_CONTROL + 1: 0x7F} if before < size else {}
    assert there == {**{offset + place: 0xFF for place in range(size)}, **flr}


@for_each([True, False])
def test_the_drafts_tables_unmap_whether_or_not_they_ask_for_bitmaps(bitmaps: bool) -> None:
    model = SessionModel(DRAFT_V6)
    table = b"".join(at.DMA_ENTRY_V6.pack(page << 12, 4096, 0, 3, 0) for page in range(4))
    model.exchanged(Message(0, DRAFT_V6.number(Command.DMA_MAP), payload=table), None)
    entries = [at.DMA_ENTRY_V6.pack(page << 12, 4096, 0, 0, int(bitmaps)) for page in (1, 3)]
    bitmap = at.BITMAP_V6.pack(4096, 8, 0) if bitmaps else b""
    model.exchanged(
        Message(1, DRAFT_V6.number(Command.DMA_UNMAP), payload=b"".join(entry + bitmap for entry in entries)), None
    )
    assert [mapping.iova for mapping in model.maps] == [0, 0x2000]
    model.close()


def test_what_is_left_of_memory_that_is_unmapped_in_part_is_known(bench: Bench, model: SessionModel) -> None:
    """The draft allows it: a new server would be given all of it again."""
    memory = memory_file(0x4000)
    bench.exchange(dma_map(0x10000, 0x4000, memory))
    model.unmapped = UnmappedMemory()
    for iova, size in ((0x11000, 0x1000), (0x13800, 0x8000), (0x12000, 0)):
        unmap(bench, iova, size)
    os.close(memory)
    assert [(one.iova, one.size, one.offset) for one in model.maps] == [(0x10000, 0x1000, 0), (0x12000, 0x1800, 0x2000)]
    assert sorted((gone.offset, gone.size) for gone in model.unmapped) == [(0x1000, 0x1000), (0x3800, 0x800)]
    assert len({one.fd for one in model.maps}) == len(model.fds) == 1
    unmap(bench, 0x10000, 0x4000)
    assert (list(model.maps), len(model.fds)) == ([], 0)
