"""What is given to a function in a guest, and what it gives back: by the real agent, at the other end of a socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.test_harness_agent import Port
from userdev.errors import UserError
from vfio_user.harness.agent import AgentGuest
from vfio_user.harness.guest import GuestFailure, decode, encode, outcome_of


@pytest.fixture(scope="module")
def guest() -> Iterator[AgentGuest]:
    """One for all: whatever a function did, the next is called."""
    port = Port()
    connected = AgentGuest(port.connect())
    connected.hello(30)
    yield connected
    connected.close()
    port.close()


def same(value: object) -> object:
    return value


ALIKE: dict[str, Any] = {
    "numbers for keys": {1: 2, -3: {4: 5}},
    "keys of every kind": {None: 1, True: 2, 2.5: 3, b"\0": 4, "text": 5},
    "a number called bytes": {"bytes": 5},
    "a text called bytes": {"read": [{"bytes": "AAAA"}]},
    "a dict called dict": {"dict": {"dict": [[1, 2]]}},
    "bytes called bytes": {"bytes": b"\xff", "dict": b""},
    "nothing": {"": {}, "list": [[], [[]], None, ""]},
    "texts that are no UTF-8": ["\udcff", "\0", "€"],
}


def test_what_a_function_is_given_and_gives_back_arrives_as_it_was(guest: AgentGuest) -> None:
    """Also a dict that JSON has no word for, and one that looks like our own word for bytes."""
    assert guest.call(same, [*ALIKE.values()]) == [*ALIKE.values()]
    assert guest.call(same, (1, (2,))) == [1, [2]]
    for name, value in ALIKE.items():
        assert decode(encode(value)) == value, name


def of_what_cannot_be_sent() -> list[str]:
    from agent_json import encode

    def refusal(value: object) -> str:
        try:
            encode(value)
        except TypeError as error:
            return str(error)
        return "none"

    return [refusal(value) for value in ({(1, 2): 3}, {"in a set": {1}}, object())]


def test_what_cannot_be_sent_is_refused_on_either_side_and_the_next_goes(guest: AgentGuest) -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in ({(1, 2): 3}, {"in a set": {1}}, object(), endless):
        with pytest.raises(UserError, match="cannot be sent to a guest"):
            guest.call(same, value)
    assert all("cannot be sent" in refusal for refusal in guest.call(of_what_cannot_be_sent))
    assert guest.call(same, 1) == 1


def test_what_the_agent_is_told_that_we_have_is_told_though_a_request_was_refused(guest: AgentGuest) -> None:
    """Else it kept those answers for as long as it lives."""
    guest.call(same, 1)
    with pytest.raises(UserError):
        guest.call(same, object())
    assert guest._done, "the answer that came is still to be told"


class Nested:
    def within(self) -> Any:
        def at_the_margin(raising: bool) -> str:
            text = """
this text begins where its line does
    """
            if raising:
                raise ValueError(text)
            return text

        return at_the_margin


def test_a_function_may_have_lines_that_begin_left_of_it(guest: AgentGuest) -> None:
    function = Nested().within()
    assert guest.call(function, raising=False) == function(raising=False)
    with pytest.raises(GuestFailure) as caught:
        guest.call(function, raising=True)
    line = function.__code__.co_firstlineno + 5
    assert f"line {line}, in at_the_margin\n    raise ValueError(text)" in str(caught.value)


def named(**given: int) -> dict[str, int]:
    return given


def test_a_functions_arguments_may_be_called_as_they_like(guest: AgentGuest) -> None:
    wanted = {"self": 1, "function": 2, "request": 3, "operation": 4}
    assert guest.call(named, **wanted) == wanted


def endless() -> None:
    import time

    while True:
        time.sleep(1)


def test_a_function_that_takes_too_long_is_told_so(guest: AgentGuest) -> None:
    with pytest.raises(GuestFailure, match=r"endless\(\) did not end in 0\.1 s"):
        guest.call(endless, timeout=0.1)


def test_more_than_an_agent_keeps_is_told_with_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode({"value": "x" * (1 << 20)})
    monkeypatch.setattr("vfio_user.harness.guest.OUTPUT_LIMIT", 1 << 20)
    with pytest.raises(GuestFailure, match="more than 1 MiB: have it write a file"):
        outcome_of("f", whole[: 1 << 20])
    assert outcome_of("f", whole)["value"] == "x" * (1 << 20)
