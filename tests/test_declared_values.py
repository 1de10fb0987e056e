"""The encoding of saved values: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each
from userdev.declare import values
from userdev.declare.values import MAX_DEPTH, decode, encode
from userdev.errors import ProtocolError

SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False)
KEYS = st.text() | st.integers(-(1 << 64) + 1, (1 << 64) - 1) | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all through: 1, 1.0 and True are three values."""
    return repr(one) == repr(other)


@given(VALUES)
def test_what_is_encoded_is_decoded_and_every_cut_of_it_refused(value: Any) -> None:
    data = encode(value)
    assert same(decode(data), value)
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:end])


@for_each([0, -1, 127, 128, -128, 1 << 63, -(1 << 200), True, 1.5, b"", "", [], (), {}])
def test_borders_are_decoded(value: Any) -> None:
    assert same(decode(encode(value)), value)


@given(VALUES, st.binary(min_size=1))
def test_what_follows_is_refused(value: Any, more: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(encode(value) + more)


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_the_protocol_error(data: bytes) -> None:
    try:
        value = decode(data)
    except ProtocolError:
        return
    assert same(decode(encode(value)), value)


@for_each(
    [
        b"i\x82\x08" + bytes(1026),
        b"?",
        b"s\xff\xff\xff\xff\x07",
        b"l\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"d\x01l\x00n",
        b"d\x02nnnn",
    ],
    ids=[
        "an int with more bytes than any has",
        "unknown tag",
        "length beyond the input",
        "length without end",
        "a list as key",
        "a key twice",
    ],
)
def test_malformed_values_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bounds that are reached in milliseconds."""
    monkeypatch.setattr(values, "MAX_ITEMS", 1 << 16)
    monkeypatch.setattr(values, "MAX_SIZE", 1 << 20)
    monkeypatch.setattr(values, "MAX_TUPLE_KEYS", 1 << 10)


TOO_LARGE: dict[str, Callable[[], Any]] = {
    "an int of thousands of digits": lambda: 1 << values.MAX_BITS,
    "one below zero": lambda: -1 << values.MAX_BITS,
    "items in one list": lambda: [None] * (values.MAX_ITEMS + 1),
    "items in many lists": lambda: [[None] * 100] * (values.MAX_ITEMS // 100),
    "items of dicts": lambda: [dict.fromkeys(range(1000))] * (values.MAX_ITEMS // 2000 + 1),
    "bytes": lambda: bytes(values.MAX_SIZE + 1),
    "bytes in all": lambda: [bytes(values.MAX_SIZE // 4)] * 4,
    "keys that all have one hash": lambda: {number * ((1 << 61) - 1): None for number in range(32)},
    "tuples as keys": lambda: {(number,): None for number in range(values.MAX_TUPLE_KEYS + 1)},
}


@pytest.mark.usefixtures("small")
@for_each(TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_too_large_is_refused_both_ways(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    value = make()
    with pytest.raises(TypeError):
        encode(value)
    with monkeypatch.context() as unbounded:
        for bound in ("MAX_BITS", "MAX_ITEMS", "MAX_SIZE", "MAX_KEY_BITS", "MAX_TUPLE_KEYS"):
            unbounded.setattr(values, bound, 1 << 40)
        data = encode(value)
    with pytest.raises(ProtocolError):
        decode(data)


@pytest.mark.usefixtures("small")
def test_what_just_fits_is_taken() -> None:
    for value in (
        (1 << values.MAX_BITS) - 1,
        1 - (1 << values.MAX_BITS),
        [0] * values.MAX_ITEMS,
        {number << 61: None for number in (-7, -1, 0, 1, 7)},
        {(number,): None for number in range(values.MAX_TUPLE_KEYS)},
    ):
        assert decode(encode(value)) == value


def test_millions_of_empty_lists_are_refused_before_they_are_made() -> None:
    """32 MiB of them took 1.2 GiB and 41 s."""
    data = b"l" + b"\x80\x80\x80\x08" + b"l\0" * (16 << 20)
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="items"):
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_deep_nesting_is_refused_both_ways() -> None:
    class Derived(list[Any]):
        pass

    for kind in (
        list,
        Derived,
        tuple,
        lambda items: OrderedDict(enumerate(items)),
        lambda items: dict(enumerate(items)),
    ):
        deep: Any = None
        for _ in range(MAX_DEPTH):
            deep = kind([deep])
        encode(deep)
        with pytest.raises(TypeError):
            encode(kind([deep]))
    with pytest.raises(ProtocolError):
        decode(b"l\x01" * 100_000 + b"n")


@for_each([object(), {1, 2}, 1j, print])
def test_other_types_cannot_be_saved(value: Any) -> None:
    with pytest.raises(TypeError):
        encode({"value": [value]})
