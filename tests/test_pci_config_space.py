"""Configuration space: who may change which bit, by accesses of any shape."""

from __future__ import annotations

import pytest

from tests.cases import for_each
from vfio_user.pci import ConfigSpace, Field


@pytest.fixture
def config() -> ConfigSpace:
    config = ConfigSpace(256)
    config.define(
        0x10,
        [
            Field(0, 4, 0x11223344),
            Field(4, 2, 0x00F0, writable=0x0FFF),
            Field(6, 2, 0xA5A5, rw1c=0xFF00),
            Field(8, 1, 0x00, writable=0xFF),
        ],
    )
    return config


def test_a_read_only_register_keeps_its_value(config: ConfigSpace) -> None:
    config.write(0x10, b"\xff\xff\xff\xff")
    assert config.read(0x10, 4) == b"\x44\x33\x22\x11"


def test_only_writable_bits_take_what_is_written(config: ConfigSpace) -> None:
    config.write(0x14, b"\x5a\xff")
    assert config.get(0x14, 2) == 0x0F5A


def test_a_one_clears_an_rw1c_bit_and_a_zero_leaves_it(config: ConfigSpace) -> None:
    config.write(0x16, b"\xff\x21")
    assert config.get(0x16, 2) == 0x84A5


def test_one_write_over_several_registers_treats_each_by_its_own_rules(config: ConfigSpace) -> None:
    config.write(0x12, b"\0\0" + b"\x00\x0c" + b"\x00\x80" + b"\x99")
    assert config.read(0x10, 9) == b"\x44\x33\x22\x11" + b"\x00\x0c" + b"\xa5\x25" + b"\x99"


def test_a_single_byte_of_a_register_leaves_the_others_alone(config: ConfigSpace) -> None:
    config.write(0x15, b"\x0e")
    assert config.get(0x14, 2) == 0x0EF0


def test_a_watcher_sees_old_and_new_value_of_each_write_that_touches_it(config: ConfigSpace) -> None:
    seen: list[tuple[int, int]] = []
    config.watch(0x14, 2, lambda old, new: seen.append((old, new)))
    config.write(0x15, b"\x01")
    config.write(0x10, b"\0\0\0\0")
    config.write(0x13, b"\0\x55")
    assert seen == [(0x00F0, 0x01F0), (0x01F0, 0x0155)]


def test_reset_brings_back_the_defined_values(config: ConfigSpace) -> None:
    before = config.read(0, 256)
    config.write(0x10, b"\xff" * 16)
    assert config.read(0, 256) != before
    config.reset()
    assert config.read(0, 256) == before


def test_what_is_saved_is_what_software_can_have_changed_and_loads_back(config: ConfigSpace) -> None:
    config.write(0x14, b"\x34\x02")
    config.write(0x16, b"\x00\x21")
    saved, image = config.save(), config.read(0, 256)
    assert saved[0x10:0x14] == bytes(4)
    config.reset()
    config.load(saved)
    assert config.read(0, 256) == image


def test_loading_cannot_change_read_only_bits(config: ConfigSpace) -> None:
    config.load(b"\xff" * 256)
    assert config.get(0x10, 4) == 0x11223344
    assert config.get(0x14, 2) == 0x0FFF


@for_each(range(0x3C, 0x46), [1, 2, 4])
def test_a_register_hears_of_each_write_that_touches_it_and_of_none_beside_it(offset: int, size: int) -> None:
    config, told = ConfigSpace(), list[tuple[int, int]]()
    config.watch(0x40, 4, lambda old, new: told.append((old, new)))
    config.write(offset, bytes(size))
    touched = bool(set(range(offset, offset + size)) & set(range(0x40, 0x44)))
    assert told == [(0, 0)] * touched
