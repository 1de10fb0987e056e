"""The encoding of saved values: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import ProtocolError
from vfio_user.migration.values import MAX_DEPTH, decode, encode

SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False)
KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text())
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
def test_what_is_encoded_is_decoded(value: Any) -> None:
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize("value", [0, -1, 127, 128, -128, 1 << 63, -(1 << 200), True, 1.5, b"", "", [], (), {}])
def test_borders_are_decoded(value: Any) -> None:
    assert same(decode(encode(value)), value)


@given(VALUES)
def test_every_cut_is_refused(value: Any) -> None:
    data = encode(value)
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:end])


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


@pytest.mark.parametrize(
    "data",
    [b"?", b"s\xff\xff\xff\xff\x07", b"l\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"d\x01l\x00n", b"d\x02nnnn"],
    ids=["unknown tag", "length beyond the input", "length without end", "a list as key", "a key twice"],
)
def test_malformed_values_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def test_deep_nesting_is_refused_both_ways() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(TypeError):
        encode(deep)
    with pytest.raises(ProtocolError):
        decode(b"l\x01" * 100_000 + b"n")


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, print])
def test_other_types_cannot_be_saved(value: Any) -> None:
    with pytest.raises(TypeError):
        encode({"value": [value]})
