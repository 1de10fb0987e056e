"""Translations that are missing: whom they are asked of, and who goes on when one has come."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.cases import for_each_row
from vhost_user.backend.misses import Misses
from vhost_user.memory import IotlbMiss, Permission
from vhost_user.wire.payloads import IotlbMessage, IotlbType


class Waiting:
    """A ring that waits."""

    pending = False
    why = ""

    def break_down(self, why: str) -> None:
        self.why = why


def test_what_is_asked_for_again_on_another_channel_is_answered_to_whoever_waits_for_it() -> None:
    """And what was answered on the first is not asked for again."""
    asked: list[tuple[IotlbMessage, Callable[[int], None]]] = []
    misses = Misses(lambda wanted, answered: asked.append((wanted, answered)))
    has_one, goes_on, breaks = rings = Waiting(), Waiting(), Waiting()
    wanted = [IotlbMiss(0x1000 * number, Permission.READ) for number in (1, 2, 3)]
    for ring, miss in zip(rings, wanted, strict=True):
        misses.wait(ring, miss)
    asked.pop(0)[1](0)
    assert has_one.pending
    asked.clear()
    misses.ask_again()
    assert [message for message, _ in asked] == [miss.message for miss in wanted[1:]]
    for (_, answered), error in zip(asked, (0, errno.EIO), strict=True):
        answered(error)
    assert (goes_on.pending, goes_on.why) == (True, "")
    assert not breaks.pending
    assert breaks.why


@for_each_row(
    [
        (0x5000, 0x1000, True),
        (0x4000, 0x4000, True),
        (0, 1 << 32, True),
        (0x4000, 0x1000, False),
        (0x6000, 0x1000, False),
    ]
)
def test_a_ring_that_waits_for_an_address_tries_again_when_a_translation_has_it(
    iova: int, size: int, goes_on: bool
) -> None:
    """Front-ends tell of more than was asked for: QEMU of a whole page of the guest's, however large that is."""
    misses, ring = Misses(lambda wanted, answered: None), Waiting()
    misses.wait(ring, IotlbMiss(0x5000, Permission.READ))
    misses.updated(IotlbMessage(iova, size, 0x100000, Permission.READ, IotlbType.UPDATE))
    assert (ring.pending, ring.why) == (goes_on, "")
