"""What a server answers beside what a reference does: the first difference, told apart by where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from userdev.fuzz.finds import Found, Oracle

_WORD = 4
"""Bytes of which one cause is told from another: a register is read at many offsets, in several widths."""
_SHOWN = 16
"""Bytes of an answer that are shown whole."""


class Answer(NamedTuple):
    """An answer, and where what it says belongs."""

    asked: str
    """What for, in full: two servers are compared as long as they were asked the same."""
    kind: str
    """What is refused where it is: the same text for whatever would be refused for one reason."""
    data: bytes | None
    """None: it was refused."""
    place: str = ""
    """What has the data; nothing: what was asked for tells it apart."""
    at: int = 0
    """Where they begin there, in bytes."""


Journal = list[Answer]
"""Answers in their order."""


def compared(
    oracle: Oracle, ours: Journal, theirs: Journal, *, ignored: Callable[[Found], bool] = lambda _: False
) -> Found | None:
    """The first answer that a reference did not give, as far as both were asked the same, and it is not `ignored`."""
    for our, other in zip(ours, theirs, strict=False):
        if our.asked != other.asked:
            return None
        if our.data != other.data and not ignored(found := _difference(oracle, our, other)):
            return found
    return None


def _difference(oracle: Oracle, our: Answer, their: Answer) -> Found:
    if our.data is None or their.data is None:
        one = "this server" if our.data is None else "the reference"
        said = f"{our.asked} is {_shown(our.data)}; by the reference {_shown(their.data)}"
        return Found(oracle, f"{our.kind}: {one} alone refuses it", said)
    at = _first_difference(our.data, their.data)
    if not our.place:
        said = f"{our.asked} is {_shown(our.data, at)}; by the reference {_shown(their.data, at)}"
        return Found(oracle, our.asked, said)
    word = (our.at + at) // _WORD * _WORD
    begin = max(0, word - our.at)
    end = word + _WORD - our.at
    parts = [answer.data[begin:end].hex() or "nothing" for answer in (our, their) if answer.data is not None]
    said = f"{our.asked}: at {our.at + begin:#x} there is {parts[0]}; with the reference {parts[1]}"
    return Found(oracle, f"{our.place} at {word:#x}", said)


def _first_difference(one: bytes, other: bytes) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))


def _shown(data: bytes | None, at: int = 0) -> str:
    if data is None:
        return "refused"
    if len(data) <= _SHOWN:
        return f"answered with {data.hex() or 'nothing'}"
    begin = max(0, at // _WORD * _WORD)
    return f"answered with {len(data)} bytes, of which those from {begin} on are {data[begin : begin + _SHOWN].hex()}"
