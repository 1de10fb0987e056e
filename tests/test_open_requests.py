"""Open requests: which of them a reply answers, however ids are used, and which ids are free."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from vfio_user.interposer.pairing import LIMIT, Pairing, PendingRequest
from vfio_user.wire.open_requests import IDS, OpenRequests, free_id
from vhost_user.interposer import unanswered

SENT_OR_REPLIED = st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60)


@given(SENT_OR_REPLIED)
def test_a_reply_answers_the_oldest_request_of_its_id(messages: list[tuple[bool, int]]) -> None:
    found, oracle = OpenRequests[int](), dict[int, list[int]]()
    for number, (sent, id) in enumerate(messages):
        if sent:
            found.sent(id, number)
            oracle.setdefault(id, []).append(number)
        else:
            assert found.replied(id) == (oracle[id].pop(0) if oracle.get(id) else None)
        assert sorted(found) == sorted(chain.from_iterable(oracle.values()))
        assert len(found) == sum(map(len, oracle.values()))
        assert [each in found for each in range(4)] == [bool(oracle.get(each)) for each in range(4)]


def test_who_waits_for_an_answer_is_told_once_that_nobody_will_know_it() -> None:
    """Of either protocol: beyond so many requests an old one is forgotten."""
    told: list[int] = []
    waiting = unanswered.Unanswered()
    for number in range(unanswered.LIMIT + 3):
        tell = (lambda reply, number=number: told.append(number),)
        waiting.sent(unanswered.SentRequest(1, 0, tell))
    assert (told, len(waiting)) == ([0, 1, 2], unanswered.LIMIT)
    told.clear()
    pairing = Pairing()
    for number in range(LIMIT + 3):
        pairing.sent(5, PendingRequest(0, 1, None, answered=(lambda reply, number=number: told.append(number),)))  # type: ignore[misc]
    assert told == [1, 2]
    assert len(pairing) == LIMIT + 1


def test_of_one_id_so_many_are_kept_and_an_older_one_is_let_go() -> None:
    gone: list[int] = []
    found = OpenRequests[int](2, gone.append)
    for number in range(5):
        found.sent(9, number)
    assert gone == [1, 2]
    assert [found.replied(9) for _ in range(4)] == [0, 3, 4, None]


def test_ids_are_counted_up_or_down_round_the_end_and_past_those_in_use() -> None:
    assert free_id(0) == 1
    assert free_id(IDS - 1) == 0
    assert free_id(0, step=-1) == IDS - 1
    assert free_id(4, {5, 6}, [7]) == 8
    assert free_id(4, range(1, IDS)) == 0
    assert free_id(4, range(IDS)) is None


def test_what_a_replaced_server_asked_is_known_until_it_is_answered() -> None:
    pairing = Pairing()
    for id in (1, 1, 2):
        pairing.sent(id, PendingRequest(0, 1, None))
    before = pairing.has_stale
    pairing.make_stale()
    pairing.sent(3, PendingRequest(0, 1, None))
    seen = []
    for id in (1, 3, 1, 2):
        seen.append(pairing.has_stale)
        request = pairing.replied(id)
        assert request is not None
        assert request.stale is (id != 3)
    assert [before, *seen, pairing.has_stale] == [False, True, True, True, True, False]


def test_nothing_is_open_once_all_is_forgotten() -> None:
    """Nor what was asked under an id that was in use."""
    waiting = OpenRequests[str]()
    for id in (1, 1, 1, 2):
        waiting.sent(id, "before")
    waiting.clear()
    assert (len(waiting), list(waiting), 1 in waiting) == (0, [], False)
    waiting.sent(1, "after")
    assert [waiting.replied(1), waiting.replied(1)] == ["after", None]


def test_a_peer_that_is_never_answered_fills_no_memory() -> None:
    pairing = Pairing()
    for _ in range(10 * LIMIT):
        pairing.sent(1, PendingRequest(0, 1, None))
    assert len(pairing) <= LIMIT + 1
