"""Translations of a front-end's IOTLB: what is kept, what is asked for, and what takes them back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cases import for_each
from tests.test_vhost_memory import MIB, USER, memfd
from userdev.errors import ProtocolError
from vhost_user.memory import Iotlb, IotlbMiss, MemoryTable, Permission
from vhost_user.memory import iotlb as iotlbs
from vhost_user.wire.payloads import IotlbMessage, IotlbType, Region


class Translated:
    """A table of two regions that are next to each other for the guest, and an IOTLB over it."""

    def __init__(self, fds: tuple[int, int]) -> None:
        self.table = MemoryTable()
        self.table.set([Region(0, MIB, USER, 0), Region(MIB, MIB, USER + 4 * MIB, 0)], fds)
        self.iotlb = Iotlb(self.table)

    def update(self, iova: int, size: int, user: int, permissions: int = 3) -> None:
        self.iotlb.handle(IotlbMessage(iova, size, user, permissions, IotlbType.UPDATE))

    def invalidate(self, iova: int, size: int) -> None:
        self.iotlb.handle(IotlbMessage(iova, size, 0, 0, IotlbType.INVALIDATE))


@pytest.fixture
def translated() -> Iterator[Translated]:
    with memfd(MIB) as one, memfd(MIB) as two:
        made = Translated((one, two))
        yield made
        made.table.clear()


def test_an_address_is_translated_by_the_front_ends_own(translated: Translated) -> None:
    translated.update(0x10000, 0x1000, USER + 0x3000)
    translated.update(0x11000, 0x1000, USER + 4 * MIB)
    assert translated.iotlb.translate(0x10FF0, 0x20, Permission.READ) == [(0x3FF0, 0x10), (MIB, 0x10)]


@pytest.mark.parametrize(
    ("iova", "size", "permission", "missing"),
    [
        (0xFFFF, 1, Permission.READ, 0xFFFF),
        (0x11000, 1, Permission.READ, 0x11000),
        (0x10FFF, 2, Permission.READ, 0x11000),
        (0x10000, 1, Permission.WRITE, 0x10000),
    ],
)
def test_what_is_not_known_is_a_question_to_the_front_end(
    translated: Translated, iova: int, size: int, permission: Permission, missing: int
) -> None:
    translated.update(0x10000, 0x1000, USER, Permission.READ)
    with pytest.raises(IotlbMiss) as caught:
        translated.iotlb.translate(iova, size, permission)
    assert caught.value.message == IotlbMessage(missing, 0, 0, permission, IotlbType.MISS)


@for_each([1, 2, 3], [1, 2, 3])
def test_a_translation_is_good_for_all_that_it_allows_together_and_for_no_more(
    allowed: int, wanted: int, translated: Translated
) -> None:
    translated.update(0x10000, 0x1000, USER, allowed)
    if wanted & allowed == wanted:
        assert translated.iotlb.translate(0x10000, 0x1000, Permission(wanted)) == [(0, 0x1000)]
    else:
        with pytest.raises(IotlbMiss):
            translated.iotlb.translate(0x10000, 1, Permission(wanted))


@pytest.mark.parametrize(("iova", "size"), [(0x10000, 0x3000), (0x11FFF, 1), (0, 0x20000), (0x10800, 0x1000)])
def test_an_invalidated_translation_is_asked_for_again(translated: Translated, iova: int, size: int) -> None:
    translated.update(0x10000, 0x3000, USER)
    translated.update(0x40000, 0x1000, USER)
    generation = translated.table.generation
    translated.invalidate(iova, size)
    assert translated.table.generation > generation
    with pytest.raises(IotlbMiss):
        translated.iotlb.translate(max(iova, 0x10000), 1, Permission.READ)
    assert len(translated.iotlb) == 1


def test_an_invalidation_leaves_the_neighbours(translated: Translated) -> None:
    for page in range(4):
        translated.update(page << 12, 0x1000, USER + (page << 12))
    translated.invalidate(0x1000, 0x2000)
    assert len(translated.iotlb) == 2
    assert translated.iotlb.translate(0xFFF, 1, Permission.READ) == [(0xFFF, 1)]
    assert translated.iotlb.translate(0x3000, 1, Permission.READ) == [(0x3000, 1)]


@pytest.mark.pure
def test_there_are_so_many_translations_at_most(translated: Translated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhost_user.memory.iotlb.MAX_ENTRIES", 4)
    for page in range(10):
        translated.update(page << 12, 0x1000, USER + (page << 12))
        assert 0 < len(translated.iotlb) <= 4, page
        assert translated.iotlb.translate(page << 12, 1, Permission.READ)


def test_an_update_takes_the_place_of_what_it_overlaps(translated: Translated) -> None:
    translated.update(0, 0x4000, USER)
    translated.update(0x1000, 0x1000, USER + 0x8000)
    assert translated.iotlb.translate(0x1000, 1, Permission.READ) == [(0x8000, 1)]


@for_each(
    [
        IotlbMessage(0, 0x1000, USER - 1, 3, IotlbType.UPDATE),
        IotlbMessage(0, 0x1000, USER + MIB - 1, 3, IotlbType.UPDATE),
        IotlbMessage(0, 0, USER, 3, IotlbType.UPDATE),
        IotlbMessage(0, 0x1000, USER, 0, IotlbType.UPDATE),
        IotlbMessage(0, 0x1000, USER, 4, IotlbType.UPDATE),
        IotlbMessage((1 << 64) - 1, 0x1000, USER, 3, IotlbType.UPDATE),
        IotlbMessage((1 << 64) - 1, 2, 0, 0, IotlbType.INVALIDATE),
        IotlbMessage(0, 0x1000, USER, 3, IotlbType.MISS),
        IotlbMessage(0, 0x1000, USER, 3, 77),
    ]
)
def test_a_wrong_iotlb_message_is_refused(message: IotlbMessage, translated: Translated) -> None:
    with pytest.raises(ProtocolError):
        translated.iotlb.handle(message)
    assert len(translated.iotlb) == 0


def test_a_ring_is_seen_whole_where_its_memory_is_in_one_piece(translated: Translated) -> None:
    for page in range(3):
        translated.update(0x10000 + (page << 12), 0x1000, USER + (page << 12))
    translated.update(0x13000, 0x1000, USER + 0x8000)
    translated.iotlb.view(0x10100, 0x2000, Permission.WRITE)[:2] = b"ok"
    assert bytes(translated.table.view(0x100, 2)) == b"ok"
    with pytest.raises(ProtocolError):
        translated.iotlb.view(0x12800, 0x1000, Permission.READ)


def test_a_translation_into_memory_that_is_gone_is_the_front_ends_mistake(translated: Translated) -> None:
    translated.update(0, 0x1000, USER)
    translated.table.clear()
    with pytest.raises(ProtocolError):
        translated.iotlb.translate(0, 1, Permission.READ)


def test_a_translation_may_end_where_all_addresses_do(translated: Translated) -> None:
    last = (1 << 64) - 0x1000
    translated.update(last, 0x1000, USER)
    assert translated.iotlb.translate(last, 0x1000, Permission.READ) == [(0, 0x1000)]
    translated.invalidate(last, 0x1000)
    assert len(translated.iotlb) == 0


def test_one_that_comes_where_there_is_no_more_room_takes_all_others_away_and_is_said_to(
    translated: Translated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever uses them is waited for before."""
    monkeypatch.setattr(iotlbs, "MAX_ENTRIES", 2)
    for number, kept in ((0, 1), (1, 2), (2, 1), (3, 2)):
        before = len(translated.iotlb)
        message = IotlbMessage(number << 16, 0x1000, USER, 3, IotlbType.UPDATE)
        forgets = translated.iotlb.would_forget(message)
        translated.iotlb.handle(message)
        assert len(translated.iotlb) == kept
        assert forgets is (kept != before + 1), number
