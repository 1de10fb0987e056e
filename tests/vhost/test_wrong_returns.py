"""A device's function that forgets its `return`: the ring breaks, and its author reads which function that is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FrontEnd, Queue
from vhost_user.device import Begun, Chain, queue


class _Endless(Begun):
    def end(self) -> Any:
        pass


class _Boastful(Begun):
    def end(self) -> int:
        return 100_000


class Forgetful(Reverse):
    """Says nothing, at once or later."""

    @queue()
    def reverse(self, chain: Chain) -> Any:
        match chain.read():
            case b"later":
                return lambda: None
            case b"begun":
                return _Endless()
            case b"much":
                return 100_000
            case b"much later":
                return lambda: 100_000
            case b"much begun":
                return _Boastful()
            case data if data != b"now":
                return chain.write(data)


@pytest.fixture
def device() -> Forgetful:
    return Forgetful()


@pytest.mark.parametrize(
    ("when", "name"), [("now", "Forgetful.reverse"), ("later", "Forgetful.reverse.<locals>.<lambda>"), ("begun", "end")]
)
def test_its_author_is_told_which_function_and_where(
    front_end: FrontEnd, ring: Queue, caplog: pytest.LogCaptureFixture, when: str, name: str
) -> None:
    ring.put(b"good", 4)
    ring.put(when.encode(), 4)
    ring.kick()
    assert ring.wait_err()
    front_end.settle()
    assert f"{name} ({__file__}:" in caplog.text
    assert "has returned None: it has to return" in caplog.text
    assert "Traceback" not in caplog.text
    assert [done.data for done in ring.take_used()] == [b"good"]


@pytest.mark.parametrize(
    ("when", "name"),
    [
        ("much", "Forgetful.reverse"),
        ("much later", "Forgetful.reverse.<locals>.<lambda>"),
        ("much begun", "_Boastful.end"),
    ],
)
def test_more_than_there_is_room_for_breaks_the_ring_and_never_reaches_the_driver(
    front_end: FrontEnd, ring: Queue, caplog: pytest.LogCaptureFixture, when: str, name: str
) -> None:
    ring.put(b"good", 4)
    ring.put(when.encode(), 16)
    ring.kick()
    assert ring.wait_err()
    front_end.settle()
    assert f"{name} ({__file__}:" in caplog.text
    assert "has returned 100000" in caplog.text
    assert "16" in caplog.text
    assert "Traceback" not in caplog.text
    assert [done.data for done in ring.take_used()] == [b"good"]
