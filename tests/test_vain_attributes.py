"""What is in a device's class or set by its constructor, and nobody uses, is told to its author."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.test_device_class_check import FIRST, make
from userdev.declare.class_check import OpenHook
from userdev.declare.unused import UnusedAttribute
from vfio_user import (
    PciDevice,
    PciIds,
)
from vhost_user.device import Chain, Queues, VhostDevice, queue

SLIPS = {
    "migratble = False": "migratable",
    "migrateable = True": "migratable",
    "state_versoin = 2": "state_version",
    "dma_by_messages = 1": "dma_by_message",
    "@property\ndef one(self):\n    return 1\nmigratble = False": "migratable",
}
MEANT = (
    "migratable = True\nmigratble = False",
    "migratble = False\ndef own(self):\n    return self.migratble",
    "migratble = False\ndef own(self):\n    return [each for each in (1,) if self.migratble]",
    "migratble = False\n@property\ndef own(self):\n    return D.migratble",
    "migratble = 1\n@register(bar=0, offset=8, width=4)\ndef own(self, value: int) -> None:\n    print(self.migratble)",
    "state_versions = 2\nother = state_versions + 1",
    "bar = 0\nMIGRATABLE = False\n_migratble = False\nmigratble = 'no'\nram = 4096",
)


OPEN = {
    "def on_irq_mask(self, *args): ...": True,
    "def on_irq_mask(*args): print(args)": True,
    "def on_reset(self, *_: object) -> None: ...": True,
    "def on_reset(self, kind, *more): ...": False,
    "def on_reset(self, *args): super().on_reset(*args)": False,
    "def on_resume(*_): ...": False,
    "def wrapper(*args): ...\non_reset = wrapper": False,
    "def own(self, *args): ...": False,
}


@for_each_row(OPEN.items())
def test_a_hook_that_takes_whatever_comes_is_told_what_it_is_called_with(
    body: str, is_told: bool, tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make(body, tmp_path)
    assert [(each.category, each.filename, each.lineno) for each in told] == [
        (OpenHook, str(tmp_path / "nic.py"), FIRST)
    ] * is_told
    assert all("every device has on_" in str(each.message) for each in told)


@for_each_row(SLIPS.items())
def test_an_attribute_that_nobody_uses_and_that_is_called_nearly_as_one_of_every_device_is_told(
    body: str, meant: str, tmp_path: Path
) -> None:
    with pytest.warns(UnusedAttribute, match=rf"^D\.\w+ is .* did you mean {meant}") as told:
        make(body, tmp_path)
    [warning] = told
    assert warning.filename == str(tmp_path / "nic.py")
    assert warning.lineno == FIRST + body.count("\n")


@for_each(MEANT)
def test_an_attribute_of_an_authors_own_is_left_to_him(body: str, tmp_path: Path) -> None:
    """One that is used, that is beside the one of every device, or that could not be that."""
    make(body, tmp_path)


def test_an_attribute_that_a_base_uses_is_its_authors_own() -> None:
    class Asks(PciDevice):
        ids = PciIds(1, 2)

        def answer(self) -> bool:
            return bool(getattr(self, "on", False) or self.migratble)  # type: ignore[attr-defined]

    class Answers(Asks):
        migratble = False

    assert not Answers().answer()


def test_what_a_constructor_sets_in_vain_is_told_once_with_its_line() -> None:
    class Rng(VhostDevice):
        virtio_id = 4
        queues = Queues(1)

        def __init__(self) -> None:
            super().__init__()
            self.feature = 1 << 9
            self.virtio_ids = 5
            self.virtio_ids += 1

        @queue(0)
        def take(self, chain: Chain) -> int:
            return 0

    class Nic(PciDevice):
        ids = PciIds(1, 2)

        def __init__(self) -> None:
            self.migratble = False
            self.state_versions = 1
            self._migratble = False
            super().__init__()

        def own(self) -> int:
            return self.state_versions

    cases: tuple[tuple[type, str, str, int], ...] = (
        (Rng, "feature", "features", 2),
        (Nic, "migratble", "migratable", 1),
    )
    for kind, name, meant, below in cases:
        with pytest.warns(UnusedAttribute) as told:
            kind()
        [warning] = told
        assert f"{name} is used by nothing: did you mean {meant}" in str(warning.message)
        constructor: Any = inspect.unwrap(vars(kind)["__init__"])
        assert (warning.filename, warning.lineno) == (__file__, constructor.__code__.co_firstlineno + below)
        kind()  # once is enough


def test_it_is_told_of_a_virtio_device_too() -> None:
    with pytest.warns(UnusedAttribute, match="did you mean features"):

        class Slips(VhostDevice):
            virtio_id = 4
            queues = Queues(1)
            feature = 1 << 9

            @queue(0)
            def take(self, chain: Chain) -> int:
                return 0
