"""Rings of every kind with every combination of what can be negotiated do at each step what a model of them says."""

from __future__ import annotations

from itertools import product

import pytest

from tests.vhost.both import BOTH
from tests.vhost.walking import Walk
from tests.vhost_kit import AnyDriver, F, PackedDriver

OPTIONS = (F.INDIRECT_DESC, F.EVENT_IDX, F.IN_ORDER)


@pytest.mark.pure
@BOTH
@pytest.mark.parametrize("tracked", [False, True], ids=["alone", "in-flight"])
def test_a_ring_walks_with_its_model(kind: type[AnyDriver], tracked: bool) -> None:
    for seed, chosen in enumerate(product((False, True), repeat=len(OPTIONS) + 1)):
        *has, behind = chosen
        features = F.VERSION_1
        for feature, on in zip(OPTIONS, has, strict=True):
            features |= feature if on else F(0)
        for size, start in ((4, 6), (8, 0)) if kind is PackedDriver else ((4, 0xFFFE), (8, 0xFFF0)):
            try:
                Walk(kind, features, size, start, seed, tracked=tracked, behind=behind).go()
            except Exception as error:
                raise AssertionError(f"{features!r}, behind an IOMMU: {behind}, size {size}, seed {seed}") from error
