"""Which guest-driven tests a run chooses."""

import pytest

from vfio_user.cli.test_e2e import filters


@pytest.mark.parametrize(
    ("tags", "chosen"),
    [
        ((), ["-nightly"]),
        (("irq",), ["irq,-nightly"]),
        (("irq", "dma,msix"), ["irq,-nightly", "dma,msix,-nightly"]),
        (("nightly",), ["nightly"]),
        (("nvme,nightly",), ["nvme,nightly"]),
    ],
)
def test_nightly_tests_are_left_out_unless_they_are_asked_for(tags: tuple[str, ...], chosen: list[str]) -> None:
    assert filters(tags, everything=False) == chosen


def test_a_night_leaves_nothing_out() -> None:
    assert filters((), everything=True) == []
    assert filters(("irq",), everything=True) == ["irq"]
